"""The learning model in the precision of its matrix products: weights are cast once per update.

Autocast would cast each weight and each of their gradients in an operation of its own.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ezm_pl.world_model import WorldModel
from ezm_pl.world_model.layers import Head


class WorkingCopy:
    """A model with the same buffers, whose layers have cast weights; gradients go to the learner's.

    Args:
        model: the learner, on its device.
        dtype: of the matrix products.
    """

    def __init__(self, model: WorldModel, dtype: torch.dtype) -> None:
        tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
        self._model = copy.deepcopy(model, {id(x): x for x in tensors}).train()
        self._dtype = dtype
        self._places: list[tuple[dict[str, Any], str]] = []
        # A processor's LayerNorm keeps its statistics in the precision of its own parameters.
        layers = nn.Linear if tensors[0].device.type == "cpu" else (nn.Linear, nn.LayerNorm)
        for module in self._model.modules():
            if isinstance(module, layers):
                self._places += [(module._parameters, name) for name in module._parameters]
            elif isinstance(module, Head):
                parts = (module.weights, module.biases, module.scales, module.shifts)
                self._places += [(x._parameters, name) for x in parts for name in x._parameters]
        self._weights = [place[name] for place, name in self._places]

    def __call__(self) -> WorldModel:
        """The model with the learner's weights as they are now: for one forward and backward pass."""
        cast = _Cast.apply(self._dtype, *self._weights)
        for (place, name), weight in zip(self._places, cast, strict=True):
            place[name] = weight
        return self._model


class _Cast(torch.autograd.Function):
    """Tensors in another dtype, and their gradients back, in one operation each."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.dtype = weights[0].dtype
        return _cast(weights, dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        cast = iter(_cast([each for each in gradients if each is not None], ctx.dtype))
        return None, *(None if each is None else next(cast) for each in gradients)


def _cast(tensors: Any, dtype: torch.dtype) -> tuple[Tensor, ...]:
    cast = [torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format) for x in tensors]
    torch._foreach_copy_(cast, list(tensors))
    return tuple(cast)
