"""Variants of an experiment beside the experiment itself: scores on the tasks of both, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ezm_pl.tracking.sweep.runs import Sweep
from ezm_pl.tracking.sweep.scores import PointScore, final_scores, iqm_by_seed
from ezm_pl.tracking.sweep.statistics import (
    CHANCE,
    Interval,
    bootstrap_difference,
    bootstrap_iqm,
    chance_of_separation,
    probability_of_improvement,
)


@dataclass(frozen=True)
class Ablation:
    """A variant against the reference, on the tasks that both have and that both were evaluated on.

    Attributes:
        label: of the variant.
        tasks: that are compared.
        seeds: of the variant.
        score: IQM of the variant's normalised scores.
        by_seed: [S] IQM over tasks of each of its seeds.
        reference: IQM of the reference on the same tasks.
        reference_by_seed: [R] IQM over these tasks of each of the reference's seeds.
        difference: IQM of the variant less that of the reference.
        improvement: how probably a run of the reference scores above one of the variant.
    """

    label: str
    tasks: tuple[str, ...]
    seeds: int
    score: Interval
    by_seed: NDArray[np.float64]
    reference: Interval
    reference_by_seed: NDArray[np.float64]
    difference: Interval
    improvement: Interval

    @property
    def verdict(self) -> str:
        """`worse`, `better`, `suggestive`, `no difference shown`, or `one seed` where there is no interval.

        The bootstrap's intervals are too narrow with few seeds. So a difference is claimed only where every
        seed of the one lies beyond every seed of the other, and chance does that seldom (four seeds each).
        """
        if not self.difference.known:
            return "one seed"
        if self.difference.low <= 0 <= self.difference.high:
            return "no difference shown"
        worse = self.by_seed.max() < self.reference_by_seed.min()
        better = self.by_seed.min() > self.reference_by_seed.max()
        if (
            not (worse or better)
            or chance_of_separation(len(self.by_seed), len(self.reference_by_seed)) > CHANCE
        ):
            return "suggestive"
        return "worse" if worse else "better"


def compare_variants(sweep: Sweep, scored: Sequence[PointScore]) -> tuple[PointScore | None, list[Ablation]]:
    """The reference and its variants, in the sweep's order; None without scores of the reference."""
    reference = next((point for point in scored if point.point.label == sweep.reference), None)
    if reference is None:
        return None, []
    found = []
    for point in scored:
        tasks = tuple(task for task in reference.point.tasks if task in point.point.tasks)
        if point is reference or not tasks:
            continue
        mine = final_scores(point.runs, tasks, sweep.protocol)
        base = final_scores(reference.runs, tasks, sweep.protocol)
        both = np.isfinite(mine).any(1) & np.isfinite(base).any(1)
        if not both.any():
            continue
        tasks = tuple(np.array(tasks)[both].tolist())
        ours = [row[np.isfinite(row)] for row in mine[both]]
        theirs = [row[np.isfinite(row)] for row in base[both]]
        found.append(
            Ablation(
                label=point.point.label,
                tasks=tasks,
                seeds=len(point.runs),
                score=bootstrap_iqm(ours),
                by_seed=iqm_by_seed(mine[both]),
                reference=bootstrap_iqm(theirs),
                reference_by_seed=iqm_by_seed(base[both]),
                difference=bootstrap_difference(ours, theirs),
                improvement=probability_of_improvement(theirs, ours),
            )
        )
    return reference, found
