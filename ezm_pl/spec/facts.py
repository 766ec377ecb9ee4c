"""What a resolved spec amounts to, in words, without building anything."""

from __future__ import annotations

from ezm_pl.spec.agents import UNREAD
from ezm_pl.spec.experiment import Experiment
from ezm_pl.spec.io import build_experiment, flatten
from ezm_pl.spec.tasks import HUMANOID_BENCH

CONTROL_SECONDS = 0.02
"""Duration of a control step of HumanoidBench."""


def unread_settings(experiment: Experiment) -> str | None:
    """A line that names what the spec sets, other than its preset, and its agent does not read; or None."""
    plain = {name: getattr(experiment, name) for name in ("name", "preset", "agent", "tasks")}
    before = flatten(build_experiment({**plain, "tasks": list(experiment.tasks)}).model_dump(mode="json"))
    settings = flatten(experiment.model_dump(mode="json"))
    named = [
        key
        for key, value in settings.items()
        if key.startswith(UNREAD[experiment.agent]) and before.get(key) != value
    ]
    return f"note: agent {experiment.agent} does not read {', '.join(named)}" if named else None


def spec_facts(experiment: Experiment) -> list[str]:
    """One line per fact: tasks, what they need, the budget, evaluation."""
    count, steps = len(experiment.tasks), experiment.collect.env_steps
    known = [HUMANOID_BENCH[task] for task in experiment.tasks if task in HUMANOID_BENCH]
    lines = [f"tasks: {count}"]
    time, held = "", f"{experiment.env.action_repeat} control steps"
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
        f"evaluation: {experiment.eval.episodes} episodes per task every {experiment.eval.every:,} updates"
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
    unread = unread_settings(experiment)
    return [*notes, unread] if unread else notes


def _may_pay_less(task: str, floor: float) -> bool:
    """Whether returns of a task may be below a floor, as far as is known of it."""
    facts = HUMANOID_BENCH.get(task)
    if facts is None:
        return not task.startswith("dmc-")
    # Reaching pays more than it takes away, but the latter may come last.
    return facts.random_score < floor or task.endswith("reach")
