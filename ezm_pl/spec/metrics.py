"""Names of the metrics that a run logs, so that an objective which nobody logs is refused at once."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING

from ezm_pl.spec.agents import AgentName
from ezm_pl.spec.tasks import score_bounds, task_facts

if TYPE_CHECKING:
    from ezm_pl.spec.experiment import Experiment

OPTIONAL_TERMS = ("observation", "pathwise")
"""Loss terms that need parts of their own: left out, not multiplied by zero, where their weight is 0."""

_OF_AGENT: dict[AgentName, tuple[str, ...]] = {
    "ezm": (
        *(f"train/loss/{term}" for term in ("reward", "value", "policy", "entropy", "temporal", "path")),
        "train/policy/saturated_targets",
        *(f"train/health/{name}" for name in ("std_of_bound", "effective_samples", "weights_at_floor")),
        "time/learner_search_share",
    ),
    "sac": tuple(f"train/loss/{term}" for term in ("critic", "actor", "temperature")),
}
_EVERY_RUN = (
    "train/loss/total",
    *(f"train/value/{name}" for name in ("predicted", "target", "error")),
    *(f"train/policy/{name}" for name in ("entropy", "std")),
    "train/skipped_updates",
    "train/gradient_norm",
    "env_steps",
    *(f"time/{name}_per_second" for name in ("updates", "env_steps")),
    *(
        f"time/learner_{what}_share"
        for what in ("waiting", "sampling", "losses", "optimizer", "refresh", "other")
    ),
    *(f"time/collector_{what}_share" for what in ("waiting", "search", "physics", "storing", "other")),
    "selfplay/diverged_episodes",
    "selfplay/worker_restarts",
    "device/process_memory_gib",
    "device/cpu_percent",
)
_EVERY_TASK = ("eval/{}/return_ezm", "eval/{}/return_humanoidbench", "selfplay/{}/return")


def logged_metrics(experiment: Experiment, *, bounds: Container[str] | None = None) -> list[str]:
    """What a run logs, but for gradient conflict and a GPU's metrics; those of a task after those of the run.

    Args:
        experiment: of the run.
        bounds: tasks whose scores the spec says itself; None: `Experiment.score_bounds`. A task whose scores
            nobody says has returns only, and a run of such tasks alone no `eval/score`.
    """
    tasks, agent, loss = experiment.tasks, experiment.agent, experiment.loss
    bounds = experiment.score_bounds if bounds is None else bounds
    of_run, of_task = [*_EVERY_RUN, *_OF_AGENT[agent]], [*_EVERY_TASK]
    if agent == "ezm":
        optional = [term for term in OPTIONAL_TERMS if loss.of(term) > 0]
        own = [term.rpartition(":")[2] for term in loss.extra]
        of_run += [f"train/loss/{term}" for term in (*optional, *own)]
        of_run += ["train/policy/q_spread"] if loss.pathwise else []
    scored = [task for task in tasks if task in bounds or score_bounds(task) is not None]
    if scored:
        of_run = ["eval/score", *of_run]
    if agent == "sac":
        of_task.append("train/temperature/{}")
    elif any(task_facts(task) is not None for task in tasks):
        of_run.append("train/health/upright")
    scores = (f"eval/{task}/score" for task in scored)
    return [*of_run, *scores, *(name.format(task) for task in tasks for name in of_task)]
