"""The figure of a diagnosis: errors along the unroll, values against returns, the task embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from ezm_pl.tracking.results.panels import add_legend, new_panels, save

if TYPE_CHECKING:
    from ezm_pl.training.diagnostics import TaskDiagnosis
    from ezm_pl.training.diagnostics.predictions import Predictions

_REWARD, _VALUE, _SEARCH = "#009E73", "#0072B2", "#D55E00"


def diagnosis_figure(
    found: Sequence[TaskDiagnosis], embeddings: tuple[NDArray[np.float64], float], path: Path, *, title: str
) -> None:
    """Draws all tasks of a diagnosis and writes the figure to `path`.

    Args:
        found: one diagnosis per task.
        embeddings: see `embedding_map`.
        path: a PNG or any format Matplotlib writes.
        title: above all panels.
    """
    judged = [each for each in found if each.predictions is not None]
    figure, axes = new_panels(2 * len(judged) + 1, (4.0, 3.2), legend=0.9)
    for number, each in enumerate(judged):
        assert each.predictions is not None
        _errors(axes[number], each.task, each.predictions)
        _values(axes[len(judged) + number], each.task, each.predictions)
    _embeddings(axes[-1], [each.task for each in found], *embeddings)
    figure.suptitle(title, fontsize="medium")
    add_legend(figure, axes, columns=3, frame=False)
    save(figure, path)


def _errors(axis: Axes, task: str, found: Predictions) -> None:
    for values, spread, first, colour, label in (
        (found.reward_error, found.reward_spread, 1, _REWARD, "reward: error over its spread"),
        (found.value_error, found.return_spread, 0, _VALUE, "value: error over the returns' spread"),
    ):
        steps = np.arange(first, first + len(values))
        axis.plot(
            steps,
            np.array(values) / np.maximum(spread, 1e-9),
            marker="o",
            markersize=4,
            color=colour,
            label=label,
        )
    axis.axhline(1, color="0.4", linestyle="--", linewidth=1, label="knows the task and the step only (1)")
    axis.set_ylim(bottom=0)
    axis.set_xticks(range(len(found.value_error)))
    axis.set_xlabel("imagined decisions")
    axis.set_ylabel("mean absolute error, relative")
    axis.set_title(f"{task}: along the unroll", fontsize="medium")
    axis.grid(alpha=0.25)


def _values(axis: Axes, task: str, found: Predictions) -> None:
    for values, colour, marker, label in (
        (found.values, _VALUE, "o", "network's value"),
        (found.search_values, _SEARCH, "x", "search's value"),
    ):
        axis.plot(
            found.returns,
            values,
            linestyle="none",
            marker=marker,
            markersize=4,
            alpha=0.5,
            color=colour,
            label=label,
        )
    ends = [min(found.returns), max(found.returns)]
    axis.plot(ends, ends, color="0.4", linestyle=":", linewidth=1, label="value = return")
    axis.set_xlabel("discounted return of the episode from there")
    axis.set_ylabel("value")
    axis.set_title(f"{task}: values and returns", fontsize="medium")
    axis.grid(alpha=0.25)


def _embeddings(axis: Axes, tasks: Sequence[str], at: NDArray[np.float64], share: float) -> None:
    axis.plot(*at.T, linestyle="none", marker="o", color="0.2")
    for task, (x, y) in zip(tasks, at, strict=True):
        axis.annotate(task, (x, y), textcoords="offset points", xytext=(5, 4), fontsize="small")
    axis.set_aspect("equal", adjustable="datalim")
    axis.margins(0.3)
    axis.set_xlabel("first principal component")
    axis.set_ylabel("second principal component")
    axis.set_title(f"task embeddings ({share:.0%} of their variance)", fontsize="medium")
    axis.grid(alpha=0.25)
