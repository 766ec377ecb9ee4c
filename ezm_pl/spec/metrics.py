"""Names of the metrics that a run logs, so that an objective which nobody logs is refused at once."""

from __future__ import annotations

from collections.abc import Container, Iterable

from ezm_pl.spec.agents import AgentName
from ezm_pl.spec.tasks import score_bounds, task_facts

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


def logged_metrics(tasks: Iterable[str], agent: AgentName = "ezm", bounds: Container[str] = ()) -> list[str]:
    """Every metric that a run of `tasks` logs, those of a task after those of the run.

    Args:
        tasks: names. agent: that is trained.
        bounds: tasks whose scores the spec says itself (`Experiment.score_bounds`). A task whose scores
            nobody says has returns only, and a run of such tasks alone no `eval/score`.
    """
    tasks, of_run, of_task = list(tasks), [*_EVERY_RUN, *_OF_AGENT[agent]], [*_EVERY_TASK]
    scored = [task for task in tasks if task in bounds or score_bounds(task) is not None]
    if scored:
        of_run = ["eval/score", *of_run]
    if agent == "sac":
        of_task.append("train/temperature/{}")
    elif any(task_facts(task) is not None for task in tasks):
        of_run.append("train/health/upright")
    scores = (f"eval/{task}/score" for task in scored)
    return [*of_run, *scores, *(name.format(task) for task in tasks for name in of_task)]
