"""`ezm train`: a tracked run from its first line to its last, however it ends."""

from __future__ import annotations

import filecmp
import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ezm_pl.spec import Experiment, RunFailed, SpecError, differences, load_experiment
from ezm_pl.tracking.console import say
from ezm_pl.tracking.fault_tolerance.sender import UNSENT, send_left
from ezm_pl.tracking.fault_tolerance.signals import defer_sigint, signals_as_sigint
from ezm_pl.tracking.results.curves import run_curves
from ezm_pl.tracking.results.gradient_conflict import CONFLICT, conflict_figure
from ezm_pl.tracking.results.returns_figure import returns_figure
from ezm_pl.tracking.results.tables import returns_table
from ezm_pl.tracking.results.terminal_curve import terminal_curves
from ezm_pl.tracking.results.videos import film_tasks
from ezm_pl.tracking.runs.mlflow_run import (
    Run,
    Status,
    failed_if_raises,
    new_run,
    reopened_run,
    run_lock,
)
from ezm_pl.tracking.runs.run_lookup import (
    BEST,
    LAST,
    PREVIOUS,
    RUNS,
    SPEC,
    SavedRun,
    find_checkpoint,
    find_run,
)
from ezm_pl.tracking.store import first_line, shown, store_errors, tracking_uri
from ezm_pl.tracking.tasks import check_tasks

# What the end of a run needs is imported at its beginning: hours later the sources may have been edited.

if TYPE_CHECKING:
    from lightning import Callback

    from ezm_pl.training import FitResult
    from ezm_pl.training.transfer import InitialWeights


_TAKES_LESS = "lower optim.batch_size, the model's sizes, replay.capacity or env.num_envs"
_LAST_TRY_SECONDS = 30.0
"""Seconds that a run which has ended tries to send the rest of its metrics."""


@dataclass(frozen=True)
class Part:
    """What a run is given by a larger whole, such as a sweep, which shows the progress itself.

    Attributes:
        name: of the run.
        tags: beside those of every run; on a resumed run, too.
        callbacks: of Lightning, beside those of every run.
    """

    name: str
    tags: Mapping[str, str]
    callbacks: Sequence[Callback] = field(default=())


def train(
    experiment: Experiment,
    *,
    resume: str | None,
    console: Console,
    part: Part | None = None,
    init: str | None = None,
) -> int:
    """Trains `experiment` as an MLflow run, or resumes one.

    The run ends FINISHED, KILLED (Ctrl-C, SIGTERM, SIGHUP: the last checkpoint is written) or FAILED
    (the exception goes on to the caller).

    Args:
        experiment: the resolved spec.
        resume: `last`, a run id, a run folder or a checkpoint; None: a new run.
        console: where to print.
        part: of something bigger, such as a sweep; None: a run of its own.
        init: the run whose weights are the first ones of a new run (docs/transfer.md); None: random ones.

    Returns:
        The exit code: 0, 130 when interrupted, or 75 when a scheduler (SIGTERM, SIGUSR1) has ended it.

    Raises:
        SpecError: nothing to resume, a checkpoint of another spec, replay that does not fit into
            memory, tasks or a store that do not work here.
    """
    if _this_rank(experiment) != 0:
        return _train_other_rank(experiment, init)
    saved = find_run(resume, option="--resume") if resume else None
    check_tasks(experiment.tasks, experiment.env.backend)
    if not saved:
        experiment.check_packages()
    first = _first_weights(init, experiment) if init else None
    from ezm_pl.training import check_settings

    memory = check_settings(experiment)
    checkpoint, note = _checkpoint(saved, experiment) if saved else (None, None)
    with ExitStack() as stack:
        if saved:
            saved.directory.mkdir(parents=True, exist_ok=True)
            stack.enter_context(run_lock(saved.directory))
        stopped = stack.enter_context(signals_as_sigint())
        run: Run | None = None
        try:
            with defer_sigint(), _one_line_store_errors(experiment):
                run = _open(experiment, saved, part, first)
            with failed_if_raises(run):
                if not saved:
                    stack.enter_context(run_lock(run.directory))
                say(console, f"run {run.name} ({run.run_id}), tracked in {shown(run.store)}")
                say(console, memory)
                if first:
                    say(console, str(first.plan))
                if note:
                    say(console, note, "yellow")
        except KeyboardInterrupt:
            if run is not None:
                with defer_sigint():
                    _end(run, "KILLED", console)
            return stopped.exit_code
        return 0 if _train(run, experiment, checkpoint, console, part, first) else stopped.exit_code


