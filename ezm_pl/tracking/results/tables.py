"""Tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from ezm_pl.spec import DMC, HUMANOID_BENCH
from ezm_pl.spec.tasks import DMC_EPISODE_STEPS, RANDOM_ERRORS, REGISTERED, TaskFacts
from ezm_pl.spec.tasks import task_facts as task_facts_of
from ezm_pl.tracking.console import cell, count

if TYPE_CHECKING:
    from ezm_pl.envs.parity import ParityRow
    from ezm_pl.training.evaluation import Evaluation
    from ezm_pl.training.learn_check import LearnCheckRow

RANDOM_RELATIVE, RANDOM_ABSOLUTE = 0.15, 3.0
"""A random policy's return agrees with the published one within the larger of 15% and 3 points ..."""
RANDOM_STANDARD_ERRORS = 3.0
"""... or within so many standard errors of their difference, where that of the published one is known."""


def numbers_table(head: Sequence[str], *, title: str, caption: str | None = None) -> Table:
    """An empty table of names in the first column and numbers, to the right, in the others."""
    table = Table(title=title, caption=caption)
    table.add_column(head[0], no_wrap=True)
    for name in head[1:]:
        table.add_column(name, justify="right")
    return table


def returns_table(evaluation: Evaluation) -> Table:
    """Mean returns of each task under both protocols, beside the published numbers."""
    counted = f"mean of {count(evaluation.returns_ezm.shape[1], 'episode')} per task"
    if not evaluation.searched:
        counted += ", by the policy alone"
    score = f"score\n{evaluation.protocol}"
    table = numbers_table(
        ("task", "return\nezm", "return\nhumanoidbench", "random", "success", score, "EZ-M\npublished"),
        title=f"Returns after {evaluation.updates:,} updates, {counted}",
    )
    for index, task in enumerate(evaluation.tasks):
        table.add_row(
            task,
            f"{evaluation.returns_ezm[index].mean():,.1f}",
            f"{evaluation.returns_humanoidbench[index].mean():,.1f}",
            *bounds_of(task, evaluation.bounds.get(task)),
            cell(evaluation.score_of(task), ".3f"),
            published_return(task, "ezm"),
        )
    table.add_section()
    table.add_row("mean score", "", "", "", "", cell(evaluation.score, ".3f"), "")
    return table


def tasks_table() -> Table:
    """Every task of HumanoidBench in canonical order, registered ones, then dm_control's names."""
    from ezm_pl.envs import catalogue

    table = Table(title="Tasks", caption=f"and dm_control's: {', '.join(DMC)}")
    table.add_column("#", justify="right")
    table.add_column("task", no_wrap=True)
    for name in ("obs", "act", "steps", "random", "success"):
        table.add_column(name, justify="right")
    table.add_column("family", no_wrap=True)
    table.add_column("what it asks")
    for number, (task, facts) in enumerate((HUMANOID_BENCH | REGISTERED).items(), 1):
        table.add_row(
            str(number),
            escape(task),
            str(facts.obs_size),
            str(facts.action_size),
            str(facts.episode_steps),
            *bounds_of(task),
            catalogue.family(task),
            escape(catalogue.description(task)),
        )
    return table


def task_facts(task: str, *, obs_size: int, action_size: int, terms: Sequence[str] = ()) -> Table:
    """What is known of one task, one row per fact; `terms` are the names of its reward terms."""
    facts = task_facts_of(task)
    random, success = bounds_of(task)
    table = Table(title=escape(task), show_header=False)
    if facts is not None:
        from ezm_pl.envs import catalogue

        table.add_row("what it asks", escape(catalogue.description(task)))
        table.add_row("family", catalogue.family(task))
    table.add_row("observation", f"{obs_size} numbers")
    every = ", one every 20 ms" if facts is not None else ""
    table.add_row("action", f"{action_size} numbers in [-1, 1]{every}")
    if facts is not None or task in DMC:
        table.add_row("episode", f"{facts.episode_steps if facts else DMC_EPISODE_STEPS} control steps")
    if facts is not None:
        table.add_row("positions, velocities", f"{facts.nq}, {facts.nv}")
    if terms:
        table.add_row("reward terms", escape(", ".join(terms)))
    table.add_row("random policy", random)
    table.add_row("success bar", success)
    table.add_row("EZ-M, published", published_return(task, "ezm") or "-")
    brc = published_return(task, "humanoidbench")
    if brc:
        table.add_row("BRC, published", brc)
    return table


