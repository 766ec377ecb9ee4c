"""The part of a spec that says how Lightning's Trainer runs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from ezm_pl.spec.fields import PositiveInt, Strict

_WHOLE_WEIGHTS = "splits the weights over ranks, but every rank's actor and target network need all of them"
_OWN_PROCESSES = "ends its processes with every call of the Trainer, and replay and collector live in them"
_REFUSED_STRATEGIES = {
    "fsdp": _WHOLE_WEIGHTS,
    "deepspeed": _WHOLE_WEIGHTS,
    "ddp_spawn": _OWN_PROCESSES,
    "ddp_fork": _OWN_PROCESSES,
    "ddp_notebook": _OWN_PROCESSES,
}
"""Lightning strategies, by how their names start, that cannot train here, and why."""


class TrainerSpec(Strict):
    """How Lightning's Trainer runs: on what, how precisely, and how often it logs and saves."""

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    devices: PositiveInt | Annotated[str, Field(pattern=r"^(auto|\d+(,\d+)*)$")] = Field(
        "auto", description="how many, or which: 2, '0,3', auto"
    )
    num_nodes: PositiveInt = 1
    strategy: str = Field("auto", description="auto or ddp")
    deterministic: bool = Field(
        False, description="collector and learner in lockstep: the same spec gives the same metrics"
    )
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    log_every: PositiveInt = 50
    checkpoint_every: PositiveInt = Field(
        4_000, description="updates that a kill costs at most (if two or more): saves begin twice as often"
    )
    gradient_conflict_every: PositiveInt | None = Field(
        None, description="updates between measurements of how far tasks' gradients agree; null: none"
    )
    profiler: Literal["simple", "advanced"] | None = None

    @field_validator("strategy")
    @classmethod
    def _can_train(cls, strategy: str) -> str:
        if strategy in ("auto", "ddp"):
            return strategy
        reasons = [why for start, why in _REFUSED_STRATEGIES.items() if strategy.startswith(start)]
        raise ValueError(f"{strategy!r} {reasons[0] if reasons else 'is not known'}: valid are auto and ddp")
