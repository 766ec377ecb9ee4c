"""The returns figure: one panel per task, a run's curves against environment steps, beside published ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from ezm_pl.spec import HUMANOID_BENCH
from ezm_pl.tracking.results.curves import Curve
from ezm_pl.tracking.results.panels import add_legend, new_panels, save

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
        curves: task to the run's curves (see `run_curves`), at least one.
        path: a PNG or any format Matplotlib writes; its folder is made.
        title: above all panels.
        published: task to published curves, drawn thin and cut where the run ends.
    """
    figure, axes = new_panels(len(curves), _PANEL, legend=0.7)
    for axis, (task, own) in zip(axes, curves.items(), strict=True):
        _panel(axis, task, own, (published or {}).get(task, ()))
    figure.suptitle(title)
    add_legend(figure, axes, columns=4)
    save(figure, path)


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
    axis.set_xlabel("environment steps per task (control steps)", fontsize="small")
    axis.set_ylabel("episode return", fontsize="small")
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.grid(alpha=0.25)
    if all(np.allclose(curve.env_steps, curve.env_steps[:1]) for curve in own):
        axis.set_xlim(0, 1.15 * end)
