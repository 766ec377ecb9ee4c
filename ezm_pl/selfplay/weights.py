"""How new weights reach the actor."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class WeightStore:
    """Holds the newest weights: one reference swap, so neither side waits for the other."""

    def __init__(self) -> None:
        self._latest: tuple[int, dict[str, Tensor]] | None = None

    def publish(self, version: int, state: Mapping[str, Tensor]) -> None:
        """Offers a detached copy of `state` (a state dict) under a version number."""
        with torch.no_grad():
            copy = {name: tensor.detach().clone() for name, tensor in state.items()}
        self._latest = (version, copy)

    def newer_than(self, version: int) -> tuple[int, dict[str, Tensor]] | None:
        """The newest `(version, state)`, or None if it is `version` itself or nothing is there."""
        latest = self._latest
        return latest if latest is not None and latest[0] > version else None
