"""`ezm envs`: look at tasks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ezm_pl.commands import outputs
from ezm_pl.commands.arguments import Group, add_seed, command, named_tasks, new_console, number, wrote
from ezm_pl.spec import as_spec_error, writing
from ezm_pl.spec.fields import MOST_EPISODES
from ezm_pl.spec.files import file_name

if TYPE_CHECKING:
    from PIL.Image import Image


def add(group: Group) -> None:
    """Adds the commands."""
    envs = command(group, "envs", _list, "look at tasks").add_subparsers(required=True, metavar="WHAT")
    command(envs, "list", _list, "every task, its sizes and its published scores")
    _add_pictures(envs)
    random = command(envs, "random", _random, "a random policy's returns beside the published ones")
    random.add_argument("tasks", nargs="*", metavar="TASK", help="tasks or suites (default: hb-medium)")
    random.add_argument(
        "--episodes", type=number(1, MOST_EPISODES), default=20, help="per task (default: 20)"
    )
    add_seed(random)
    random.add_argument(
        "--backend",
        choices=("auto", "builtin", "humanoid_bench"),
        default="auto",
        help="humanoid_bench: the original package's tasks, where it is installed",
    )
    parity = command(envs, "parity", _parity, "compare with recordings of the original tasks")
    parity.add_argument("directory", type=Path, metavar="DIR", help="holds <task>.npz")
    parity.add_argument("tasks", nargs="*", metavar="TASK", help="tasks or suites (default: all recorded)")


def _add_pictures(envs: Group) -> None:
    show = command(envs, "show", _show, "one task: sizes, reward terms, a frame")
    show.add_argument("task", metavar="TASK")
    add_seed(show, "of the frame's episode (default: 0)")
    show.add_argument(
        "--out", type=outputs.file_in(outputs.PICTURES), metavar="PNG", help="default: TASK.png"
    )
    sheet = command(envs, "sheet", _sheet, "a contact sheet: a frame of each task, its name and score bar")
    sheet.add_argument("tasks", nargs="*", metavar="TASK", help="tasks or suites (default: hb-all)")
    sheet.add_argument(
        "--out",
        type=outputs.file_in((".png",)),
        metavar="PNG",
        default="tasks.png",
        help="default: tasks.png",
    )
    sheet.add_argument("--columns", type=number(1, 100), default=8, help="frames per row (default: 8)")
    sheet.add_argument("--width", type=number(32, 640), default=160, help="of a frame (default: 160)")
    add_seed(sheet)
    record = command(envs, "record", _record, "film a random policy")
    record.add_argument("task", metavar="TASK")
    add_seed(record)
    record.add_argument("--out", type=outputs.file_in(outputs.FILMS), metavar="MP4", help="default: TASK.mp4")


def _list(_: argparse.Namespace) -> None:
    from ezm_pl.tracking.results.tables import tasks_table

    new_console().print(tasks_table())


def _show(args: argparse.Namespace) -> None:
    (task,) = named_tasks([args.task], most=1)
    from ezm_pl.envs import RenderingUnavailable, sizes
    from ezm_pl.envs.pictures import picture, reward_terms
    from ezm_pl.tracking.results.tables import task_facts

    path = _default(args.out, task, outputs.PICTURES)
    size, terms = sizes([task]), reward_terms(task)
    console = new_console()
    console.print(task_facts(task, obs_size=size.obs_size, action_size=size.action_size, terms=terms))
    try:
        _write_picture(path, picture(task, args.seed))
    except RenderingUnavailable as error:
        console.print(f"no frame: {error}", style="yellow", markup=False, soft_wrap=True)


def _sheet(args: argparse.Namespace) -> None:
    tasks = named_tasks(args.tasks or ["hb-all"])
    from ezm_pl.envs import RenderingUnavailable
    from ezm_pl.envs.pictures import sheet

    with as_spec_error(RenderingUnavailable):
        _write_picture(args.out, sheet(tasks, args.seed, columns=args.columns, width=args.width))


def _random(args: argparse.Namespace) -> None:
    tasks = named_tasks(args.tasks or ["hb-medium"])
    from ezm_pl.envs import HumanoidBenchUnavailable, random_returns
    from ezm_pl.tracking.results.tables import random_table

    with as_spec_error(HumanoidBenchUnavailable):
        returns = random_returns(tasks, args.episodes, args.seed, backend=args.backend)
    new_console().print(random_table(returns))


def _parity(args: argparse.Namespace) -> int:
    tasks = named_tasks(args.tasks) if args.tasks else None
    from ezm_pl.envs.parity import check
    from ezm_pl.tracking.results.tables import parity_table

    with as_spec_error(FileNotFoundError, ValueError):
        rows = check(args.directory, tasks)
    table, agrees = parity_table(rows)
    console = new_console()
    console.print(table)
    for line in (f"{row.task}: {line}" for row in rows for line in row.differences):
        console.print(line, markup=False, soft_wrap=True)
    return 0 if agrees else 1


def _record(args: argparse.Namespace) -> None:
    (task,) = named_tasks([args.task], most=1)
    from ezm_pl.tracking.results.videos import film_random

    path = _default(args.out, task, outputs.FILMS)
    film_random(task, path, seed=args.seed)
    wrote(path)


def _default(out: Path | None, task: str, formats: tuple[str, ...]) -> Path:
    """`out`, or a file named after the task in the working directory."""
    return out or outputs.check_file(Path(file_name(task) + formats[0]), formats)


def _write_picture(path: Path, picture: Image) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, optimize=True)
    wrote(path)
