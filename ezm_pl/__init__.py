"""EfficientZero-Multitask on HumanoidBench. `ezm_pl.Agent` is a trained agent in Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ezm_pl.agent import Agent

__all__ = ["Agent"]


def __getattr__(name: str) -> Any:
    """Imports `Agent`, and with it PyTorch, when somebody asks for it."""
    if name != "Agent":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ezm_pl.agent import Agent

    return Agent