def _first_weights(init: str, experiment: Experiment) -> InitialWeights:
    """What carries the weights of a trained run over; `SpecError` where they do not fit."""
    from ezm_pl.training.transfer import InitialWeights, plan_transfer

    return InitialWeights(plan_transfer(find_checkpoint(init, option="--init").checkpoint, experiment))


def _open(
    experiment: Experiment, saved: SavedRun | None, part: Part | None, first: InitialWeights | None
) -> Run:
    if saved is None:
        tags = dict(part.tags if part else {}) | ({"init": str(first.plan.source)} if first else {})
        return new_run(experiment, name=part.name if part else None, tags=tags)
    run = reopened_run(saved, experiment)
    with failed_if_raises(run):
        send_left(run.client, run.run_id, run.directory / UNSENT)
        for key, value in (part.tags if part else {}).items():
            run.client.set_tag(run.run_id, key, value)
    return run


def _train(
    run: Run,
    experiment: Experiment,
    checkpoint: Path | None,
    console: Console,
    part: Part | None,
    first: InitialWeights | None,
) -> bool:
    """Whether the run has reached its end; otherwise it was interrupted."""
    status: Status = "FAILED"
    result: FitResult | None = None
    logger = None
    tell = functools.partial(say, console, style="yellow")
    try:
        from ezm_pl.tracking.runs.logger import RunId, RunLogger
        from ezm_pl.training import fit

        logger = RunLogger(run.client, run.run_id, tell)
        with _one_line_memory_errors():
            result = fit(
                experiment,
                run.directory,
                logger=logger,
                callbacks=[RunId(run.run_id), *(part.callbacks if part else ()), *([first] if first else ())],
                checkpoint=checkpoint,
                progress=part is None,
            )
        status = "FINISHED" if result.status == "finished" else "KILLED"
        if logger.sender.flush(_LAST_TRY_SECONDS):
            _log_outcome(run, experiment, console, film=status == "FINISHED")
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
            _end(run, status, console)
        if status != "FINISHED":
            _say_how_it_ended(run, status, console)
    if result is not None:
        _say_result(result, console)
    return status == "FINISHED"


def _end(run: Run, status: Status, console: Console) -> None:
    """Writes how the run ended, or says that it could not be written."""
    try:
        run.end(status)
    except store_errors() as error:
        say(console, f"MLflow could not be told that the run is {status}: {first_line(error)}", "red")


@contextmanager
def _one_line_store_errors(experiment: Experiment) -> Iterator[None]:
    """Turns errors of a store or a disk that prevent a run into a `SpecError`."""
    try:
        yield
    except store_errors() as error:
        where = shown(tracking_uri(experiment.tracking.uri))
        raise SpecError(f"no run can be made in {where} and {RUNS}: {first_line(error)}") from None


def _this_rank(experiment: Experiment) -> int:
    """Which rank this process is. Lightning's Trainer decides, or `SpecError` says why it cannot."""
    from ezm_pl.tracking.runs.logger import quiet_lightning
    from ezm_pl.training import this_rank

    quiet_lightning()
    return this_rank(experiment)


def _train_other_rank(experiment: Experiment, init: str | None) -> int:
    """Joins the run that rank 0 makes: the same fit, nothing printed, nothing tracked.

    Returns 0 also when interrupted: rank 0 says so, and launchers take anything else for a failure.
    """
    from ezm_pl.training import fit

    with signals_as_sigint(), _one_line_memory_errors():
        fit(experiment, RUNS, callbacks=[_first_weights(init, experiment)] if init else ())
    return 0


