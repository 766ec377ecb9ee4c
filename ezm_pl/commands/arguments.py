"""What commands share: the parser that answers in one line, argument types, specs and tasks by name."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from ezm_pl.commands.interrupts import hear_dropped_interrupts
from ezm_pl.spec import Experiment, SpecError, as_spec_error
from ezm_pl.spec.bases import Chain, read_chain
from ezm_pl.spec.seeds import MAX_SEED
from ezm_pl.spec.sweep import is_sweep

_DIGITS = 4000
"""Python reads no decimal number longer than 4,300 digits."""

Group = argparse._SubParsersAction
"""What commands are added to: the top level, or a command that has commands of its own."""


def complain(text: str, prog: str = "ezm") -> None:
    """Prints what is wrong on standard error, line by line; nothing where that is closed."""
    for line in text.splitlines() if sys.stderr is not None else ():
        with suppress(OSError):
            print(f"{prog}: {line}", file=sys.stderr)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Prints it and exits with code 2."""
        complain(f"{message} (see {self.prog} --help)", self.prog)
        sys.exit(2)


def command(group: Group, name: str, run: Callable[[argparse.Namespace], int | None], text: str) -> Parser:
    """Adds a command to `group`: `run` takes the parsed arguments and returns an exit code (None: 0)."""
    added: Parser = group.add_parser(name, help=text, description=text)
    added.set_defaults(command=run)
    return added


def number(least: int, most: int) -> Callable[[str], int]:
    """An argument type: a whole number from `least` to `most`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or len(text) > _DIGITS or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"a whole number from {least} to {most} expected, got {text!r}")
        return int(text)

    return parse


def add_run(command: Parser) -> None:
    """Adds the argument that names a saved run."""
    command.add_argument(
        "run",
        nargs="?",
        default="last",
        metavar="RUN",
        help="last (default), a run id, a run folder, a checkpoint",
    )


def add_seed(command: Parser, text: str = "default: 0") -> None:
    """Adds `--seed`, in the range that a spec's has."""
    command.add_argument("--seed", type=number(0, MAX_SEED), default=0, help=text)


def add_settings(command: argparse.ArgumentParser, text: str, form: str = "A.B=C") -> None:
    """Adds `--set`, given any number of times."""
    command.add_argument("--set", action="append", default=[], metavar=form, help=f"{text}; repeatable")


def add_search_settings(command: Parser) -> None:
    """Adds `--set` for the search of a trained agent."""
    text = "override a setting of the search, such as search.num_simulations=64"
    add_settings(command, text, "search.A=B")


def add_published(command: Parser, text: str) -> None:
    """Adds `--published`, files of published curves."""
    command.add_argument(
        "--published", type=Path, action="append", default=[], metavar="JSON", help=f"{text}; repeatable"
    )


def add_steps(command: Parser, text: str, default: str) -> None:
    """Adds `--at`, numbers of control steps per task."""
    command.add_argument(
        "--at",
        type=number(1, 10**12),
        action="append",
        default=[],
        metavar="STEPS",
        help=f"control steps per task {text}; repeatable (default: {default})",
    )


def add_spec(command: Parser) -> None:
    """Adds the arguments that name an experiment and lay settings over it."""
    command.add_argument("spec", metavar="SPEC", help="a YAML file, such as experiments/quickstart.yaml")
    add_settings(command, "override a field of the spec")


def _read(path: Path) -> Chain:
    chain = read_chain(path)
    if is_sweep(chain[0][1]):
        raise SpecError(f"{path}: this is a sweep: ezm sweep validate {path}, or ezm sweep run {path}")
    return chain


def load_spec(args: argparse.Namespace) -> tuple[Experiment, str, list[Path]]:
    """The resolved experiment, its preset with the reason where it was picked by `auto`, and its bases."""
    from ezm_pl.spec import build_experiment, choose_preset
    from ezm_pl.spec.bases import source_of
    from ezm_pl.spec.io import under_settings
    from ezm_pl.tracking.host import has_usable_gpu

    chain = _read(Path(args.spec))
    document, gpu = under_settings(chain, args.set), has_usable_gpu()
    experiment = build_experiment(document, source=source_of(chain), gpu=gpu)
    chosen = document.get("preset", "auto") == "auto"
    preset = experiment.preset + (f" (auto: {choose_preset(gpu=gpu)[1]})" if chosen else "")
    return experiment, preset, [path for path, _ in chain[1:]]


def named_tasks(names: list[str], *, most: int | None = None) -> tuple[str, ...]:
    """The tasks behind `names` (tasks or suites), at most `most` of them."""
    from ezm_pl.spec import resolve_tasks
    from ezm_pl.tracking.tasks import check_tasks

    with as_spec_error(ValueError):
        tasks = resolve_tasks(names)
    if most is not None and len(tasks) > most:
        raise SpecError(f"one task expected, got {names[0]!r} ({len(tasks)} tasks)")
    check_tasks(tasks, "auto")
    return tasks


def prepare_process() -> None:
    """Output escapes what its encoding lacks, as bytes of file names; figures are files; Ctrl-C is heard.

    Raises:
        SpecError: the working directory has been removed, and relative paths lead nowhere.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")
    hear_dropped_interrupts()
    os.environ["MPLBACKEND"] = "agg"  # `!ezm` inherits the notebook's, which may not be installed here
    try:
        os.getcwd()
    except FileNotFoundError:
        raise SpecError("the working directory has been removed; change to one that is there") from None


def new_console() -> Console:
    """The terminal, or 120 columns where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=120)


def wrote(path: Path) -> None:
    """Says where a file went."""
    print(f"wrote {path}")
