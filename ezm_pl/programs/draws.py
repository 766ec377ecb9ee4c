"""Random draws as inputs of a program."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Draws(TorchFunctionMode):
    """Notes the random draws made inside, or answers them with tensors `given`."""

    def __init__(self, given: Iterable[Tensor] | None = None) -> None:
        super().__init__()
        self._noted: list[tuple[Callable[..., Tensor], tuple[Any, ...], dict[str, Any]]] = []
        self._given = None if given is None else iter(given)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(kwargs.get("generator"), torch.Generator):
            return func(*args, **kwargs)
        self._noted.append((func, args, {k: v for k, v in kwargs.items() if k != "generator"}))
        return func(*args, **kwargs) if self._given is None else next(self._given)

    def again(self, generator: torch.Generator) -> list[Tensor]:
        """The noted draws, from a generator."""
        return [draw(*args, **named, generator=generator) for draw, args, named in self._noted]
