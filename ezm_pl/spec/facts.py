"""What a resolved spec amounts to, in words, without building anything."""

from __future__ import annotations

from collections.abc import Callable

from ezm_pl.spec.agents import UNREAD
from ezm_pl.spec.experiment import Experiment, SearchSpec
from ezm_pl.spec.io import build_experiment, flatten
from ezm_pl.spec.tasks import HUMANOID_BENCH

CONTROL_SECONDS = 0.02
"""Duration of a control step of HumanoidBench."""


_Unread = tuple[Callable[[Experiment], bool], str, tuple[str, ...]]
"""When fields are not read, in words, and which."""

_EVERY_AGENT: tuple[_Unread, ...] = (
    (lambda e: not e.collect.hold_share, "collect.hold_share is 0", ("collect.hold_steps",)),
    (
        lambda e: e.env.protocol != "ezm",
        "env.protocol is not ezm",
        ("env.short_episode_steps", "env.short_episode_share"),
    ),
    (
        lambda e: e.env.protocol == "ezm" and e.env.short_episode_steps is None,
        "env.short_episode_steps is null",
        ("env.short_episode_share",),
    ),
)

_EZM: tuple[_Unread, ...] = (
    (
        lambda e: not e.targets.reanalyse,
        "targets.reanalyse is false",
        ("targets.search_every", "targets.policy", "targets.search_value_age", "search.correct_proposal"),
    ),
    (
        lambda e: not e.targets.reanalyse and not e.targets.expansion_steps,
        "targets.reanalyse is false",
        ("targets.search_value_after",),
    ),
    (lambda e: e.targets.policy == "best", "targets.policy is best", ("search.correct_proposal",)),
    (
        lambda e: e.targets.expansion_steps > 0,
        "targets.expansion_steps is set",
        ("targets.search_value_age",),
    ),
    (
        lambda e: e.max_steps <= e.targets.search_value_after,
        "the run ends before targets.search_value_after",
        ("targets.expansion_steps", "targets.search_value_age"),
    ),
    (
        lambda e: e.search.choice == "policy" and e.targets.reanalyse,
        "search.choice is policy",
        ("search.evaluation_std",),
    ),
    (
        lambda e: e.search.choice == "policy" and not e.targets.reanalyse,
        "search.choice is policy and targets.reanalyse is false",
        tuple(f"search.{field}" for field in SearchSpec.model_fields if field not in ("choice", "dtype")),
    ),
    (
        lambda e: not e.model.task_embedding_in,
        "model.task_embedding_in is empty",
        ("model.task_embedding_size",),
    ),
)


def _unread_where(experiment: Experiment) -> tuple[_Unread, ...]:
    return (*_EVERY_AGENT, *(_EZM if experiment.agent == "ezm" else ()))


def why_unread(experiment: Experiment, field: str) -> str | None:
    """Why other settings leave a field unread; None where it is read."""
    table = _unread_where(experiment)
    return next((why for holds, why, fields in table if field in fields and holds(experiment)), None)


def unread_settings(experiment: Experiment) -> list[str]:
    """A line for each reason why something is not read that the spec sets, other than its preset."""
    plain = {name: getattr(experiment, name) for name in ("name", "preset", "agent", "tasks")}
    before = flatten(build_experiment({**plain, "tasks": list(experiment.tasks)}).model_dump(mode="json"))
    settings = flatten(experiment.model_dump(mode="json"))
    changed = [key for key, value in settings.items() if before.get(key) != value]
    lines = []
    if unread := [key for key in changed if key.startswith(UNREAD[experiment.agent])]:
        lines.append(f"note: agent {experiment.agent} does not read {', '.join(unread)}")
    for holds, why, fields in _unread_where(experiment):
        if (unread := [key for key in changed if key in fields]) and holds(experiment):
            lines.append(f"note: {', '.join(unread)} {'is' if len(unread) == 1 else 'are'} not read: {why}")
    if experiment.model.task_conditioning == "id" and any(
        m.descriptions for m in experiment.tasks_meta.values()
    ):
        lines.append("note: tasks_meta descriptions are not read: model.task_conditioning is id")
    return lines


def spec_facts(experiment: Experiment) -> list[str]:
    """One line per fact: tasks, what they need, the budget, evaluation."""
    count, steps = len(experiment.tasks), experiment.collect.env_steps
    known = [HUMANOID_BENCH[task] for task in experiment.tasks if task in HUMANOID_BENCH]
    lines = [f"tasks: {count}"]
    time, held = "", _counted(experiment.env.action_repeat, "control step")
    if len(known) == count:
        observation, action = max(f.obs_size for f in known), max(f.action_size for f in known)
        lines[0] += f", padded to {observation} observations and {action} actions"
        time = f" ({steps * CONTROL_SECONDS / 3600:,.1f} h of robot time each)"
        held = f"{experiment.env.action_repeat * CONTROL_SECONDS * 1000:.0f} ms"
    lines.append(
        f"budget: {experiment.max_steps:,} updates of {experiment.optim.batch_size} windows; "
        f"{steps:,} control steps per task{time}"
    )
    lines.append(
        f"collection: {experiment.env.num_envs} environments per task, an action held for {held}, "
        f"{experiment.env.protocol} protocol"
    )
    lines.append(
        f"evaluation: {_counted(experiment.eval.episodes, 'episode')} per task every "
        f"{experiment.eval.every:,} updates"
    )
    return [*lines, *spec_notes(experiment)]


def spec_notes(experiment: Experiment) -> list[str]:
    """One line per thing that a user may not expect: clipped values, settings that nothing reads."""
    floor = experiment.model.value_floor if experiment.agent == "ezm" else None
    negative = [] if floor is None else [task for task in experiment.tasks if _may_pay_less(task, floor)]
    notes = []
    if negative:
        notes.append(
            f"note: searched values are clipped below {floor:g}; set model.value_floor to null for tasks "
            f"with negative rewards, as these may be: {', '.join(negative)}"
        )
    # Most tasks pay at most 1 per control step.
    largest = experiment.env.action_repeat / (1 - experiment.targets.discount)
    values = experiment.agent == "ezm" and not experiment.targets.return_scaling
    if values and largest > experiment.model.support:
        notes.append(
            f"note: targets.discount {experiment.targets.discount:g} makes returns of up to {largest:,.0f} "
            "from a reward of 1 per control step; values are clipped at "
            f"model.support {experiment.model.support:g}"
        )
    if experiment.trainer.gradient_conflict_every and len(experiment.tasks) == 1:
        notes.append("note: trainer.gradient_conflict_every: a single task has no other to conflict with")
    search = experiment.search
    if experiment.agent == "ezm" and search.num_simulations < search.num_root_actions:
        notes.append(
            f"note: search.num_simulations {search.num_simulations} visits only the first "
            f"{search.num_simulations} of search.num_root_actions {search.num_root_actions} candidates"
        )
    return [*notes, *unread_settings(experiment)]


def _counted(count: int, noun: str) -> str:
    """`1 episode`, `2 episodes`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _may_pay_less(task: str, floor: float) -> bool:
    """Whether returns of a task may be below a floor, as far as is known of it."""
    facts = HUMANOID_BENCH.get(task)
    if facts is None:
        return not task.startswith("dmc-")
    # Reaching pays more than it takes away, but the latter may come last.
    return facts.random_score < floor or task.endswith("reach")
