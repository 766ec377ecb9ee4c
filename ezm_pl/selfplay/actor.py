"""What the collector and evaluations ask of an agent's network, whichever agent it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor


class Actor(Protocol):
    """A network that decides by an `ActFn` (`ezm_pl/search/planner.py`); it has no gradients.

    Attributes:
        observation_size: padded `O`.
    """

    observation_size: int

    def draw_heads(self, generator: torch.Generator, /) -> None:
        """Draws what holds for the next decision, such as the value heads; `generator` is on the CPU."""

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> Any:
        """Takes the weights that a `WeightStore` offers."""

    def parameters(self) -> Iterator[Tensor]:
        """Its weights, which lie on the device that decides."""
