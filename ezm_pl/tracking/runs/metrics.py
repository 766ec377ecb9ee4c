"""Names of metrics that tracking itself relies on (all of them: docs/operations.md, "Metrics")."""

ENV_STEPS = "env_steps"
"""Control steps per task so far (mean over tasks)."""

COUNTERS = (
    ENV_STEPS, "selfplay/diverged_episodes", "selfplay/worker_restarts", "train/skipped_updates",
)  # fmt: skip
"""Metrics that only ever grow over a run, through all of its sessions."""

EVALUATION = "eval/"
"""Prefix of evaluation metrics: `eval/<task>/return_ezm` and the like."""

BY_ENV_STEPS = "by_env_steps/"
"""Prefix in place of `eval/` under which evaluations are written once more, with `env_steps` as the step."""

GRADIENT_CONFLICT = "gradient_conflict/"
"""Prefix of `gradient_conflict/<part>/cosine` and the like (`ezm_pl.training.gradient_conflict`)."""


def part_in_words(part: str) -> str:
    """The name of a part there, for a reader: `value and policy` of `value_policy`."""
    return part.replace("_", " and ")