def random_table(returns: Mapping[str, NDArray[np.float64]]) -> Table:
    """A random policy's returns beside the published ones.

    Args:
        returns: task to episode returns [episodes].
    """
    caption = "agrees: within the larger of 15% and 3 points, or three standard errors (tasks with objects)"
    head = ("task", "episodes", "mean", "std", "published", "agrees")
    table = numbers_table(head, title="Random policy", caption=caption)
    for task, values in returns.items():
        facts, mean, agrees = HUMANOID_BENCH.get(task), float(np.mean(values)), "-"
        if facts is not None:
            within = abs(mean - facts.random_score) <= _random_bound(facts, values)
            agrees = "yes" if within else "no"
        published = f"{facts.random_score:.1f}" if facts else "-"
        table.add_row(task, str(len(values)), f"{mean:.1f}", f"{np.std(values):.1f}", published, agrees)
    return table


def _random_bound(facts: TaskFacts, values: NDArray[np.float64]) -> float:
    """How far the mean of some random returns [episodes] may be from a task's random score."""
    if facts.name not in RANDOM_ERRORS:
        return max(RANDOM_RELATIVE * abs(facts.random_score), RANDOM_ABSOLUTE)
    if len(values) < 2:
        return math.inf  # one return says nothing of its error
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return RANDOM_STANDARD_ERRORS * math.hypot(error, RANDOM_ERRORS[facts.name])


def parity_table(rows: Sequence[ParityRow]) -> tuple[Table, bool]:
    """How near the built-in tasks are to the recordings.

    Returns:
        The table, and whether every task is within its bounds (docs/parity.md).
    """
    errors = ("qpos\nmedian", "qpos\np90", "reward\nmedian", "reward\np90")
    table = numbers_table(
        ("task", "steps", "facts\ndiffering", *errors, "termination\nagrees", "events\ndiffering", "passed"),
        title="Parity with recordings of the original tasks",
        caption="errors as shares of bounds",
    )
    for row in rows:
        table.add_row(
            row.task,
            str(row.steps),
            str(len(row.facts) + len(row.terms)),
            f"{row.qpos_median / row.qpos_median_bound:.1%}",
            f"{row.qpos_p90 / row.qpos_p90_bound:.1%}",
            f"{row.reward_median / row.reward_bounds[0]:.1%}",
            f"{row.reward_p90 / row.reward_bounds[1]:.1%}",
            f"{row.terminated:.1%}",
            f"{len(row.odd_events)} of {row.events}" if row.events else "-",
            "yes" if row.passed else "NO",
        )
    return table, all(row.passed for row in rows)


def learn_check_table(rows: Sequence[LearnCheckRow]) -> Table:
    """Each task's mean return, what it must reach, and whether it does."""
    table = numbers_table(("task", "mean return", "must reach", "passed"), title="Learning check")
    for row in rows:
        returns = f"{row.mean_return:,.1f}", f"{row.bar:,.1f}"
        table.add_row(row.task, *returns, "yes" if row.passed else "NO")
    return table


def published_return(task: str, protocol: str) -> str:
    """A task's published final return, mean and std over seeds; empty where there is none.

    Args:
        task: its name.
        protocol: `ezm` for EZ-M's return and its steps per task, `humanoidbench` for BRC's.
    """
    facts = HUMANOID_BENCH.get(task)
    if facts is None:
        return ""
    pair = facts.ezm_return if protocol == "ezm" else facts.brc_return
    if pair is None:
        return ""
    at = f" @ {facts.ezm_million_steps:g}M" if protocol == "ezm" else ""
    return f"{pair[0]:g} ± {pair[1]:g}{at}"


def bounds_of(task: str, own: tuple[float, float] | None = None, absent: str = "-") -> tuple[str, str]:
    """Random and success returns of a task, the spec's `own` or published; `absent` where there are none."""
    facts = task_facts_of(task)
    bounds = own or ((facts.random_score, facts.success_score) if facts else None)
    return (f"{bounds[0]:g}", f"{bounds[1]:g}") if bounds else (absent, absent)
