"""The returns figure: one panel a task, a run's curves against environment steps, beside published ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from ezm_pl.spec import HUMANOID_BENCH
from ezm_pl.tracking.results.curves import Curve

_STYLE = {"ezm": ("#1f5fbf", "-", "o"), "humanoidbench": ("#d1620a", "--", "s")}
_PUBLISHED = {"ezm": "#8fb2e5", "humanoidbench": "#eeb98c"}
_PANEL = (4.2, 3.0)


def returns_figure(
    curves: Mapping[str, Sequence[Curve]],
    path: Path,
    *,
    title: str,
    published: Mapping[str, Sequence[Curve]] | None = None,
) -> None:
    """Draws a run's evaluation curves and writes them to `path`.

    Each panel shows the return under both protocols, the random policy's return and the success bar,
    and EZ-M's published final return: at its own step, or on the right edge where the run is shorter.

    Args:
        curves: task to the run's curves (see `run_curves`).
        path: a PNG or any format Matplotlib writes; its folder is made.
        title: above all panels.
        published: task to published curves, drawn thin and cut where the run ends.
    """
    columns = min(3, max(1, len(curves)))
    rows = max(1, math.ceil(len(curves) / columns))
    figure = Figure(figsize=(_PANEL[0] * columns, _PANEL[1] * rows + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (task, own) in zip(axes, curves.items(), strict=False):
        _panel(axis, task, own, (published or {}).get(task, ()))
    for axis in axes[len(curves) :]:
        axis.set_axis_off()
    figure.suptitle(title)
    entries = {
        label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=4, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _panel(axis: Axes, task: str, own: Sequence[Curve], published: Sequence[Curve]) -> None:
    end = max((float(curve.env_steps.max()) for curve in own if len(curve.env_steps)), default=1.0) or 1.0
    for curve in published:
        axis.plot(
            curve.env_steps,
            curve.returns,
            color=_PUBLISHED[curve.protocol],
            linewidth=0.9,
            label=f"{curve.label} ({curve.protocol}), {'mean' if curve.averaged else 'each seed'}",
        )
    for curve in own:
        color, line, marker = _STYLE[curve.protocol]
        axis.plot(
            curve.env_steps,
            curve.returns,
            color=color,
            linestyle=line,
            marker=marker,
            markersize=3,
            label=f"return, {curve.protocol} protocol",
        )
    facts = HUMANOID_BENCH.get(task)
    if facts is not None:
        axis.axhline(facts.random_score, color="0.5", linestyle=":", linewidth=1, label="random policy")
        axis.axhline(facts.success_score, color="green", linestyle=":", linewidth=1, label="success bar")
    if facts is not None and facts.ezm_return is not None and facts.ezm_million_steps is not None:
        at = facts.ezm_million_steps * 1e6
        mean, spread = facts.ezm_return
        axis.errorbar(
            [min(at, 1.03 * end)],
            [mean],
            [spread],
            fmt="*",
            color="purple",
            markersize=9,
            clip_on=False,
            label="EZ-M, published final",
        )
        if at > end:
            axis.annotate(
                f"at {facts.ezm_million_steps:g}M",
                (1.03 * end, mean),
                textcoords="offset points",
                xytext=(-6, -12),
                ha="right",
                fontsize="x-small",
                color="purple",
            )
    axis.set_xlim(0, 1.03 * end)
    axis.set_title(task, fontsize="medium")
    axis.set_xlabel("environment steps a task (control steps)", fontsize="small")
    axis.set_ylabel("episode return", fontsize="small")
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.grid(alpha=0.25)
    if all(np.allclose(curve.env_steps, curve.env_steps[:1]) for curve in own):
        axis.set_xlim(0, 1.15 * end)
