"""What a sweep's runs come to: scores with intervals, learning curves over seeds, costs. Pure numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ezm_pl.spec.tasks import normalized_score, score_bounds
from ezm_pl.tracking.results.curves import Curve
from ezm_pl.tracking.sweep import tags
from ezm_pl.tracking.sweep.runs import Point, SeedRun, Sweep, Trial
from ezm_pl.tracking.sweep.statistics import Interval, bootstrap_iqm, iqm


@dataclass(frozen=True)
class Score:
    """IQM of normalised scores over tasks and seeds.

    Attributes:
        interval: over all, with its 95% stratified bootstrap interval.
        by_seed: [S] IQM over tasks of each seed.
        missing: `<task>, seed <seed>` of scores that were not logged.
    """

    interval: Interval
    by_seed: NDArray[np.float64]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class PointScore:
    """What stands for a grid point, and its scores.

    Attributes:
        point: the grid point.
        trial: its complete trial with the best mean objective.
        runs: the seeds that are scored: the best trial's, or where nothing was searched every complete
            trial's, since those repeat one experiment with other seeds.
        shared: on the tasks that all grid points share; None where they share none, or none was scored.
        own: on all of its own tasks; None where none was scored.
    """

    point: Point
    trial: Trial
    runs: tuple[SeedRun, ...]
    shared: Score | None
    own: Score | None


def score_points(sweep: Sweep) -> list[PointScore]:
    """Scores of every grid point that has a complete trial."""
    scored = []
    for point in sweep.points:
        trial = point.best(sweep.direction)
        if trial is not None:
            pooled = [trial] if sweep.searched else point.of_state(tags.COMPLETE)
            runs = tuple(run for repetition in pooled for run in repetition.runs)
            shared = _score(runs, sweep.shared_tasks, sweep.protocol)
            own = _score(runs, point.tasks, sweep.protocol)
            scored.append(PointScore(point, trial, runs, shared, own))
    return scored


def final_scores(runs: Sequence[SeedRun], tasks: Sequence[str], protocol: str) -> NDArray[np.float64]:
    """Normalised scores of the last evaluation, `[tasks, runs]`; NaN where none was logged."""
    return np.array([[_final_score(run, task, protocol) for run in runs] for task in tasks])


def _score(runs: Sequence[SeedRun], tasks: Sequence[str], protocol: str) -> Score | None:
    table = final_scores(runs, tasks, protocol)
    there = np.isfinite(table)
    if not there.any():
        return None
    missing = tuple(
        f"{task}, seed {run.seed}"
        for row, task in enumerate(tasks)
        for column, run in enumerate(runs)
        if not there[row, column]
    )
    strata = [scores[known] for scores, known in zip(table, there, strict=True) if known.any()]
    return Score(bootstrap_iqm(strata), iqm_by_seed(table), missing)


def iqm_by_seed(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """IQM over tasks of each seed that has a score in `table` `[tasks, seeds]`, `[at most seeds]`."""
    known = [column[np.isfinite(column)] for column in table.T]
    return np.array([iqm(column) for column in known if len(column)])


def _final_score(run: SeedRun, task: str, protocol: str) -> float:
    """The published bounds' score; for a task that has none, what the run has logged by its spec's."""
    if score_bounds(task) is None:
        return run.metrics.get(f"eval/{task}/score", np.nan)
    return normalized_score(task, run.final_return(task, protocol))


@dataclass(frozen=True)
class Band:
    """Curves of several seeds, as one.

    Attributes:
        env_steps: [N] control steps per task.
        mean: [N] over seeds.
        low: [N] the lowest seed.
        high: [N] the highest seed.
        seeds: how many.
    """

    env_steps: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    seeds: int


def band(curves: Sequence[Curve]) -> Band:
    """Mean and range over seeds, by evaluation where all have as many, else interpolated where all have been.

    Args:
        curves: one per seed, at least one, none empty.
    """
    if len({len(curve.env_steps) for curve in curves}) == 1:
        steps = np.mean([curve.env_steps for curve in curves], axis=0)
        values = np.array([curve.returns for curve in curves])
    else:
        first = max(curve.env_steps[0] for curve in curves)
        last = min(curve.env_steps[-1] for curve in curves)
        every = np.unique(np.concatenate([curve.env_steps for curve in curves]))
        steps = every[(first <= every) & (every <= last)]
        values = np.array([np.interp(steps, curve.env_steps, curve.returns) for curve in curves])
    return Band(steps, values.mean(axis=0), values.min(axis=0), values.max(axis=0), len(curves))


@dataclass(frozen=True)
class Saving:
    """What pruning saved.

    Attributes:
        trials: pruned.
        seconds: estimated: what the seeds of pruned trials would have taken at the mean duration of the
            grid point's complete runs, less what they did take; NaN where a point with pruned trials has
            no complete run.
    """

    trials: int
    seconds: float


def pruning(sweep: Sweep) -> Saving:
    """Trials pruned, and the wall-clock saved by it (summed over workers)."""
    trials, saved = 0, 0.0
    for point in sweep.points:
        runs = [run for trial in point.of_state(tags.COMPLETE) for run in trial.runs]
        complete = [run.seconds for run in runs if run.uninterrupted]
        seeds = max((len(trial.runs) for trial in point.trials), default=1)
        for trial in point.of_state(tags.PRUNED):
            trials += 1
            whole = seeds * float(np.nanmean(complete)) if np.isfinite(complete).any() else np.nan
            saved += max(0.0, whole - float(np.nansum([run.seconds for run in trial.runs])))
    return Saving(trials, saved if trials else 0.0)
