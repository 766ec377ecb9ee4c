"""The spec's `collect`: what self-play plays, and how far."""

from __future__ import annotations

from pydantic import Field

from ezm_pl.spec.fields import Fraction, NonNegativeInt, PositiveInt, Strict


class CollectSpec(Strict):
    """Self-play budget, in control steps per task, and exploration beside the agent's own."""

    env_steps: PositiveInt = Field(1_000_000, description="control steps per task over the whole run")
    random_steps: NonNegativeInt = Field(1_000, description="uniform-random control steps per task at first")
    max_lead: Fraction = Field(
        0.02, description="share of the run by which updates may run ahead of collection before they wait"
    )
    hold_share: Fraction = Field(
        0.0,
        description="share of the environments that explore by bursts of held random actions at first;"
        " it falls linearly to 0",
    )
    hold_steps: PositiveInt = Field(
        15, description="control steps such an action is held for, on average; at least one decision"
    )
