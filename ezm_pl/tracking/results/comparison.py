"""Returns of runs beside published ones at equal environment steps: what the table and the figure show.

Curves are compared only under one protocol: a run's evaluations give its returns under both, so a task is
compared once per protocol for which there are published curves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ezm_pl.spec import DMC, HUMANOID_BENCH, normalized_score
from ezm_pl.spec.tasks import score_bounds
from ezm_pl.tracking.results.curves import Curve
from ezm_pl.tracking.sweep.statistics import Interval, bootstrap_iqm

DM_CONTROL = "dm_control"
PROTOCOLS = {
    "humanoidbench": "the return up to the first fall",
    "ezm": "falls do not end the episode",
    DM_CONTROL: "nothing falls; 1,000 control steps",
}
"""Protocols that returns are compared under, and what they mean."""
END_TOLERANCE = 0.01
"""Share of the steps asked for by which a curve may end early and still count, with its last point."""
NEAR = 0.1
"""Share of the steps asked for: a return without an evaluation within it is marked as interpolated."""
INTERPOLATED = "~"
"""Stands before a return between evaluations that are further away than `NEAR`."""


@dataclass(frozen=True)
class Reading:
    """An agent's returns of one task at one number of environment steps.

    Attributes:
        returns: of each seed that has a value there; empty where none has.
        absent: why seeds have none, in words; empty where all have one.
        interpolated: whether a seed has no evaluation near these steps.
    """

    returns: tuple[float, ...]
    absent: str
    interpolated: bool = False

    @property
    def mark(self) -> str:
        """What stands before the returns in a table."""
        return INTERPOLATED if self.interpolated else ""

    @property
    def interval(self) -> Interval:
        """The IQM over seeds (below four the mean) with its 95% bootstrap interval."""
        return bootstrap_iqm([self.returns])


@dataclass(frozen=True)
class Agent:
    """The curves of one agent on one task under one protocol.

    Attributes:
        name: of the agent.
        curves: one per seed, or a single published mean.
        own: whether these are runs of ours.
    """

    name: str
    curves: tuple[Curve, ...]
    own: bool

    @property
    def seeds(self) -> int | None:
        """How many seeds; None for a published mean over an unstated number."""
        return None if self.curves[0].averaged else len(self.curves)

    def at(self, steps: float) -> Reading:
        """Returns at `steps`, interpolated between neighbouring evaluations and never beyond the last."""
        returns, first, last, interpolated = [], np.inf, 0.0, False
        for curve in self.curves:
            low, high = float(curve.env_steps[0]), float(curve.env_steps[-1])
            if low <= steps and steps * (1 - END_TOLERANCE) <= high:
                returns.append(float(np.interp(steps, curve.env_steps, curve.returns)))
                interpolated |= bool(np.abs(curve.env_steps - steps).min() > NEAR * steps)
            first, last = min(first, low), max(last, high)
        if len(returns) == len(self.curves):
            return Reading(tuple(returns), "", interpolated)
        if returns:
            return Reading(tuple(returns), f"{len(returns)} of {len(self.curves)} seeds", interpolated)
        return Reading((), f"ends at {thousands(last)}" if last < steps else f"begins at {thousands(first)}")


@dataclass(frozen=True)
class Contest:
    """The agents that compare on one task under one protocol, ours first."""

    task: str
    protocol: str
    agents: tuple[Agent, ...]


def contests(
    own: Mapping[str, Mapping[str, Sequence[Curve]]], published: Mapping[str, Mapping[str, Sequence[Curve]]]
) -> list[Contest]:
    """One contest per task and published protocol; where nothing is published, per protocol of our runs.

    Args:
        own: agent to task to its curves, one per seed and protocol.
        published: file to task to its curves (see `published_curves`).
    """
    tasks = list(dict.fromkeys(task for curves in own.values() for task in curves))
    found = []
    for task in tasks:
        others = _published_agents(task, published)
        ours = {name: list(curves.get(task, ())) for name, curves in own.items()}
        for protocol in _protocols(task, others, ours):
            agents = [
                Agent(name, same, True)
                for name, curves in ours.items()
                if (same := tuple(curve for curve in curves if _protocol(task, curve) == protocol))
            ]
            if task in DMC:  # both protocols give the same returns there: those of one are enough
                agents = [_of_one_protocol(agent) for agent in agents]
            agents += [agent for agent in others if _protocol(task, agent.curves[0]) == protocol]
            found.append(Contest(task, protocol, tuple(agents)))
    return found


def overall(rounds: Sequence[Contest], protocol: str, steps: float) -> dict[tuple[str, bool], Interval]:
    """(Agent, whether it is ours) to the IQM of its normalised scores over all tasks and seeds at `steps`.

    Only agents with a return of every task. The 95% interval resamples the seeds of each task (Agarwal et
    al. 2021); 0 is a random policy and 1 the success bar, in dm_control a return of 1,000.
    """
    strata: dict[tuple[str, bool], list[list[float]]] = {}
    same = scored_contests(rounds, protocol)
    for contest in same:
        for agent in contest.agents:
            scores = [normalized_score(contest.task, value) for value in agent.at(steps).returns]
            if scores:
                strata.setdefault((agent.name, agent.own), []).append(scores)
    return {key: bootstrap_iqm(scores) for key, scores in strata.items() if len(scores) == len(same)}


def scored_contests(rounds: Sequence[Contest], protocol: str) -> list[Contest]:
    """Those under a protocol whose task has a normalised score: a Gymnasium environment has none."""
    return [c for c in rounds if c.protocol == protocol and score_bounds(c.task) is not None]


def _protocol(task: str, curve: Curve) -> str:
    return DM_CONTROL if task in DMC else curve.protocol


def _protocols(task: str, others: Sequence[Agent], ours: Mapping[str, Sequence[Curve]]) -> list[str]:
    """Those of the published curves; ours where there are none."""
    published = {_protocol(task, agent.curves[0]) for agent in others}
    own = {_protocol(task, curve) for curves in ours.values() for curve in curves}
    return [protocol for protocol in PROTOCOLS if protocol in (published & own or own)]


def _of_one_protocol(agent: Agent) -> Agent:
    first = agent.curves[0].protocol
    return Agent(agent.name, tuple(c for c in agent.curves if c.protocol == first), agent.own)


def _published_agents(task: str, published: Mapping[str, Mapping[str, Sequence[Curve]]]) -> list[Agent]:
    """The agents of all files; where two files know an agent of one name, the second says whose it is."""
    agents: dict[str, list[Curve]] = {}
    for file, curves in published.items():
        taken = set(agents)
        for curve in curves.get(task, ()):
            name = curve.label.removeprefix("published ")
            agents.setdefault(f"{name} [{file}]" if name in taken else name, []).append(curve)
    return [Agent(name, tuple(found), False) for name, found in agents.items()]


def success_bar(contest: Contest) -> float | None:
    """The benchmark's success bar of a contest's task; None where it has none."""
    facts = HUMANOID_BENCH.get(contest.task)
    return None if facts is None else facts.success_score


def thousands(steps: float) -> str:
    """`12k` of 12,000; numbers below 1,000 as they are."""
    return f"{steps / 1000:,.0f}k" if steps >= 1000 else f"{steps:,.0f}"
