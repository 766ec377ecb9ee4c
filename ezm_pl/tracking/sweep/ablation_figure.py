"""The figure of an ablation: a row per variant, its score and how probably the reference is better."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from ezm_pl.tracking.results.panels import add_legend, new_panels, save_both
from ezm_pl.tracking.sweep.ablations import Ablation
from ezm_pl.tracking.sweep.figures import draw_interval, draw_seeds
from ezm_pl.tracking.sweep.scores import Score
from ezm_pl.tracking.sweep.statistics import Interval

_REFERENCE, _VARIANT = "#0072B2", "#D55E00"
_ROW = 0.28
"""Height of a row in inches."""


def ablation_figure(label: str, score: Score, variants: Sequence[Ablation], stem: Path) -> Path:
    """Left: IQM of normalised scores with 95% intervals. Right: the probability that the reference is better.

    Args:
        label: of the reference. score: its own.
        variants: at least one, drawn from the top in this order, below the reference.
        stem: path without a suffix; `.png` and `.svg` are written.

    Returns:
        The SVG.
    """
    count = len(variants) + 1
    figure, (left, right) = new_panels(2, (4.8, 1.1 + _ROW * count), legend=0.5)
    _scores(left, 0, score.interval, score.by_seed, f"{label}: IQM", _REFERENCE)
    if score.interval.known:
        left.axvspan(score.interval.low, score.interval.high, color=_REFERENCE, alpha=0.1, linewidth=0)
    for row, variant in enumerate(variants, start=1):
        _scores(left, row, variant.score, variant.by_seed, "variant: IQM", _VARIANT)
        if variant.reference != score.interval:
            left.plot(
                [variant.reference.value],
                [row],
                marker="|",
                markersize=11,
                markeredgewidth=2,
                linestyle="none",
                color=_REFERENCE,
                label=f"{label} on the variant's tasks",
            )
        draw_interval(right, row, variant.improvement, f"P({label} > variant)", "0.25", size=5, across=True)
    names = [label, *(_name(variant, variants) for variant in variants)]
    for axis in (left, right):
        axis.set_yticks(range(count), names if axis is left else [""] * count)
        axis.set_ylim(count - 0.5, -0.5)
        axis.grid(axis="x", alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_axisbelow(True)
    left.axvline(0, color="0.4", linestyle=":", linewidth=1, label="random policy (0)")
    left.set_xlabel("normalised score (1: success bar)")
    left.set_title("Score, 95% interval", fontsize="medium")
    right.axvline(0.5, color="0.4", linestyle="--", linewidth=1, label="no difference (0.5)")
    right.set_xlim(-0.03, 1.03)
    right.set_xlabel("probability")
    right.set_title(f"Probability that {label} scores higher", fontsize="medium")
    add_legend(figure, [left, right], columns=3, frame=False)
    return save_both(figure, stem)


def _name(variant: Ablation, variants: Sequence[Ablation]) -> str:
    most = max(len(each.tasks) for each in variants)
    few = len(variant.tasks) < most
    return f"{variant.label} ({', '.join(variant.tasks)})" if few else variant.label


def _scores(
    axis: Axes, row: int, interval: Interval, seeds: NDArray[np.float64], label: str, colour: str
) -> None:
    draw_interval(axis, row, interval, label, colour, size=5, across=True)
    draw_seeds(axis, seeds, np.full(len(seeds), row + 0.22), "IQM of one seed", size=4)
