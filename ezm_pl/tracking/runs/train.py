"""`ezm train`: a tracked run from its first line to its last, however it ends."""

from __future__ import annotations

import filecmp
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ezm_pl.spec import Experiment, RunFailed, SpecError, differences, load_experiment
from ezm_pl.tracking.console import say
from ezm_pl.tracking.fault_tolerance.signals import signals_as_sigint
from ezm_pl.tracking.results.curves import run_curves
from ezm_pl.tracking.results.gradient_conflict import CONFLICT, conflict_figure
from ezm_pl.tracking.results.returns_figure import returns_figure
from ezm_pl.tracking.results.tables import returns_table
from ezm_pl.tracking.results.terminal_curve import terminal_curves
from ezm_pl.tracking.results.videos import film_tasks
from ezm_pl.tracking.runs.mlflow_run import Run, new_run, reopened_run, stored_run
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
from ezm_pl.tracking.runs.tracked import Work, track
from ezm_pl.tracking.store import first_line, shown
from ezm_pl.tracking.tasks import check_tasks

# What the end of a run needs is imported at its beginning: hours later the sources may have been edited.

if TYPE_CHECKING:
    from lightning import Callback

    from ezm_pl.tracking.runs.logger import RunLogger
    from ezm_pl.training import FitResult
    from ezm_pl.training.transfer import InitialWeights


_TAKES_LESS = "lower optim.batch_size, the model's sizes, replay.capacity or env.num_envs"


@dataclass(frozen=True)
class Part:
    """What a run is given by a larger whole, such as a sweep, which shows the progress itself.

    Attributes:
        name: of the run; None: one that says what is trained.
        tags: beside those of every run; on a resumed run, too.
        callbacks: of Lightning, beside those of every run.
    """

    name: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    callbacks: Sequence[Callback] = ()


ALONE = Part()


def train(
    experiment: Experiment,
    *,
    resume: str | None,
    console: Console,
    part: Part = ALONE,
    init: str | None = None,
) -> int:
    """Trains `experiment` as an MLflow run, or resumes one.

    The run ends FINISHED, KILLED (Ctrl-C, SIGTERM, SIGHUP: the last checkpoint is written) or FAILED
    (the exception goes on to the caller).

    Args:
        experiment: the resolved spec.
        resume: `last`, a run id, a run folder or a checkpoint; None: a new run.
        console: where to print.
        part: of something bigger, such as a sweep.
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
    first, fallback = _first_weights(init, experiment) if init else (None, None)
    from ezm_pl.training import check_settings

    memory = check_settings(experiment)
    checkpoint, damage = _checkpoint(saved, experiment) if saved else (None, None)
    if saved and checkpoint is None:
        _check_random_start(saved, experiment)
    said = [(memory, ""), (fallback, "yellow"), (first and str(first.plan), ""), (damage, "yellow")]
    notes = [(text, style) for text, style in said if text]
    return track(_Training(experiment, saved, console, notes, part, first, checkpoint))


def _first_weights(init: str, experiment: Experiment) -> tuple[InitialWeights, str | None]:
    """What carries a trained run's weights over, and a note; `SpecError` where they do not fit."""
    from ezm_pl.training import newest_valid
    from ezm_pl.training.transfer import InitialWeights, plan_transfer

    checkpoint, note = newest_valid(find_checkpoint(init, option="--init").checkpoint, replay=False)
    return InitialWeights(plan_transfer(checkpoint, experiment)), note


@dataclass(frozen=True)
class _Training(Work["FitResult"]):
    """An experiment's training.

    Attributes:
        part: see `train`.
        first: the weights that it begins with; None: random ones.
        checkpoint: to go on from; None: from the beginning.
    """

    part: Part
    first: InitialWeights | None
    checkpoint: Path | None

    CHECKPOINT = LAST
    AGAIN = "--resume last"

    def open(self) -> Run:
        if self.saved:
            return reopened_run(self.saved, self.experiment, tags=self.part.tags)
        begun = {"init": str(self.first.plan.source)} if self.first else {}
        return new_run(self.experiment, name=self.part.name, tags={**self.part.tags, **begun})

    def fit(self, run: Run, logger: RunLogger) -> FitResult:
        from ezm_pl.tracking.runs.logger import RunId
        from ezm_pl.training import fit

        more = [*self.part.callbacks, *([self.first] if self.first else [])]
        with _one_line_memory_errors():
            return fit(
                self.experiment,
                run.directory,
                logger=logger,
                callbacks=[RunId(run.run_id), *more],
                checkpoint=self.checkpoint,
                progress=self.part is ALONE,
            )

    def log_files(self, run: Run, *, finished: bool) -> None:
        """Checkpoints, the returns figure and, of a run that has finished, videos."""
        experiment, last = self.experiment, run.directory / LAST
        run.log_file(last, "checkpoints")
        run.log_file(run.directory / BEST, "checkpoints")
        for report in run.directory.glob("*-profile*.txt"):
            run.log_file(report, "profile")
        curves = run_curves(run.client, run.run_id)
        if curves:
            figure = run.directory / "returns.png"
            own = {task: curves[task] for task in experiment.tasks if task in curves}
            returns_figure(own, figure, title=run.name)
            run.log_file(figure, "figures")
        measured = run.directory / CONFLICT
        if measured.is_file():
            run.log_file(measured, "diagnostics")
            figure = run.directory / "gradient_conflict.png"
            conflict_figure(measured, figure, title=run.name)
            run.log_file(figure, "figures")
        if finished and experiment.eval.video:
            folder = run.directory / "videos"
            films = film_tasks(last, experiment.tasks, folder, seed=experiment.seed, console=self.console)
            for video in films:
                run.log_file(video, "videos")
            if folder.is_dir():
                say(self.console, f"films: {folder}")

    def report(self, run: Run, result: FitResult) -> None:
        console, steps = self.console, result.env_steps
        if result.evaluations:
            for line in terminal_curves(result.evaluations):
                say(console, line)
            console.print(returns_table(result.evaluations[-1]))
        else:
            console.print("no evaluation in this session")
        played = f"{steps.mean():,.0f} env steps per task ({steps.sum():,.0f} in all)"
        say(console, f"{result.updates:,} updates, {played}, {result.seconds / 60:.1f} minutes")
        own = run.store.startswith(("http://", "https://"))
        page = shown(run.store) if own else "ezm ui (http://127.0.0.1:5000)"
        say(console, f"curves, videos and artifacts: {page}")


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
        fit(experiment, RUNS, callbacks=[_first_weights(init, experiment)[0]] if init else ())
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
        checkpoint, note = newest_valid(saved.checkpoint, replay=experiment.replay.save and not is_copy)
        check_same_experiment(checkpoint, experiment)
        return checkpoint, note
    changed = differences(load_experiment(saved.directory / SPEC), experiment)
    if changed:
        raise SpecError(
            f"--resume: {saved.directory} has no checkpoint and another spec: {'; '.join(changed)}"
        )
    return None, None


def _check_random_start(saved: SavedRun, experiment: Experiment) -> None:
    """Raises `SpecError` where a run that has no checkpoint yet began with another run's weights."""
    _, _, run = stored_run(saved, option="--resume", configured=experiment.tracking.uri)
    if source := run.data.tags.get("init"):
        raise SpecError(
            f"--resume: {saved.directory} has no checkpoint yet, and began with the weights of another run; "
            f"begin anew with --init {source}"
        )


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
