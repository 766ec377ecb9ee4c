"""`ezm compare`: returns of runs beside published ones at equal environment steps, a table and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ezm_pl.spec import SpecError
from ezm_pl.tracking.console import count, say
from ezm_pl.tracking.results.comparison import (
    END_TOLERANCE,
    INTERPOLATED,
    NEAR,
    PROTOCOLS,
    Agent,
    Contest,
    contests,
    overall,
    scored_contests,
    success_bar,
    thousands,
)
from ezm_pl.tracking.results.curves import Curve, read_published
from ezm_pl.tracking.results.record import curves_of, read_runs, shortest_end

Record = Mapping[str, Any]
"""Of one run, as `record.py` makes it."""


def compare_runs(
    references: Sequence[str], *, published: Sequence[Path], at: Sequence[int], out: Path, console: Console
) -> None:
    """Prints returns beside published ones at equal environment steps, and draws the curves.

    Runs of equal settings are one agent's seeds. Returns under different protocols are never set
    side by side: each protocol has rows and a panel of its own.

    Args:
        references: runs and records, as for `read_runs`.
        published: files of published curves.
        at: control steps per task to compare at; none: where the shortest run ends.
        out: the figure's file.
        console: where to print.

    Raises:
        SpecError: no such run, one without evaluations or named twice, a file that is not published
            results, has none of the runs' tasks or the name of another, a figure that cannot be written.
    """
    others = read_published(published)
    runs = read_runs(references, finished=False)
    agents = _agents(runs)
    tasks = {task for seeds in agents.values() for seed in seeds for task in seed["returns"]}
    for path in published:
        if not tasks & others[path.stem].keys():
            raise SpecError(f"--published {path}: has none of the runs' tasks ({', '.join(sorted(tasks))})")
    own = {name: _by_task(seeds) for name, seeds in agents.items()}
    found = contests(own, others)
    steps = sorted(set(at)) or [shortest_end(runs)]
    console.print(comparison_table(found, steps))
    for line in _notes(agents, found):
        say(console, line)
    from ezm_pl.tracking.results.comparison_figure import comparison_figure

    comparison_figure(found, out, at=steps)
    say(console, f"wrote {out}")


def comparison_table(found: Sequence[Contest], steps: Sequence[int]) -> Table:
    """Per task and protocol: every agent's return at each of `steps`, ours first, then the best first."""
    table = Table(
        title="Returns at equal environment steps (control steps per task)",
        caption="IQM over n seeds (the mean below four) with its 95% bootstrap interval; a mean as published "
        f"where n is 'mean'. A curve that ends up to {END_TOLERANCE:.0%} early counts with its last point. "
        f"{INTERPOLATED}: interpolated, with no evaluation within {NEAR:.0%} of the steps.",
    )
    for name in ("task", "protocol", "agent", "n"):
        table.add_column(name, no_wrap=name == "task", overflow="fold")
    for number in steps:
        table.add_column(f"at {thousands(number)}", justify="right")
    for contest in found:
        bar = success_bar(contest)
        head = (contest.task + (f"\n(success bar {bar:g})" if bar else ""), contest.protocol)
        for agent in _ranked(contest, steps[-1]):
            n = "mean" if agent.seeds is None else str(agent.seeds)
            cells = [_reading(agent, number) for number in steps]
            table.add_row(
                *map(escape, head), escape(agent.name), n, *cells, style="bold" if agent.own else ""
            )
            head = ("", contest.protocol)
        table.add_section()
    for protocol in PROTOCOLS:
        _add_overall(table, found, protocol, steps)
    return table


def _add_overall(table: Table, found: Sequence[Contest], protocol: str, steps: Sequence[int]) -> None:
    """Rows of the normalised score over all tasks, where there are several."""
    tasks = scored_contests(found, protocol)
    if len(tasks) < 2:
        return
    scores = [overall(found, protocol, number) for number in steps]
    agents = dict.fromkeys(key for of_step in scores for key in of_step)
    head = f"{len(tasks)} tasks,\nnormalised score"
    for name, own in sorted(agents, key=lambda key: not key[1]):
        cells = [escape(of_step[name, own].text(3)) if (name, own) in of_step else "-" for of_step in scores]
        table.add_row(head, protocol, escape(name), "", *cells, style="bold" if own else "")
        head = ""
    table.add_section()


def _ranked(contest: Contest, steps: float) -> list[Agent]:
    def order(agent: Agent) -> tuple[bool, bool, float]:
        reading = agent.at(steps)
        return not agent.own, not reading.returns, -reading.interval.value if reading.returns else 0.0

    return sorted(contest.agents, key=order)


def _reading(agent: Agent, steps: float) -> str:
    reading = agent.at(steps)
    if not reading.returns:
        return reading.absent
    text = reading.mark + escape(reading.interval.text(0 if abs(reading.interval.value) >= 100 else 1))
    if len(reading.returns) > 1:
        text += f"\nmedian {np.median(reading.returns):,.0f}"
    return f"{text}\n({reading.absent})" if reading.absent else text


def _agents(runs: Sequence[Record]) -> dict[str, list[Record]]:
    """Agent to the records of its seeds, in their order."""
    agents: dict[str, list[Record]] = {}
    for run in sorted(runs, key=lambda run: run["seed"]):
        agents.setdefault(run["agent"], []).append(run)
    return agents


def _by_task(seeds: Sequence[Record]) -> dict[str, list[Curve]]:
    curves: dict[str, list[Curve]] = {}
    for seed in seeds:
        for task, found in curves_of(seed).items():
            curves.setdefault(task, []).extend(found)
    return curves


def _notes(agents: Mapping[str, Sequence[Record]], found: Sequence[Contest]) -> list[str]:
    """What each of our agents is, one line each, and what the protocols mean."""
    lines = []
    for name, group in agents.items():
        first = group[0]
        runs = ", ".join(f"seed {seed['seed']} ({seed['run'][:8]})" for seed in group)
        lines.append(
            f"{name}: {runs}; {count(len(first['tasks']), 'task')} in one agent, trained under the "
            f"{first['protocol']} protocol, {count(first['episodes'], 'episode')} per evaluation"
        )
    there = {contest.protocol for contest in found}
    return [*lines, *(f"{name}: {meaning}" for name, meaning in PROTOCOLS.items() if name in there)]
