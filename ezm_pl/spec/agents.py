"""The agents that a spec can train, and which fields each of them reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ezm_pl.spec.fields import PositiveFloat, PositiveInt, Real, Strict

if TYPE_CHECKING:
    from ezm_pl.spec.experiment import Experiment

AgentName = Literal["ezm", "sac"]


class SACSpec(Strict):
    """Soft actor-critic, the model-free baseline (docs/baseline.md): what it does not share with EZ-M."""

    td_steps: PositiveInt = Field(1, description="decisions per temporal-difference target")
    target_rate: Annotated[Real, Field(gt=0, le=1)] = Field(
        0.005, description="share of the learner's weights that the target network takes over per update"
    )
    initial_temperature: PositiveFloat = Field(0.1, description="weight of the entropy at first, per task")
    target_entropy: Real = Field(
        -1.0, description="entropy per action dimension that the learned temperature aims at"
    )


UNREAD: dict[AgentName, tuple[str, ...]] = {
    "ezm": ("sac.",),
    "sac": (
        "search.", "loss.", "model.task_conditioning",
        "model.action_embedding_size", "model.value_heads", "model.projector_size", "model.projection_size",
        "model.atoms", "model.support", "model.value_floor", "model.min_log_std", "model.max_log_std",
        "model.initial_log_std", "model.max_mean", "model.head_norm",
        "targets.unroll_steps", "targets.td_steps", "targets.policy", "targets.max_action",
        "targets.expansion_steps", "targets.search_value_after", "targets.search_value_age",
        "targets.search_every", "targets.reanalyse",
        "replay.priority_exponent", "replay.importance_exponent", "replay.min_importance",
        "optim.averaging", "optim.compiled", "trainer.precision",
    ),
}  # fmt: skip
"""Fields under these have no meaning for an agent: it takes a spec that sets them, and does not read them."""


def searches(experiment: Experiment, *, search: bool = True) -> bool:
    """Whether a trained agent decides by a search where one is asked for, or by its policy alone."""
    return search and experiment.agent == "ezm" and experiment.search.choice != "policy"
