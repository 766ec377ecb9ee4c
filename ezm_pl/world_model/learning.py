"""The world model as the learner computes it: the same numbers and gradients in fewer operations.

`learning_form` puts other modules in the place of the networks whose layers are one after another; they read
the same parameters. The model itself stays as plain as it is written.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ezm_pl.world_model.layers import ResidualBlock
from ezm_pl.world_model.model import WorldModel
from ezm_pl.world_model.residual import (
    Residuals,
    parameters_of,
    weight_and_bias,
    weights_wanted,
    working_dtype,
)
from ezm_pl.world_model.unrolled import unrolled


def learning_form(model: WorldModel) -> WorldModel:
    """`model`, same parameters and buffers: its sequences are `Network`s, its transitions unrolled."""
    shallow = copy.copy(model)
    shallow._modules = dict(model._modules)
    for name in ("encoder", "action_encoder", "trunk", "projector", "predictor"):
        shallow._modules[name] = Network(model.get_submodule(name))
    for name in ("dynamics", "reward_trunk"):
        shallow._modules[name] = unrolled(model.get_submodule(name))
    return shallow


class Network(nn.Module):
    """A sequence of layers as one node of the graph.

    Args:
        plain: whose parameters it reads: linear layers, LayerNorms, tanh, ReLU and residual blocks.
    """

    def __init__(self, plain: nn.Module) -> None:
        super().__init__()
        self._parts: list[list[nn.Module]] = []
        for blocks, group in groupby(plain.children(), lambda layer: isinstance(layer, ResidualBlock)):
            layers = list(group)
            self._parts += [layers] if blocks else [[layer] for layer in layers]

    def forward(self, x: Tensor) -> Tensor:
        """As the layers one after another, `[..., in] -> [N, out]`."""
        return self.split(x.flatten(0, -2), x)[0]

    def split(self, x: Tensor, graded: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs `[N, out]` of rows `[N, in]` in two parts, of which the second gets no gradient.

        Args:
            x: all rows.
            graded: what gets the gradient, `[..., *]`: the first of them once more, or their last columns.
        """
        dtype = working_dtype(next(p for part in self._parts for p in part[0].parameters()))
        layers = [_layer(part, dtype) for part in self._parts]
        parameters = [p for layer in layers for p in layer.parameters]
        found: tuple[Tensor, Tensor] = _Sequence.apply(layers, x.detach().to(dtype), graded, *parameters)
        return found


class _Layer(Protocol):
    """A layer during one forward and backward pass; it keeps what the latter needs of the first rows.

    Attributes:
        parameters: in the precision that it computes in.
    """

    parameters: list[Tensor]

    def forward(self, x: Tensor, graded: int) -> Tensor:
        """`[N, in] -> [N, out]`."""

    def backward(self, gradient: Tensor) -> Tensor:
        """The gradient of the first rows' inputs, from that of their outputs."""

    def gradients(self) -> list[Tensor]:
        """Those of the parameters, after `backward`."""


class _Sequence(torch.autograd.Function):
    """Layers one after another."""

    @staticmethod
    def forward(
        ctx: Any, layers: list[_Layer], x: Tensor, graded: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        rows = graded.numel() // graded.shape[-1]
        for layer in layers:
            x = layer.forward(x, rows)
        ctx.layers, ctx.shape, others = layers, graded.shape, x[rows:]
        ctx.mark_non_differentiable(others)
        ctx.set_materialize_grads(False)
        return x[:rows], others

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0]
        for layer in reversed(ctx.layers):
            gradient = layer.backward(gradient)
        gradient = gradient[:, -ctx.shape[-1] :].view(ctx.shape)
        if not weights_wanted(ctx, 2):
            return None, None, gradient, *(None for layer in ctx.layers for _ in layer.parameters)
        return None, None, gradient, *(each for layer in ctx.layers for each in layer.gradients())


def _layer(part: Sequence[nn.Module], dtype: torch.dtype) -> _Layer:
    return next(make(part, dtype) for kind, make in _LAYERS.items() if isinstance(part[0], kind))


class _Linear:
    def __init__(self, part: Sequence[nn.Module], dtype: torch.dtype) -> None:
        self.parameters = weight_and_bias(part[0], dtype)  # type: ignore[arg-type]

    def forward(self, x: Tensor, graded: int) -> Tensor:
        weight, bias = self.parameters
        self._x = x[:graded]
        return torch.addmm(bias, x, weight.t())

    def backward(self, gradient: Tensor) -> Tensor:
        self._gradient = gradient
        return gradient @ self.parameters[0]

    def gradients(self) -> list[Tensor]:
        return [self._gradient.t() @ self._x, self._gradient.sum(0)]


class _Norm:
    def __init__(self, part: Sequence[nn.Module], dtype: torch.dtype) -> None:
        plain = part[0]
        assert isinstance(plain, nn.LayerNorm)
        self.parameters, self._eps = weight_and_bias(plain, dtype), plain.eps

    def forward(self, x: Tensor, graded: int) -> Tensor:
        scale, shift = self.parameters
        y, mean, rstd = torch.native_layer_norm(x, scale.shape, scale, shift, self._eps)
        self._kept = x[:graded], scale.shape, mean[:graded], rstd[:graded]
        return y

    def backward(self, gradient: Tensor) -> Tensor:
        of_x, *self._gradients = torch.ops.aten.native_layer_norm_backward(
            gradient.contiguous(), *self._kept, *self.parameters, [True, True, True]
        )
        return of_x

    def gradients(self) -> list[Tensor]:
        found, self._gradients = self._gradients, []
        return found  # held by nobody else, or they would be copied


class _Activation:
    def __init__(self, part: Sequence[nn.Module], dtype: torch.dtype) -> None:
        self.parameters: list[Tensor] = []
        self._tanh = isinstance(part[0], nn.Tanh)

    def forward(self, x: Tensor, graded: int) -> Tensor:
        y = x.tanh_() if self._tanh else x.relu_()
        self._y = y[:graded]
        return y

    def backward(self, gradient: Tensor) -> Tensor:
        if self._tanh:
            return torch.ops.aten.tanh_backward(gradient, self._y)
        return torch.ops.aten.threshold_backward(gradient, self._y, 0)

    def gradients(self) -> list[Tensor]:
        return []


class _Blocks:
    def __init__(self, part: Sequence[nn.Module], dtype: torch.dtype) -> None:
        blocks = [each for each in part if isinstance(each, ResidualBlock)]
        self.parameters = [p for each in blocks for p in parameters_of(each, dtype)]
        self._eps, self._count = blocks[0].norm.eps, len(blocks)

    def forward(self, x: Tensor, graded: int) -> Tensor:
        self._residuals = Residuals(self.parameters, self._eps, 1, len(x), graded)
        for i in range(self._count):
            x = self._residuals.forward(i, 0, x, x)
        return x

    def backward(self, gradient: Tensor) -> Tensor:
        _, of_output = self._residuals.begin_backward()
        of_output[-1][0].copy_(gradient)
        for i in reversed(range(self._count)):
            of_x = self._residuals.backward(i, 0)
            gradient = torch.add(of_output[i][0], of_x, out=of_output[i - 1][0] if i else None)
        return gradient

    def gradients(self) -> list[Tensor]:
        return self._residuals.gradients()


_LAYERS: dict[type[nn.Module], Callable[[Sequence[nn.Module], torch.dtype], _Layer]] = {
    nn.Linear: _Linear,
    nn.LayerNorm: _Norm,
    nn.Tanh: _Activation,
    nn.ReLU: _Activation,
    ResidualBlock: _Blocks,
}
