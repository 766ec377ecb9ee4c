"""The tables of a sweep's report, as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ezm_pl.tracking.console import cell, count
from ezm_pl.tracking.results import html
from ezm_pl.tracking.results.tables import bounds_of, published_return
from ezm_pl.tracking.sweep import tags
from ezm_pl.tracking.sweep.runs import SeedRun, Sweep, Trial
from ezm_pl.tracking.sweep.scores import PointScore, Score, pruning

NONE = "–"


def scores_table(sweep: Sweep, scored: Sequence[PointScore]) -> str:
    """One row per grid point: IQM and interval on the shared tasks and on its own."""
    rows = [
        (
            point.point.label,
            str(len(point.point.tasks)),
            str(len(point.runs)),
            str(point.trial.number) if sweep.searched else "all",
            _score(point.shared),
            _by_seed(point.shared),
            _score(point.own),
        )
        for point in scored
    ]
    scores = ("shared tasks:\nIQM [95%]", "each seed", "own tasks:\nIQM [95%]")
    head = ("grid point", "tasks", "seeds", "trial", *scores)
    return html.table(head, rows, "Normalised scores: 0 is a random policy, 1 the success bar.")


def returns_table(sweep: Sweep, scored: Sequence[PointScore], protocol: str) -> str:
    """One row per task: final returns of every grid point under `protocol`, beside the published ones."""
    paper = "EZ-M" if protocol == "ezm" else "BRC"
    rows = []
    for task in sweep.tasks:
        cells = [
            spread([run.final_return(task, protocol) for run in point.runs])
            if task in point.point.tasks
            else ""
            for point in scored
        ]
        rows.append((task, *bounds_of(task, absent=NONE), *cells, published_return(task, protocol) or NONE))
    head = ("task", "random", "success", *(point.point.label for point in scored), f"{paper},\npublished")
    note = {
        "ezm": "Falls do not end the episode. Published: mean ± std of 3 seeds, at that many steps per task.",
        "humanoidbench": "Up to the first fall. Published: mean ± std of 5 seeds, at 1M steps per task.",
    }[protocol]
    return html.table(head, rows, f"Mean ± std over seeds of the last evaluation. {note}")


def best_table(sweep: Sweep, scored: Sequence[PointScore]) -> str:
    """One column per grid point: the searched fields' values in its best trial, and its objective."""
    rows = [(field, *(_value(point.trial.values.get(field)) for point in scored)) for field in sweep.searched]
    objective = sweep.params.get("objective", tags.OBJECTIVE)
    rows.append((f"{objective}, mean over seeds", *(f"{point.trial.objective:.4g}" for point in scored)))
    return html.table(
        ("field", *(point.point.label for point in scored)), rows, "Each grid point's best trial."
    )


def trials_table(sweep: Sweep) -> str:
    """One row per grid point: trials by state; below it what pruning saved."""
    states = (tags.COMPLETE, tags.PRUNED, tags.FAILED, tags.RUNNING)
    rows = [
        (
            point.label,
            *(str(len(point.of_state(state))) for state in states),
            str(len(point.attempts) - sum(len(trial.runs) for trial in point.trials)),
        )
        for point in sweep.points
    ]
    return html.table(("grid point", *states, "runs replaced\nby a retry"), rows, _pruning_text(sweep))


def cost_table(sweep: Sweep, rates: Mapping[str, float]) -> str:
    """One row per grid point: wall-clock, updates per second, environment steps.

    Args:
        sweep: the sweep.
        rates: run id to its mean updates per second.
    """
    rows: list[tuple[str, ...]] = []
    taken: list[float] = []
    for point in sweep.points:
        complete = [run for trial in point.of_state(tags.COMPLETE) for run in trial.runs]
        taken.append(float(np.nansum([run.env_steps * len(point.tasks) for run in point.attempts])))
        rows.append(
            (
                point.label,
                str(len(point.attempts)),
                _duration(_mean([run.seconds for run in complete if run.uninterrupted])),
                _duration(float(np.nansum([run.seconds for run in point.attempts]))),
                cell(_mean([rates.get(run.run_id, np.nan) for run in complete]), ".1f", NONE),
                cell(_mean([run.env_steps for run in complete]), ",.0f", NONE),
                cell(taken[-1], ",.0f", NONE),
            )
        )
    steps = ("env steps per task,\ncomplete runs", "env steps,\nall runs and tasks")
    head = ("grid point", "runs", "per complete\nrun", "all runs", "updates/s", *steps)
    total = _duration(float(np.nansum([run.seconds for run in sweep.runs])))
    rows.append(("all", str(len(sweep.runs)), "", total, "", "", cell(sum(taken), ",.0f", NONE)))
    note = (
        "Wall-clock sums over runs, evaluations included, whether they ran one after another or side by side."
    )
    resumed = sum(not run.uninterrupted for run in sweep.runs)
    if resumed:
        note += f" {count(resumed, 'run')} resumed: the pause counts in the sum, not in the mean."
    return html.table(head, rows, note)


def trial_rows(trials: Sequence[Trial]) -> list[tuple[Mapping[str, object], float]]:
    """(values, objective) of complete trials whose objective was logged for every seed."""
    return [
        (trial.values, trial.objective)
        for trial in trials
        if trial.state == tags.COMPLETE and trial.values and np.isfinite(trial.objective)
    ]


def host_lines(runs: Sequence[SeedRun]) -> list[str]:
    """What the runs ran on, one line per tag; several values where they differ."""
    kinds = ("host.", "version.", "git.")
    names = sorted({name for run in runs for name in run.tags if name.startswith(kinds)})
    return [f"{name}: {' | '.join(sorted({r.tags[name] for r in runs if name in r.tags}))}" for name in names]


def _pruning_text(sweep: Sweep) -> str:
    saving = pruning(sweep)
    if saving.trials == 0:
        return "No trial was pruned."
    pruned = f"{count(saving.trials, 'trial')} pruned"
    if not np.isfinite(saving.seconds):
        return f"{pruned}; what that saved is not known: a grid point has no complete run to measure by."
    return (
        f"{pruned}, saving about {saving.seconds / 60:,.1f} minutes (estimate: the mean duration of the grid "
        "point's complete runs, for every seed, less what the pruned trials took)."
    )


def _score(score: Score | None) -> str:
    return NONE if score is None else score.interval.text(3)


def _by_seed(score: Score | None) -> str:
    return NONE if score is None else ", ".join(f"{value:.3f}" for value in score.by_seed)


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation of the values that are there: `12.3 ± 4.5`."""
    known = [value for value in values if np.isfinite(value)]
    if not known:
        return NONE
    deviation = f" ± {np.std(known, ddof=1):,.1f}" if len(known) > 1 else ""
    return f"{np.mean(known):,.1f}{deviation}"


def _value(value: object) -> str:
    if value is None:
        return NONE
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def _duration(seconds: float) -> str:
    if not np.isfinite(seconds):
        return NONE
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
