"""What a sweep says and what it cannot say, in sentences computed from its runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ezm_pl.spec import HUMANOID_BENCH
from ezm_pl.tracking.console import count
from ezm_pl.tracking.sweep import tags
from ezm_pl.tracking.sweep.runs import Sweep
from ezm_pl.tracking.sweep.scores import PointScore, Score
from ezm_pl.tracking.sweep.statistics import CHANCE, chance_of_separation

FEW_SEEDS = 5
"""Below this many seeds a bootstrap of seeds is too narrow on average."""

_ABOVE_RANDOM = 0.05
"""Normalised score that an untrained network does not reach: standing still scores a few hundredths."""

_UNEVEN_STEPS = 0.02
"""Grid points whose env steps per task differ by more than this share are not at equal experience."""


def summary(sweep: Sweep, scored: Sequence[PointScore]) -> str:
    """One paragraph: what was trained, and the scores on the shared tasks."""
    if not scored:
        return (
            f"No grid point of sweep {sweep.name} has a complete trial yet, so there is nothing to compare."
        )
    labels = listed([point.point.label for point in scored])
    trained = [f"{len(point.runs)}" for point in scored]
    seeds = trained[0] if len(set(trained)) == 1 else "/".join(trained)
    text = [
        f"Sweep {sweep.name} compares {count(len(scored), 'grid point')} ({labels}), "
        f"{seeds} {'seed' if seeds == '1' else 'seeds'} each, after {_steps(scored)} environment steps per "
        f"task, evaluated with {_episodes(scored)} per task and seed ({sweep.protocol} protocol)."
    ]
    shared = [(point, point.shared) for point in scored if point.shared is not None]
    if shared:
        values = listed([f"{score.interval.text(3)} for {point.point.label}" for point, score in shared])
        text.append(
            f"On the {count(len(sweep.shared_tasks), 'task')} that all grid points share, the interquartile "
            f"mean of normalised scores (0: random policy, 1: success bar) is {values}."
        )
        text.append(" ".join(verdicts(shared)))
    elif not sweep.shared_tasks:
        text.append("The grid points share no task, so their scores cannot be compared.")
    else:
        text.append("The shared tasks were not evaluated, so the grid points cannot be compared.")
    return " ".join(text)


def verdicts(shared: Sequence[tuple[PointScore, Score]]) -> list[str]:
    """What may be claimed of each grid point against the one with the fewest tasks, in sentences."""
    if len(shared) == 1:
        return ["There is a single grid point, so there is nothing to compare it with."]
    (first, base), others = shared[0], shared[1:]
    if not all(score.interval.known for _, score in shared):
        return ["With one seed there is no interval over seeds: no difference can be claimed."]
    if all(score.interval.overlaps(base.interval) for _, score in others):
        return [f"All intervals overlap that of {first.point.label}: no difference can be claimed."]
    said = []
    for point, score in others:
        pair = f"{point.point.label} against {first.point.label}"
        difference = score.interval.value - base.interval.value
        if score.interval.overlaps(base.interval):
            said.append(f"{pair}: intervals overlap, no difference can be claimed.")
        elif _ranges_meet(score, base):
            said.append(
                f"{pair}: the intervals do not overlap, but whole seeds of one lie among those of the "
                f"other ({difference:+.3f}): suggestive at most."
            )
        elif (chance := chance_of_separation(len(score.by_seed), len(base.by_seed))) > CHANCE:
            said.append(
                f"{pair}: {difference:+.3f}, and every seed agrees, but with so few seeds that happens by "
                f"chance in 1 of {1 / chance:.0f} comparisons: suggestive at most."
            )
        else:
            direction = "higher" if difference > 0 else "lower"
            said.append(f"{pair}: {direction} by {abs(difference):.3f}, and the intervals do not overlap.")
    return said


def limits(sweep: Sweep, scored: Sequence[PointScore]) -> list[str]:
    """Reasons to distrust the figures that apply to this sweep, one line each."""
    found = [_unfinished(sweep)] if sweep.partial else []
    for point in sweep.points:
        if not point.of_state(tags.COMPLETE):
            found.append(f"{point.label} has no complete trial and is left out of the comparison.")
    if not scored:
        return found
    seeds = min(len(point.runs) for point in scored)
    if seeds == 1:
        found.append(
            "One seed: nothing is known of the spread between seeds, which in reinforcement learning is "
            "often as large as the effects looked for."
        )
    elif seeds < FEW_SEEDS:
        found.append(
            f"{seeds} seeds: intervals from so few are too narrow on average; "
            f"{FEW_SEEDS} or more are advised."
        )
    if seeds > 1:
        found.append(
            "Intervals resample seeds within each task, as is usual. One network learns all tasks of a run, "
            "so a good or bad seed moves many tasks at once, which these intervals do not see: the open "
            "circles, one per seed, do."
        )
    trials = [len(point.point.of_state(tags.COMPLETE)) for point in scored]
    if sweep.searched and max(trials) > 1:
        out_of = listed([f"{n} ({p.point.label})" for n, p in zip(trials, scored, strict=True)])
        uneven = "; a point with more trials has the best of more draws" if len(set(trials)) > 1 else ""
        found.append(
            f"Each grid point is shown by its best trial by mean objective, out of {out_of}{uneven}. The "
            "seeds that chose it are the seeds shown, which flatters it."
        )
    found += _experience(sweep, scored)
    missing = [
        f"{point.point.label}: {name}"
        for point in scored
        for name in (point.own.missing if point.own else point.point.tasks)
    ]
    if missing:
        found.append(f"Not evaluated, and left out of the scores: {'; '.join(missing)}.")
    others = [task for task in sweep.tasks if task not in HUMANOID_BENCH]
    if others:
        found.append(f"No published scores exist for {listed(others)}.")
    return found


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def _ranges_meet(one: Score, other: Score) -> bool:
    return bool(one.by_seed.min() <= other.by_seed.max() and other.by_seed.min() <= one.by_seed.max())


def _unfinished(sweep: Sweep) -> str:
    running = sum(len(point.of_state(tags.RUNNING)) for point in sweep.points)
    going = f", {count(running, 'trial')} not ended" if running else ""
    return f"Partial: the sweep is {sweep.status} in MLflow{going}; figures will change."


def _reached(scored: Sequence[PointScore]) -> list[float]:
    """Control steps per task of each point: mean over its seeds, NaN where none were logged."""
    return [float(np.mean([run.env_steps for run in point.runs])) for point in scored]


def _steps(scored: Sequence[PointScore]) -> str:
    known = [steps for steps in _reached(scored) if np.isfinite(steps)]
    if not known:
        return "an unknown number of"
    low, high = f"{min(known):,.0f}", f"{max(known):,.0f}"
    return low if low == high else f"{low} to {high}"


def _episodes(scored: Sequence[PointScore]) -> str:
    asked = {run.params.get("eval.episodes", "?") for point in scored for run in point.runs}
    return f"{'/'.join(sorted(asked))} {'episode' if asked == {'1'} else 'episodes'}"


def _experience(sweep: Sweep, scored: Sequence[PointScore]) -> list[str]:
    found = []
    reached = [steps for steps in _reached(scored) if np.isfinite(steps)]
    if reached and max(reached) > (1 + _UNEVEN_STEPS) * min(reached):
        found.append(f"Grid points differ in experience: {_steps(scored)} environment steps per task.")
    published = [HUMANOID_BENCH[task].ezm_million_steps for task in sweep.tasks if task in HUMANOID_BENCH]
    millions = [steps for steps in published if steps is not None]
    if reached and millions and max(reached) < 1e6 * min(millions):
        span = " to ".join(f"{million:g}M" for million in sorted({min(millions), max(millions)}))
        found.append(
            f"Published results took {span} environment steps per task; these runs have at most "
            f"{max(reached) / (1e6 * min(millions)):.2%} of that. They neither confirm nor refute "
            "what is published."
        )
    if not any(
        score is not None and score.interval.known and score.interval.low > _ABOVE_RANDOM
        for point in scored
        for score in (point.own, point.shared)
    ):
        found.append(
            f"No grid point is clearly above a random policy (interval above {_ABOVE_RANDOM:g}): at this "
            "budget growth with tasks cannot show."
        )
    return found
