"""`ezm compare`: returns of runs beside published ones at equal environment steps, a table and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ezm_pl.spec import Experiment, SpecError, differences, load_experiment
from ezm_pl.tracking.console import count, say
from ezm_pl.tracking.results.comparison import (
    END_TOLERANCE,
    PROTOCOLS,
    Agent,
    Contest,
    contests,
    overall,
    scored_contests,
    success_bar,
    thousands,
)
from ezm_pl.tracking.results.curves import Curve, published_curves, run_curves
from ezm_pl.tracking.runs.mlflow_run import stored_run
from ezm_pl.tracking.runs.run_lookup import SPEC, SavedRun, find_run

if TYPE_CHECKING:
    from ezm_pl.tracking.sweep.statistics import Interval

_SAME_SPEC = (
    "name", "preset", "seed", "tracking.", "trainer.", "env.worker", "env.max_worker_restarts",
    "search.compiled",
)  # fmt: skip
"""Fields under these may differ between the seeds of one experiment."""


@dataclass(frozen=True)
class _Seed:
    """A run that is compared: its folder, its spec and its curves by task."""

    saved: SavedRun
    experiment: Experiment
    curves: Mapping[str, Sequence[Curve]]


def compare_runs(
    references: Sequence[str], *, published: Sequence[Path], at: Sequence[int], out: Path, console: Console
) -> None:
    """Prints returns beside published ones at equal environment steps, and draws the curves.

    Runs whose specs differ in the seed only are one agent. Returns under different protocols are never set
    side by side: each protocol has rows and a panel of its own.

    Args:
        references: runs, each a run id, a run folder, a checkpoint or `last`.
        published: files of published curves.
        at: control steps per task to compare at; none: where the shortest run ends.
        out: the figure's file.
        console: where to print.

    Raises:
        SpecError: no such run, one without evaluations or named twice, a file that is not published
            results or has none of the runs' tasks, a figure that cannot be written.
    """
    others = {path.stem: published_curves(path) for path in published}
    runs = [find_run(reference, option="RUN") for reference in references]
    for number, run in enumerate(runs):
        if run.run_id in [earlier.run_id for earlier in runs[:number]]:
            raise SpecError(f"RUN {references[number]}: run {run.run_id} is named twice")
    agents = _agents([_read(run) for run in runs])
    tasks = {task for seeds in agents.values() for seed in seeds for task in seed.curves}
    for path in published:
        if not tasks & others[path.stem].keys():
            raise SpecError(f"--published {path}: has none of the runs' tasks ({', '.join(sorted(tasks))})")
    own = {name: _by_task(seeds) for name, seeds in agents.items()}
    found = contests(own, others)
    steps = sorted(set(at)) or [_shortest(agents)]
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
        f"where n is 'mean'. A curve that ends up to {END_TOLERANCE:.0%} early counts with its last point.",
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
        cells = [_interval(of_step[name, own], 3) if (name, own) in of_step else "-" for of_step in scores]
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
    text = _interval(reading.interval, 0 if abs(reading.interval.value) >= 100 else 1)
    if len(reading.returns) > 1:
        text += f"\nmedian {np.median(reading.returns):,.0f}"
    return f"{text}\n({reading.absent})" if reading.absent else text


def _interval(interval: Interval, digits: int) -> str:
    text = f"{interval.value:,.{digits}f}"
    low, high = (f"{end:,.{digits}f}" for end in (interval.low, interval.high))
    return rf"{text} \[{low}, {high}]" if interval.known else text


def _read(saved: SavedRun) -> _Seed:
    _, client, _ = stored_run(saved)
    curves = run_curves(client, saved.run_id)
    if not curves:
        raise SpecError(f"RUN {saved.run_id}: has no evaluations yet")
    experiment = load_experiment(saved.directory / SPEC)
    return _Seed(saved, experiment, {task: curves[task] for task in experiment.tasks if task in curves})


def _agents(seeds: Sequence[_Seed]) -> dict[str, list[_Seed]]:
    """Agent to its seeds: runs of one spec, whose seeds may differ."""
    groups: list[list[_Seed]] = []
    for seed in sorted(seeds, key=lambda seed: seed.experiment.seed):
        for group in groups:
            if not differences(group[0].experiment, seed.experiment, ignore=_SAME_SPEC):
                group.append(seed)
                break
        else:
            groups.append([seed])
    names = [group[0].experiment.name for group in groups]
    return {
        name if names.count(name) == 1 else f"{name} {group[0].saved.run_id[:8]}": group
        for name, group in zip(names, groups, strict=True)
    }


def _by_task(seeds: Sequence[_Seed]) -> dict[str, list[Curve]]:
    curves: dict[str, list[Curve]] = {}
    for seed in seeds:
        for task, found in seed.curves.items():
            curves.setdefault(task, []).extend(found)
    return curves


def _shortest(agents: Mapping[str, Sequence[_Seed]]) -> int:
    ends = [
        c.env_steps[-1] for seeds in agents.values() for s in seeds for cs in s.curves.values() for c in cs
    ]
    return int(min(ends))


def _notes(agents: Mapping[str, Sequence[_Seed]], found: Sequence[Contest]) -> list[str]:
    """What each of our agents is, one line each, and what the protocols mean."""
    lines = []
    for name, group in agents.items():
        spec = group[0].experiment
        runs = ", ".join(f"seed {seed.experiment.seed} ({seed.saved.run_id[:8]})" for seed in group)
        lines.append(
            f"{name}: {runs}; {count(len(spec.tasks), 'task')} in one agent, trained under the "
            f"{spec.env.protocol} protocol, {count(spec.eval.episodes, 'episode')} per evaluation"
        )
    there = {contest.protocol for contest in found}
    return [*lines, *(f"{name}: {meaning}" for name, meaning in PROTOCOLS.items() if name in there)]
