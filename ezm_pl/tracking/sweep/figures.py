"""Figures of a sweep's report, each a PNG and an SVG of one panel, so that a page can lay them out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import ArrayLike

from ezm_pl.spec.tasks import task_facts
from ezm_pl.tracking.console import count
from ezm_pl.tracking.results.curves import Curve
from ezm_pl.tracking.results.panels import add_legend, new_panels, save_both
from ezm_pl.tracking.sweep.scores import Band, PointScore
from ezm_pl.tracking.sweep.statistics import Interval

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's palette, which colour-blind readers can tell apart; markers differ as well."""
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_PUBLISHED = {"published EZ-M": ("0.35", "-"), "published BRC": ("0.55", "--")}
_SIZE = (4.8, 3.7)
_WIDEST_OF_TWO = 30
"""Characters of a legend entry that still leave room for a second one beside it."""

_LOG_SPAN = 20.0
"""Searched values that span more than this factor are drawn on a logarithmic axis."""


def scaling_figure(points: Sequence[PointScore], stem: Path, *, shared: bool, tasks: int = 0) -> Path:
    """IQM score with its interval and each seed's own, against the number of tasks.

    The axis is by label where two grid points have equally many tasks.

    Args:
        points: at least one with a score of the kind drawn.
        stem: path without a suffix; `.png` and `.svg` are written.
        shared: on the shared tasks, or each point's own.
        tasks: how many tasks are shared, for the title.

    Returns:
        The SVG.
    """
    figure, axis = _panel()
    scored = [(p, score) for p in points if (score := p.shared if shared else p.own) is not None]
    counts = [len(point.point.tasks) for point, _ in scored]
    numeric = len(set(counts)) == len(counts)
    at = np.array(counts if numeric else range(len(scored)), float)
    values = np.array([score.interval.value for _, score in scored])
    if numeric:
        axis.plot(at, values, color=_COLOURS[0], linewidth=1, alpha=0.5)
    for x, (_, score) in zip(at, scored, strict=True):
        draw_seeds(axis, np.full(len(score.by_seed), x), score.by_seed, "IQM of one seed", size=7)
        label = "IQM, 95% interval" if score.interval.known else "IQM (one seed: no interval)"
        draw_interval(axis, x, score.interval, label, _COLOURS[0], size=6)
    axis.axhline(0, color="0.4", linestyle=":", linewidth=1, label="random policy (0)")
    bottom, top = axis.get_ylim()
    margin = max(0.05, 0.08 * (top - bottom))
    axis.set_ylim(bottom - margin, top + margin)
    if top + margin > 1:
        axis.axhline(1, color="#009E73", linestyle="--", linewidth=1, label="success bar (1)")
    axis.set_xticks(at, [f"{len(p.point.tasks)}" if numeric else p.point.label for p, _ in scored])
    space = 0.5 if len(at) < 2 or not numeric else 0.08 * (at.max() - at.min())
    axis.set_xlim(at.min() - space, at.max() + space)
    axis.set_xlabel("tasks trained together" if numeric else "grid point")
    axis.set_ylabel("normalised score")
    which = f"the {count(tasks, 'shared task')}" if shared else "each point's own tasks"
    axis.set_title(f"Score on {which}")
    return _save(figure, axis, stem)


def draw_interval(
    axis: Axes, at: float, interval: Interval, label: str, colour: str, *, size: int, across: bool = False
) -> None:
    """A value and its interval, where it has one: upright at x `at`, or `across` at y `at`."""
    value, ends = interval.value, (interval.low, interval.high)
    width = np.abs([[end - value] for end in ends]) if interval.known else None
    x, y, error = ([value], [at], "xerr") if across else ([at], [value], "yerr")
    style: dict[str, Any] = {"markersize": size, "linewidth": 2, "capsize": size - 2, error: width}
    axis.errorbar(x, y, fmt="o", color=colour, label=label, **style)


def draw_seeds(axis: Axes, x: ArrayLike, y: ArrayLike, label: str, *, size: int) -> None:
    """An open grey circle per seed."""
    style: dict[str, Any] = {"markersize": size, "markerfacecolor": "none", "markeredgecolor": "0.5"}
    axis.plot(x, y, "o", label=label, **style)


