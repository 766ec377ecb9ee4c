"""Learning curves as a few lines of block characters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ezm_pl.training.evaluation import Evaluation

BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], low: float, high: float) -> str:
    """One block per value: the lowest block at `low` and below, the full one at `high` and above."""
    span = max(high - low, 1e-12)
    share = np.clip((np.asarray(values, float) - low) / span, 0, 1)
    return "".join(BLOCKS[int(x)] for x in np.rint(share * (len(BLOCKS) - 1)))


def terminal_curves(evaluations: Sequence[Evaluation]) -> list[str]:
    """A line per task and one for the mean score: a block per evaluation, between the curve's own extremes.

    Empty where there are fewer than two evaluations.
    """
    if len(evaluations) < 2:
        return []
    first, last = evaluations[0], evaluations[-1]
    width = max(len(task) for task in (*last.tasks, "mean score"))
    lines = []
    for task in last.tasks:
        values = [evaluation.return_of(task) for evaluation in evaluations]
        blocks = sparkline(values, min(values), max(values))
        lines.append(f"{task:<{width}}  {blocks}  {values[0]:.0f} -> {values[-1]:.0f}")
    scores = [evaluation.score for evaluation in evaluations]
    if not any(map(math.isnan, scores)):  # of tasks without bounds
        blocks = sparkline(scores, min(scores), max(scores))
        lines.append(f"{'mean score':<{width}}  {blocks}  {scores[0]:.3f} -> {scores[-1]:.3f}")
    steps = f"{first.env_steps:,} to {last.env_steps:,} env steps per task"
    return [f"Returns over {len(evaluations)} evaluations, {steps}", *lines]
