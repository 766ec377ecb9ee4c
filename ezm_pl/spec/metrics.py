"""Names of the metrics that a run logs, so that an objective which nobody logs is refused at once."""

from __future__ import annotations

from collections.abc import Iterable

from ezm_pl.spec.agents import AgentName
from ezm_pl.spec.tasks import task_facts

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
    "eval/score",
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
_EVERY_TASK = ("eval/{}/score", "eval/{}/return_ezm", "eval/{}/return_humanoidbench", "selfplay/{}/return")


def logged_metrics(tasks: Iterable[str], agent: AgentName = "ezm") -> list[str]:
    """Every metric that a run of `tasks` logs, those of a task after those of the run."""
    tasks, of_run, of_task = list(tasks), [*_EVERY_RUN, *_OF_AGENT[agent]], [*_EVERY_TASK]
    if agent == "sac":
        of_task.append("train/temperature/{}")
    elif any(task_facts(task) is not None for task in tasks):
        of_run.append("train/health/upright")
    return [*of_run, *(name.format(task) for task in tasks for name in of_task)]
