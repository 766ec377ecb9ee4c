"""The heat map of a run's gradient conflict: a panel per part, a cell per pair of tasks."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from ezm_pl.tracking.results.panels import new_panels, save
from ezm_pl.tracking.runs.metrics import part_in_words

CONFLICT = "gradient_conflict.json"
"""In a run's folder: what `ezm_pl.training.gradient_conflict` has measured."""
_CELL = 0.42
"""Size of a cell in inches."""
_MOST_NUMBERS = 14
"""Tasks up to which each cell says its number."""


def mean_cosines(file: Path) -> tuple[list[str], dict[str, NDArray[np.float64]], tuple[int, int, int]]:
    """What a run has measured (see `ezm_pl.training.gradient_conflict`).

    Returns:
        The tasks; part to the mean of its cosines `[T, T]` over all measurements, NaN where none is known;
        the number of measurements, the first update and the last.
    """
    document = json.loads(file.read_text(encoding="utf-8"))
    measured = document["measured"]
    tables = {
        part: np.array([each["cosine"][part] for each in measured], float) for part in measured[0]["cosine"]
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of cells without any number
        means = {part: np.nanmean(table, axis=0) for part, table in tables.items()}
    updates = [each["update"] for each in measured]
    return document["tasks"], means, (len(updates), updates[0], updates[-1])


def conflict_figure(file: Path, path: Path, *, title: str) -> None:
    """Draws `mean_cosines` of a run's measurements and writes the figure to `path`."""
    tasks, means, (count, first, last) = mean_cosines(file)
    side = max(3.0, 1.6 + _CELL * len(tasks))
    figure, axes = new_panels(len(means), (side + 1.2, side + 0.3), legend=0.6)
    for axis, (part, table) in zip(axes, means.items(), strict=True):
        _panel(axis, part, table, tasks)
    bar = figure.colorbar(axes[0].images[0], ax=axes, shrink=0.8)
    bar.set_label("cosine similarity of gradients")
    figure.suptitle(
        f"{title}\nmean of {count} measurements, updates {first:,} to {last:,}", fontsize="medium"
    )
    save(figure, path)


def _panel(axis: Axes, part: str, table: NDArray[np.float64], tasks: list[str]) -> None:
    size = len(tasks)
    shown = np.where(np.tri(size, dtype=bool), table, np.nan)
    axis.imshow(shown, cmap="RdBu", vmin=-1, vmax=1)
    axis.set_xticks(range(size), tasks, rotation=45, ha="right", rotation_mode="anchor", fontsize="small")
    axis.set_yticks(range(size), tasks, fontsize="small")
    axis.spines[:].set_visible(False)
    pairs = table[np.tri(size, k=-1, dtype=bool)]
    known = pairs[np.isfinite(pairs)]
    said = f"pairs: {known.mean():+.2f}" if len(known) else "no pair"
    own = np.diagonal(table)
    if np.isfinite(own).any():
        said += f", a task's own halves: {np.nanmean(own):+.2f}"
    axis.set_title(f"{part_in_words(part)}\n{said}", fontsize="medium")
    if size <= _MOST_NUMBERS:
        for row, column in zip(*np.nonzero(np.isfinite(shown)), strict=True):
            value = shown[row, column]
            axis.text(
                column,
                row,
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize="x-small",
                color="white" if abs(value) > 0.6 else "black",
                weight="bold" if row == column else "normal",
            )
