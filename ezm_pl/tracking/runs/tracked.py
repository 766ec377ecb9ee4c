"""What a tracked run goes through, whatever is trained in it: it is opened, trained, ended and reported."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, Protocol, TypeVar

from rich.console import Console

from ezm_pl.spec import Experiment, SpecError
from ezm_pl.tracking.console import say
from ezm_pl.tracking.fault_tolerance.sender import UNSENT
from ezm_pl.tracking.fault_tolerance.signals import defer_sigint, signals_as_sigint
from ezm_pl.tracking.runs.mlflow_run import Run, Status, failed_if_raises, run_lock
from ezm_pl.tracking.runs.run_lookup import RUNS, SavedRun
from ezm_pl.tracking.store import first_line, shown, store_errors, tracking_uri

if TYPE_CHECKING:
    from ezm_pl.tracking.runs.logger import RunLogger

_LAST_TRY_SECONDS = 30.0
"""Seconds that a run which has ended tries to send the rest of its metrics."""


class Result(Protocol):
    """How a training ended."""

    @property
    def status(self) -> Literal["finished", "interrupted"]: ...


R = TypeVar("R", bound=Result)


@dataclass(frozen=True)
class Work(ABC, Generic[R]):
    """What is trained in a tracked run.

    Attributes:
        experiment: whose tracking store it is tracked in.
        saved: the run to go on with; None: a new one.
        console: where to print.
        notes: lines on what begins, each with its style.
    """

    experiment: Experiment
    saved: SavedRun | None
    console: Console
    notes: Sequence[tuple[str, str]]

    CHECKPOINT: ClassVar[Path]
    """In the run's folder, what it goes on from."""
    AGAIN: ClassVar[str]
    """What to type to go on."""

    @abstractmethod
    def open(self) -> Run:
        """Makes the MLflow run, or takes it up again."""

    @abstractmethod
    def fit(self, run: Run, logger: RunLogger) -> R:
        """Trains to the end, or until interrupted."""

    @abstractmethod
    def log_files(self, run: Run, *, finished: bool) -> None:
        """Copies what was made to the run's artifacts."""

    @abstractmethod
    def report(self, run: Run, result: R) -> None:
        """Says what came of it."""


def track(work: Work[R]) -> int:
    """Does `work` as an MLflow run, which ends FINISHED, KILLED (Ctrl-C, SIGTERM, SIGHUP) or FAILED.

    Returns:
        The exit code: 0, 130 when interrupted, or 75 when a scheduler (SIGTERM, SIGUSR1) has ended it.

    Raises:
        SpecError: a store or a disk that does not work here.
        Exception: whatever training raised.
    """
    saved, console = work.saved, work.console
    with ExitStack() as stack:
        if saved:
            saved.directory.mkdir(parents=True, exist_ok=True)
            stack.enter_context(run_lock(saved.directory))
        stopped = stack.enter_context(signals_as_sigint())
        run: Run | None = None
        try:
            try:
                with defer_sigint():
                    run = work.open()
            except store_errors() as error:
                where = f"{shown(tracking_uri(work.experiment.tracking.uri))} and {RUNS}"
                raise SpecError(f"no run can be made in {where}: {first_line(error)}") from None
            with failed_if_raises(run):
                if not saved:
                    stack.enter_context(run_lock(run.directory))
                say(console, f"run {run.name} ({run.run_id}), tracked in {shown(run.store)}")
                for text, style in work.notes:
                    say(console, text, style)
        except KeyboardInterrupt:
            if run is not None:
                with defer_sigint():
                    _end(run, "KILLED", console)
            return stopped.exit_code
        return 0 if _train(work, run) else stopped.exit_code


def _train(work: Work[R], run: Run) -> bool:
    """Whether the work has reached its end; otherwise it was interrupted."""
    status: Status = "FAILED"
    result: R | None = None
    logger = None
    tell = functools.partial(say, work.console, style="yellow")
    try:
        from ezm_pl.tracking.runs.logger import RunLogger

        logger = RunLogger(run.client, run.run_id, tell)
        result = work.fit(run, logger)
        status = "FINISHED" if result.status == "finished" else "KILLED"
        if logger.sender.flush(_LAST_TRY_SECONDS):
            _log_files(work, run, finished=status == "FINISHED")
        else:
            tell(f"MLflow is away: checkpoints are in {run.directory}, not among the run's artifacts")
    except (KeyboardInterrupt, SystemExit):  # Lightning answers SIGTERM with a SystemExit
        status = "KILLED"
    finally:
        with defer_sigint():
            if logger is not None:
                again = _LAST_TRY_SECONDS if result is None else 0.0
                unsent = logger.sender.close(again, run.directory / UNSENT)
                if unsent:
                    tell(unsent)
            _end(run, status, work.console)
        if status != "FINISHED":
            there = (run.directory / work.CHECKPOINT).is_file()
            after = f"; {work.AGAIN} goes on from its checkpoint" if there else ""
            style = "yellow" if status == "KILLED" else "red"
            say(work.console, f"run {run.name} is {status} in MLflow{after}", style)
    if result is not None:
        work.report(run, result)
    return status == "FINISHED"


def _log_files(work: Work[R], run: Run, *, finished: bool) -> None:
    try:
        work.log_files(run, finished=finished)
    except store_errors() as error:
        text = f"not all artifacts could be written: {first_line(error)}; checkpoints are in {run.directory}"
        say(work.console, text, "red")


def _end(run: Run, status: Status, console: Console) -> None:
    """Writes how the run ended, or says that it could not be written."""
    try:
        run.end(status)
    except store_errors() as error:
        say(console, f"MLflow could not be told that the run is {status}: {first_line(error)}", "red")