def _checkpoint(saved: SavedRun, experiment: Experiment) -> tuple[Path | None, str | None]:
    """The checkpoint to resume, and a note for the user; None where the run has none yet.

    Raises:
        CheckpointError: every one is damaged, or of another spec.
        SpecError: there is none, and the run is of another spec.
    """
    from ezm_pl.training import check_same_experiment, newest_valid

    own = [saved.directory / path for path in (LAST, PREVIOUS)]
    is_copy = saved.checkpoint.resolve().parent != own[0].resolve().parent
    for path in own if is_copy else ():
        if path.is_file() and filecmp.cmp(path, saved.checkpoint, shallow=False):
            saved, is_copy = SavedRun(saved.directory, path), False  # the one with its replay beside it
    if any(path.is_file() for path in (saved.checkpoint, saved.checkpoint.with_name(PREVIOUS.name))):
        checkpoint, note = newest_valid(saved.checkpoint, replay=not is_copy)
        check_same_experiment(checkpoint, experiment)
        return checkpoint, note
    changed = differences(load_experiment(saved.directory / SPEC), experiment)
    if changed:
        raise SpecError(
            f"--resume: {saved.directory} has no checkpoint and another spec: {'; '.join(changed)}"
        )
    return None, None


@contextmanager
def _one_line_memory_errors() -> Iterator[None]:
    """A lack of memory becomes a `RunFailed`; anything else goes on with its traceback."""
    from ezm_pl.training import out_of_memory

    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise RunFailed(f"out of memory: {first_line(error)}; {_TAKES_LESS}") from None


def _log_outcome(run: Run, experiment: Experiment, console: Console, *, film: bool) -> None:
    """Checkpoints, the returns figure and, with `film`, videos into the run's artifacts."""
    last = run.directory / LAST
    try:
        run.log_file(last, "checkpoints")
        run.log_file(run.directory / BEST, "checkpoints")
        for report in run.directory.glob("*-profile*.txt"):
            run.log_file(report, "profile")
        curves = run_curves(run.client, run.run_id)
        if curves:
            figure = run.directory / "returns.png"
            returns_figure(
                {task: curves[task] for task in experiment.tasks if task in curves}, figure, title=run.name
            )
            run.log_file(figure, "figures")
        measured = run.directory / CONFLICT
        if measured.is_file():
            run.log_file(measured, "diagnostics")
            figure = run.directory / "gradient_conflict.png"
            conflict_figure(measured, figure, title=run.name)
            run.log_file(figure, "figures")
        if film and experiment.eval.video:
            directory = run.directory / "videos"
            for video in film_tasks(last, experiment.tasks, directory, seed=experiment.seed, console=console):
                run.log_file(video, "videos")
            if directory.is_dir():
                say(console, f"films: {directory}")
    except store_errors() as error:
        text = f"not all artifacts could be written: {first_line(error)}; checkpoints are in {run.directory}"
        say(console, text, "red")


def _say_how_it_ended(run: Run, status: Status, console: Console) -> None:
    text = f"run {run.name} is {status} in MLflow"
    if (run.directory / LAST).is_file():
        text += "; --resume last goes on from its checkpoint"
    say(console, text, "yellow" if status == "KILLED" else "red")


def _say_result(result: FitResult, console: Console) -> None:
    if result.evaluations:
        for line in terminal_curves(result.evaluations):
            say(console, line)
        console.print(returns_table(result.evaluations[-1]))
    else:
        console.print("no evaluation in this session")
    steps = result.env_steps
    say(
        console,
        f"{result.updates:,} updates, {steps.mean():,.0f} env steps per task ({steps.sum():,.0f} in all), "
        f"{result.seconds / 60:.1f} minutes",
    )
    say(console, "curves, videos and artifacts: make ui (http://127.0.0.1:5000)")
