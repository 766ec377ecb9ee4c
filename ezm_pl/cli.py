"""The `ezm` command: arguments in, one call into a room, an exit code out.

Exit codes: 0 done; 2 the spec or the command line is wrong (one line a problem); 130 interrupted.
Rooms are imported by the command that needs them, so that bad input is answered at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console

from ezm_pl.spec import Experiment, SpecError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PORT = 5000


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command (of this process, by default) and returns its exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        return parsed.command(parsed) or 0
    except SpecError as error:
        for line in str(error).splitlines():
            print(f"ezm: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ezm: interrupted", file=sys.stderr)
        return 130


def _validate(args: argparse.Namespace) -> None:
    from ezm_pl.spec import dump_experiment
    from ezm_pl.spec.facts import spec_facts

    experiment, preset = _load(args)
    for line in (f"{args.spec}: valid", f"preset: {preset}", *spec_facts(experiment)):
        print(f"# {line}")
    print(dump_experiment(experiment), end="")


def _train(args: argparse.Namespace) -> int:
    experiment, preset = _load(args)
    console = _console()
    console.print(f"{args.spec}, preset {preset}", highlight=False)
    from ezm_pl.tracking.runs import train

    return train(experiment, resume=args.resume, console=console)


def _eval(args: argparse.Namespace) -> None:
    from ezm_pl.tracking.evaluate import evaluate_run

    evaluate_run(args.run, episodes=args.episodes, seed=args.seed, video=args.video, console=_console())


def _figure(args: argparse.Namespace) -> None:
    from ezm_pl.tracking.draw import draw_returns

    draw_returns(args.run, args.out, published=args.published, console=_console())


def _learn_check(args: argparse.Namespace) -> int:
    from ezm_pl.tracking.saved_runs import find_checkpoint
    from ezm_pl.tracking.tables import learn_check_table
    from ezm_pl.training import CheckpointError
    from ezm_pl.training.learn_check import learn_check

    try:
        rows = learn_check(find_checkpoint(args.run, option="RUN").checkpoint)
    except CheckpointError as error:
        raise SpecError(str(error)) from None
    _console().print(learn_check_table(rows))
    return 0 if all(row.passed for row in rows) else 1


def _ui(args: argparse.Namespace) -> None:
    from ezm_pl.tracking.ui import serve_ui

    serve_ui(args.port)


def _envs_list(_: argparse.Namespace) -> None:
    from ezm_pl.tracking.tables import tasks_table

    _console().print(tasks_table())


def _envs_show(args: argparse.Namespace) -> None:
    (task,) = _tasks([args.task], most=1)
    from ezm_pl.envs import RenderingUnavailable, sizes
    from ezm_pl.envs.pictures import frame, reward_terms
    from ezm_pl.tracking.tables import task_facts

    size, terms = sizes([task]), reward_terms(task)
    console = _console()
    console.print(task_facts(task, obs_size=size.obs_size, action_size=size.action_size, terms=terms))
    path = args.out or Path(f"{task}.png")
    try:
        _write_picture(path, frame(task, args.seed))
    except RenderingUnavailable as error:
        console.print(f"no frame: {error}", style="yellow", markup=False, soft_wrap=True)


def _envs_sheet(args: argparse.Namespace) -> None:
    tasks = _tasks(args.tasks or ["hb-29"])
    from ezm_pl.envs import RenderingUnavailable
    from ezm_pl.envs.pictures import sheet

    try:
        _write_picture(args.out, sheet(tasks, args.seed, columns=args.columns, width=args.width))
    except RenderingUnavailable as error:
        raise SpecError(str(error)) from None


def _envs_random(args: argparse.Namespace) -> int:
    tasks = _tasks(args.tasks or ["hb-medium"])
    from ezm_pl.envs import random_returns
    from ezm_pl.tracking.tables import random_table

    returns = random_returns(tasks, args.episodes, args.seed)
    table, agrees = random_table(returns)
    _console().print(table)
    return 0 if agrees else 1


def _envs_parity(args: argparse.Namespace) -> int:
    tasks = _tasks(args.tasks) if args.tasks else None
    from ezm_pl.envs.parity import check
    from ezm_pl.tracking.tables import parity_table

    try:
        rows = check(args.directory, tasks)
    except (FileNotFoundError, ValueError) as error:
        raise SpecError(str(error)) from None
    table, agrees = parity_table(rows)
    _console().print(table)
    return 0 if agrees else 1


def _envs_record(args: argparse.Namespace) -> None:
    (task,) = _tasks([args.task], most=1)
    from ezm_pl.tracking.videos import film_random

    path = args.out or Path(f"{task}.mp4")
    film_random(task, path, seed=args.seed)
    print(f"wrote {path}")


def _write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    import imageio.v3 as imageio

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        imageio.imwrite(path, picture)
    except (OSError, ValueError) as error:
        raise SpecError(f"cannot write {path}: {error}") from None
    print(f"wrote {path}")


def _load(args: argparse.Namespace) -> tuple[Experiment, str]:
    """The resolved experiment, and its preset with the reason where it was picked by `auto`."""
    from ezm_pl.spec import build_experiment, choose_preset, read_document
    from ezm_pl.tracking.host import has_usable_gpu

    document = read_document(args.spec, args.set)
    gpu = has_usable_gpu()
    experiment = build_experiment(document, source=args.spec, gpu=gpu)
    chosen = document.get("preset", "auto") == "auto"
    return experiment, experiment.preset + (f" (auto: {choose_preset(gpu=gpu)[1]})" if chosen else "")


def _tasks(names: list[str], *, most: int | None = None) -> tuple[str, ...]:
    from ezm_pl.spec import resolve_tasks

    try:
        tasks = resolve_tasks(names)
    except ValueError as error:
        raise SpecError(str(error)) from None
    if most is not None and len(tasks) > most:
        raise SpecError(f"one task expected, got {names[0]!r} ({len(tasks)} tasks)")
    return tasks


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=120)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(2)


def _number(least: int, most: int | None = None) -> Callable[[str], int]:
    """An argument type: a whole number from `least` to `most`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
            bound = f"from {least} to {most}" if most is not None else f"of at least {least}"
            raise argparse.ArgumentTypeError(f"a whole number {bound} expected, got {text!r}")
        return int(text)

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="ezm", description="EfficientZero-Multitask experiments on HumanoidBench.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, run: Callable, text: str, within: argparse._SubParsersAction = commands) -> _Parser:
        command = within.add_parser(name, help=text, description=text)
        command.set_defaults(command=run)
        return command

    for name, run, text in (
        ("validate", _validate, "check a spec and print it with everything resolved"),
        ("train", _train, "train a spec as an MLflow run"),
    ):
        command = add(name, run, text)
        command.add_argument("spec", metavar="SPEC", help="a YAML file, such as experiments/quickstart.yaml")
        command.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="A.B=C",
            help="lay a setting over the file; repeatable",
        )
    command.add_argument(
        "--resume", metavar="RUN", help="go on from: last, a run id, a run folder, a checkpoint"
    )

    command = add("eval", _eval, "evaluate a checkpoint")
    _add_run(command)
    command.add_argument("--episodes", type=_number(1), default=4, help="a task (default: 4)")
    command.add_argument("--seed", type=_number(0), default=0)
    command.add_argument("--video", type=Path, metavar="DIR", help="film an episode of each task into DIR")

    command = add("figure", _figure, "draw a run's returns against environment steps")
    _add_run(command)
    command.add_argument(
        "--published", type=Path, metavar="JSON", help="published curves to draw beside them"
    )
    command.add_argument("--out", type=Path, default=Path("returns.png"), help="default: returns.png")

    command = add("learn-check", _learn_check, "check that experiments/learn_check.yaml has learned")
    _add_run(command)

    command = add("ui", _ui, "serve MLflow's UI on this machine")
    command.add_argument("--port", type=_number(1, 65535), default=PORT, help=f"default: {PORT}")

    envs = add("envs", _envs_list, "look at tasks").add_subparsers(required=True, metavar="WHAT")
    add("list", _envs_list, "every task, its sizes and its published scores", envs)
    command = add("show", _envs_show, "one task: sizes, reward terms, a frame", envs)
    command.add_argument("task", metavar="TASK")
    command.add_argument("--seed", type=_number(0), default=0, help="of the frame's episode")
    command.add_argument("--out", type=Path, metavar="PNG", help="default: TASK.png")
    command = add("sheet", _envs_sheet, "a contact sheet: a frame of each task", envs)
    command.add_argument("out", type=Path, metavar="OUT", help="a .png or .jpg file")
    command.add_argument("tasks", nargs="*", metavar="TASK", help="tasks or suites (default: hb-29)")
    command.add_argument("--columns", type=_number(1), default=6, help="frames a row (default: 6)")
    command.add_argument("--width", type=_number(32, 640), default=200, help="of a frame (default: 200)")
    command.add_argument("--seed", type=_number(0), default=0)
    command = add("random", _envs_random, "a random policy's returns beside the published ones", envs)
    command.add_argument("tasks", nargs="*", metavar="TASK", help="tasks or suites (default: hb-medium)")
    command.add_argument("--episodes", type=_number(1), default=20, help="a task (default: 20)")
    command.add_argument("--seed", type=_number(0), default=0)
    command = add("parity", _envs_parity, "compare with recordings of the original tasks", envs)
    command.add_argument("directory", type=Path, metavar="DIR", help="holds <task>.npz")
    command.add_argument("tasks", nargs="*", metavar="TASK", help="tasks or suites (default: all recorded)")
    command = add("record", _envs_record, "film a random policy", envs)
    command.add_argument("task", metavar="TASK")
    command.add_argument("--seed", type=_number(0), default=0)
    command.add_argument("--out", type=Path, metavar="MP4", help="default: TASK.mp4")
    return parser


def _add_run(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "run",
        nargs="?",
        default="last",
        metavar="RUN",
        help="last (default), a run id, a run folder, a checkpoint",
    )
