"""What a resolved spec amounts to, in words, without building anything."""

from __future__ import annotations

from ezm_pl.spec.experiment import Experiment
from ezm_pl.spec.tasks import HUMANOID_BENCH

CONTROL_SECONDS = 0.02
"""Duration of a control step."""


def spec_facts(experiment: Experiment) -> list[str]:
    """One line a fact: tasks, what they need, the budget, evaluation."""
    count, steps = len(experiment.tasks), experiment.collect.env_steps
    known = [HUMANOID_BENCH[task] for task in experiment.tasks if task in HUMANOID_BENCH]
    lines = [f"tasks: {count}"]
    if len(known) == count:
        observation, action = max(f.obs_size for f in known), max(f.action_size for f in known)
        lines[0] += f", padded to {observation} observations and {action} actions"
    updates = experiment.max_steps
    lines.append(
        f"budget: {updates:,} updates of {experiment.optim.batch_size} positions; "
        f"{steps:,} control steps a task ({steps * CONTROL_SECONDS / 3600:,.1f} h of robot time each)"
    )
    lines.append(
        f"collection: {experiment.env.num_envs} environments a task, an action held for "
        f"{experiment.env.action_repeat * CONTROL_SECONDS * 1000:.0f} ms, {experiment.env.protocol} protocol"
    )
    lines.append(
        f"evaluation: {experiment.eval.episodes} episodes a task every {experiment.eval.every:,} updates"
    )
    return lines