def curves_figure(
    task: str,
    bands: Mapping[str, Band],
    stem: Path,
    *,
    protocol: str,
    labels: Sequence[str],
    published: Sequence[Curve] = (),
) -> Path:
    """A task's learning curves: one line per grid point, the range over seeds shaded, published ones behind.

    Args:
        task: its name.
        bands: grid point to its curves, at least one.
        stem: path without a suffix.
        protocol: whose returns.
        labels: all grid points, in order: a point has the same colour in every figure.
        published: drawn thin, cut where the sweep's runs end.

    Returns:
        The SVG.
    """
    figure, axis = _panel()
    end = max(float(found.env_steps[-1]) for found in bands.values()) or 1.0
    for curve in published:
        colour, line = _PUBLISHED.get(curve.label, ("0.5", "-"))
        axis.plot(
            curve.env_steps,
            curve.returns,
            color=colour,
            linestyle=line,
            linewidth=0.9,
            label=f"{curve.label}, {'mean' if curve.averaged else 'each seed'}",
        )
    for number, label in enumerate(labels):
        if label not in bands:
            continue
        found = bands[label]
        colour = _COLOURS[number % len(_COLOURS)]
        if found.seeds > 1:
            axis.fill_between(found.env_steps, found.low, found.high, color=colour, alpha=0.18, linewidth=0)
        axis.plot(
            found.env_steps,
            found.mean,
            color=colour,
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=4,
            linewidth=1.6,
            label=label,
        )
    low, high = _visible(bands.values(), published, end)
    facts = task_facts(task)
    if facts is not None:
        axis.axhline(facts.random_score, color="0.4", linestyle=":", linewidth=1, label="random policy")
        low, high = min(low, facts.random_score), max(high, facts.random_score)
        if facts.success_score <= high:
            axis.axhline(
                facts.success_score, color="#009E73", linestyle="--", linewidth=1, label="success bar"
            )
    start = min(float(found.env_steps[0]) for found in bands.values())
    alone = all(len(found.env_steps) == 1 for found in bands.values())
    axis.set_xlim(0.5 * start if alone else 0, 1.5 * end if alone else 1.03 * end)
    margin = 0.06 * (high - low) or 1.0
    axis.set_ylim(low - margin, high + margin)
    axis.set_title(task)
    axis.set_xlabel("environment steps per task")
    axis.set_ylabel(f"return ({protocol} protocol)")
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    return _save(figure, axis, stem)


def _visible(bands: Iterable[Band], published: Sequence[Curve], end: float) -> tuple[float, float]:
    """Lowest and highest return up to `end` steps: what lies beyond must not squeeze what is shown."""
    seen = [values for found in bands for values in (found.low, found.high)]
    seen += [curve.returns[curve.env_steps <= end] for curve in published]
    shown = np.concatenate(seen)
    return float(shown.min()), float(shown.max())


def importance_figure(importances: Mapping[str, Mapping[str, float]], stem: Path) -> Path:
    """Bars of each searched field's importance, one colour per grid point.

    Args:
        importances: grid point to field to share (of 1), at least one.
        stem: path without a suffix.

    Returns:
        The SVG.
    """
    fields = list(dict.fromkeys(field for found in importances.values() for field in found))
    fields.sort(key=lambda field: sum(found.get(field, 0.0) for found in importances.values()))
    figure, axis = _panel(height=1.6 + 0.25 * len(fields) * max(1, len(importances)) ** 0.7)
    width = 0.8 / len(importances)
    for number, (label, found) in enumerate(importances.items()):
        axis.barh(
            np.arange(len(fields)) + width * ((len(importances) - 1) / 2 - number),
            [found.get(field, 0.0) for field in fields],
            height=width,
            color=_COLOURS[number % len(_COLOURS)],
            label=label,
        )
    axis.set_yticks(range(len(fields)), fields)
    axis.set_xlim(0, 1)
    axis.set_xlabel("share of importance (sums to 1)")
    axis.set_title("Parameter importance")
    return _save(figure, axis, stem)


def slice_figure(
    field: str, trials: Mapping[str, Sequence[tuple[Any, float]]], stem: Path, *, objective: str
) -> Path:
    """The objective of each complete trial against one searched field, one colour per grid point.

    Args:
        field: dotted.
        trials: grid point to (value, objective) of its complete trials; at least one.
        stem: path without a suffix.
        objective: its name.

    Returns:
        The SVG.
    """
    figure, axis = _panel()
    values = [value for found in trials.values() for value, _ in found]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    names = list(dict.fromkeys(sorted(str(value) for value in values)))
    for number, (label, found) in enumerate(trials.items()):
        if not found:
            continue  # it keeps its colour
        axis.plot(
            [value if numbers else names.index(str(value)) for value, _ in found],
            [objective for _, objective in found],
            linestyle="none",
            marker=_MARKERS[number % len(_MARKERS)],
            color=_COLOURS[number % len(_COLOURS)],
            markersize=6,
            alpha=0.8,
            label=label,
        )
    if not numbers:
        axis.set_xticks(range(len(names)), names)
        axis.set_xlim(-0.5, len(names) - 0.5)
    elif min(values) > 0 and max(values) > _LOG_SPAN * min(values):
        axis.set_xscale("log")
    axis.set_xlabel(field)
    axis.set_ylabel(objective)
    axis.set_title(f"{objective} against {field}", fontsize="medium")
    return _save(figure, axis, stem)


def _panel(*, height: float = _SIZE[1]) -> tuple[Figure, Axes]:
    figure, (axis,) = new_panels(1, (_SIZE[0], height), legend=0.0)
    axis.grid(alpha=0.25)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def _save(figure: Figure, axis: Axes, stem: Path) -> Path:
    """Adds the legend and writes both files."""
    _, labels = axis.get_legend_handles_labels()
    columns = 2 if max(map(len, labels), default=0) <= _WIDEST_OF_TWO else 1
    add_legend(figure, [axis], columns=columns, frame=False)
    return save_both(figure, stem)
