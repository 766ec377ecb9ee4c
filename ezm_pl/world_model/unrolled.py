"""A module that is applied at every unroll step, with one gradient for each of its linear layers.

Autograd would give a layer as many gradients as there are steps, and add them up one by one.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_Module = TypeVar("_Module", bound=nn.Module)
_Tape = list[tuple[Tensor, Tensor]]
"""Inputs `[B, in]` of a layer and gradients `[B, out]` of its outputs, one pair for each use."""


def unrolled(model: _Module, part: str) -> _Module:
    """`model` with the same weights, whose part of that name may be applied at every step of one unroll."""
    shallow = copy.copy(model)
    shallow._modules = model._modules | {part: _recording(model.get_submodule(part))}
    return shallow


def _recording(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.Linear):
        return _Linear(module)
    shallow = copy.copy(module)
    shallow._modules = {name: part and _recording(part) for name, part in module._modules.items()}
    return shallow


class _Linear(nn.Module):
    """A linear layer whose uses are recorded in the backward pass."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        tape: _Tape = []
        device = layer.weight.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else layer.weight.dtype
        weight, bias = layer.weight.to(dtype), layer.bias.to(dtype)
        self._tape, self._parts = tape, _Gather.apply(tape, weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self._parts
        return _Use.apply(self._tape, x.to(weight.dtype), weight, bias)


class _Gather(torch.autograd.Function):
    """Weight and bias themselves; their gradient is that of all uses on the tape."""

    @staticmethod
    def forward(ctx: Any, tape: _Tape, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        ctx.tape = tape
        ctx.set_materialize_grads(False)
        return weight.view_as(weight), bias.view_as(bias)

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if not ctx.tape:
            return None, None, None
        inputs, gradients = (torch.cat(part) for part in zip(*ctx.tape, strict=True))
        ctx.tape.clear()
        return None, gradients.t() @ inputs, gradients.sum(0)


class _Use(torch.autograd.Function):
    """`W x + b`. Its backward pass gives `x` its gradient and leaves that of `W` and `b` to `_Gather`."""

    @staticmethod
    def forward(ctx: Any, tape: _Tape, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.tape = tape
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gather = ctx.next_functions[1][0]  # of the weight
        # Not where only the gradient of a latent was asked for: then nobody would take it off the tape.
        if gather is not None and torch._C._will_engine_execute_node(gather):
            ctx.tape.append((x, gradient))
        return None, gradient @ weight, None, None
