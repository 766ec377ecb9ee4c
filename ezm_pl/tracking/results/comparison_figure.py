"""The comparison's figure: one panel per task and protocol, our curves before the published ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from ezm_pl.spec import writing
from ezm_pl.tracking.console import count
from ezm_pl.tracking.results.comparison import PROTOCOLS, Contest, success_bar
from ezm_pl.tracking.results.panels import add_legend, new_panels, save
from ezm_pl.tracking.sweep.scores import band

_OWN = ("#D55E00", "#0072B2", "#009E73", "#CC79A7")
_PUBLISHED = (
    "#56B4E9", "#E69F00", "#666666", "#8c6bb1", "#41ab5d", "#a6761d", "#e7298a", "#1b9e77", "#aaaaaa",
)  # fmt: skip
_LINES = ("-", "--", "-.", ":")
_PANEL = (4.6, 3.4)
_LEAST_WIDTH = 6.5


def comparison_figure(contests: Sequence[Contest], path: Path, *, at: Sequence[float]) -> None:
    """Draws our curves (mean over seeds, their range shaded) and the published ones, cut where ours end.

    Args:
        contests: a panel each, at least one.
        path: any format that Matplotlib writes; its folder is made.
        at: control steps per task that the table compares at, drawn as vertical lines.

    Raises:
        SpecError: the file cannot be written.
    """
    figure, axes = new_panels(len(contests), _PANEL, legend=1.2)
    figure.set_figwidth(max(_LEAST_WIDTH, figure.get_figwidth()))
    names = dict.fromkeys((agent.name, agent.own) for contest in contests for agent in contest.agents)
    own = [name for name, ours in names if ours]
    others = [name for name, ours in names if not ours]
    for axis, contest in zip(axes, contests, strict=True):
        _panel(axis, contest, own, others, at)
    add_legend(figure, axes, columns=3)
    with writing(path):
        save(figure, path)


def _panel(
    axis: Axes, contest: Contest, own: Sequence[str], others: Sequence[str], at: Sequence[float]
) -> None:
    ours = [agent for agent in contest.agents if agent.own]
    end = max(*at, *(float(curve.env_steps[-1]) for agent in ours for curve in agent.curves))
    seen: list[float] = []
    for agent in sorted(contest.agents, key=lambda agent: agent.own):
        found = band(agent.curves)
        if agent.own:
            colour, line, width = _OWN[own.index(agent.name) % len(_OWN)], "-", 2.4
        else:
            number = others.index(agent.name)
            colour, line, width = _PUBLISHED[number % len(_PUBLISHED)], _LINES[number % len(_LINES)], 1.2
        if found.seeds > 1:
            axis.fill_between(found.env_steps, found.low, found.high, color=colour, alpha=0.15, linewidth=0)
        n = "published mean" if agent.seeds is None else count(agent.seeds, "seed")
        axis.plot(
            found.env_steps,
            found.mean,
            color=colour,
            linestyle=line,
            linewidth=width,
            marker="o" if agent.own else None,
            markersize=4,
            label=f"{agent.name} ({n}, {contest.protocol})",
        )
        inside = found.env_steps <= 1.03 * end
        seen += [*found.low[inside], *found.high[inside], float(np.interp(end, found.env_steps, found.mean))]
    for steps in at:
        axis.axvline(steps, color="0.6", linestyle=":", linewidth=1)
    bar = success_bar(contest)
    if bar is not None and bar <= 1.2 * max(seen):
        axis.axhline(bar, color="0.3", linestyle="--", linewidth=1, label="success bar")
    margin = 0.06 * (max(seen) - min(seen)) or 1.0
    axis.set_xlim(0, 1.03 * end)
    axis.set_ylim(min(seen) - margin, max(seen) + margin)
    axis.set_title(f"{contest.task}\n{contest.protocol}: {PROTOCOLS[contest.protocol]}", fontsize="small")
    axis.set_xlabel("control steps per task", fontsize="small")
    axis.set_ylabel(f"return ({contest.protocol})", fontsize="small")
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
