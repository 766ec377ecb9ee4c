"""Residual layers with their gradients by hand: `base + W2 relu(W1 LN(x))`, several of one shape.

Autograd would give every layer two matrix products and two sums for its weights at every use, and add them
up one by one. Here what these gradients are made of is written side by side, so that all layers and all uses
get theirs together.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from ezm_pl.world_model.layers import ResidualBlock, Transition

PARAMETERS = 6
"""Of a layer: LayerNorm's scale and shift, then weight and bias of the inner and of the outer layer."""

_UNITS = 8
"""Hidden units that a layer has here beside its own (`_with_unit`)."""

_Weights = tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]

_layer_norm_backward = torch.ops.aten.native_layer_norm_backward
_relu_backward = torch.ops.aten.threshold_backward.grad_input


def working_dtype(weight: Tensor) -> torch.dtype:
    """The precision of matrix products with a weight: autocast's where there is one."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def weight_and_bias(layer: nn.Linear | nn.LayerNorm, dtype: torch.dtype) -> list[Tensor]:
    """Of a layer whose inputs have a dtype; the weight is no leaf, for `weights_wanted`."""
    if isinstance(layer, nn.LayerNorm) and layer.weight.device.type == "cpu":
        # A processor keeps LayerNorm's statistics in their precision.
        return [layer.weight, layer.bias]
    weight, bias = layer.weight.to(dtype), layer.bias.to(dtype)
    return [weight.view_as(weight) if weight.is_leaf else weight, bias]


def parameters_of(layer: ResidualBlock | Transition, dtype: torch.dtype) -> list[Tensor]:
    """A layer's parameters, in the order in which `Residuals` takes them."""
    return [p for part in (layer.norm, layer.inner, layer.outer) for p in weight_and_bias(part, dtype)]


def weights_wanted(ctx: Any, first: int) -> bool:
    """Whether a node's weights, from its `first` tensor on, get a gradient.

    They do not where only that of a latent or an action was asked for.
    """
    nodes = (node for node, _ in ctx.next_functions[first:] if node is not None)
    node = next((each for each in nodes if not hasattr(each, "variable")), None)  # not a leaf's
    return node is not None and torch._C._will_engine_execute_node(node)


class Residuals:
    """One forward pass of `n` residual layers, each used `U` times, and its backward pass.

    They have one size, but the inputs of the first may be wider, as a `Transition`'s are.

    Args:
        parameters: of all layers, layer by layer.
        eps: of their LayerNorms.
        uses: `U`.
        rows: `B`, of a use.
        graded: how many of the rows, the first ones, will get a gradient; None for all.
    """

    def __init__(
        self, parameters: Sequence[Tensor], eps: float, uses: int, rows: int, graded: int | None = None
    ) -> None:
        self.layers = [parameters[i : i + PARAMETERS] for i in range(0, len(parameters), PARAMETERS)]
        self.eps, self.graded = eps, rows if graded is None else graded
        # What several uses save is more than it takes to put the weights together.
        self._joined = uses > 1
        inputs = [layer[2].shape[1] for layer in self.layers]
        self._alike = [list(group) for _, group in groupby(range(len(inputs)), inputs.__getitem__)]
        weights = _with_unit(self.layers, self._alike) if self._joined else _as_they_are(self.layers)
        self._inner, self._inner_bias, self._outer = weights
        self._width = parameters[2].shape[0]
        self._hidden = parameters[2].new_empty(len(self.layers), uses, rows, len(self._inner[0]))
        self._each_hidden = _each(self._hidden)
        self._inputs: dict[tuple[int, int], tuple[Tensor, ...]] = {}

    def forward(self, layer: int, use: int, x: Tensor, base: Tensor, out: Tensor | None = None) -> Tensor:
        """`base` `[B, out]` plus what a layer makes of `x` `[B, in]`."""
        scale, shift = self.layers[layer][:2]
        normed, mean, rstd = torch.native_layer_norm(x, scale.shape, scale, shift, self.eps)
        kept = x, normed, mean, rstd
        self._inputs[layer, use] = kept if self.graded == len(x) else tuple(p[: self.graded] for p in kept)
        bias, weight = self._inner_bias[layer], self._inner[layer].t()
        hidden = torch._addmm_activation(bias, normed, weight, out=self._each_hidden[layer][use])
        if self._joined:
            return torch.addmm(base, hidden, self._outer[layer], out=out)
        return torch.add(torch.addmm(self.layers[layer][-1], hidden, self._outer[layer]), base, out=out)

    def begin_backward(self) -> tuple[Tensor, list[list[Tensor]]]:
        """Where the gradients of outputs have to be written before `backward`: `[n, U, B, out]`, and each."""
        self._hidden = self._hidden[:, :, : self.graded, : self._width]
        self._each_hidden = _each(self._hidden)
        # Of hidden units and of outputs, which are as many.
        self._of_linear = self._hidden.new_empty(2, *self._hidden.shape)
        self._each_of_hidden, self._each_gradient = (_each(part) for part in self._of_linear)
        self._of_norm: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        return self._of_linear[1], self._each_gradient

    def backward(self, layer: int, use: int) -> Tensor:
        """The gradient of a use's input `[B, in]`, but for what its `base` gets."""
        scale, shift, inner, _, outer, _ = self.layers[layer]
        x, _, mean, rstd = self._inputs[layer, use]
        gradient = self._each_gradient[layer][use] @ outer
        hidden, out = self._each_hidden[layer][use], self._each_of_hidden[layer][use]
        gradient = _relu_backward(gradient, hidden, 0, grad_input=out) @ inner
        of_x, *self._of_norm[layer, use] = _layer_norm_backward(
            gradient, x, scale.shape, mean, rstd, scale, shift, [True, True, True]
        )
        return of_x

    def gradients(self) -> list[Tensor]:
        """Of all parameters, once all uses are through `backward`."""
        uses, of_linear = self._hidden.shape[1], self._of_linear.flatten(2, 3)
        outer = _weights(of_linear[1], self._hidden.flatten(1, 2))
        inner_bias, outer_bias = of_linear.sum(2)
        inner: list[Tensor] = []
        norms: list[Sequence[Tensor]] = []
        for group in self._alike:
            order = [(layer, use) for layer in group for use in range(uses)]
            inputs = [self._inputs[each][1] for each in order]
            normed = torch.stack(inputs) if len(inputs) > 1 else inputs[0]
            of_hidden = of_linear[0, group[0] : group[-1] + 1]
            inner += _weights(of_hidden, normed.view(len(group), -1, normed.shape[-1]))
            if uses == 1:  # held by nobody afterwards, or they would be copied
                norms += [self._of_norm.pop(each) for each in order]
            else:
                stacked = torch.stack([part for each in order for part in self._of_norm[each]])
                norms += stacked.view(len(group), uses, 2, -1).sum(1)
        linear = inner, inner_bias, outer, outer_bias
        return [
            gradient for norm, *others in zip(norms, *linear, strict=True) for gradient in (*norm, *others)
        ]


def _with_unit(layers: Sequence[Sequence[Tensor]], alike: Sequence[Sequence[int]]) -> _Weights:
    """Of all layers inner weights `[H + 8, in]`, inner biases and outer weights `[H + 8, out]`.

    A product adds one thing only. So the outer bias is the weight of a hidden unit that is always 1
    (eight units: products like such widths). Inner weights are put together where they are `alike`.
    """
    like = layers[0][2]
    width = like.shape[0] + _UNITS
    weights, units, others = _units(like.shape[1], layers[0][4].shape[0], like.dtype, like.device)
    inner: list[Tensor] = []
    for group in alike:
        size = layers[group[0]][2].shape[1]
        inner += torch.cat([part for i in group for part in (layers[i][2], weights[:, :size])]).split(width)
    bias = torch.cat([part for layer in layers for part in (layer[3], units)])
    outer = torch.cat([part for _, _, _, _, w, b in layers for part in (w.t(), b.unsqueeze(0), others)])
    return inner, bias.split(width), outer.split(width)


def _as_they_are(layers: Sequence[Sequence[Tensor]]) -> _Weights:
    """The same `[H, in]`, `[H]` and `[H, out]` without such a unit."""
    return [each[2] for each in layers], [each[3] for each in layers], [each[4].t() for each in layers]


@cache
@torch.inference_mode(False)
def _units(inputs: int, outputs: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Weights `[8, in]` and biases `[8]` of a unit that is always 1 and of seven that are 0; `[7, out]`."""
    units = torch.eye(1, _UNITS, dtype=dtype, device=device).squeeze(0)
    none = torch.zeros(_UNITS, max(inputs, outputs), dtype=dtype, device=device)
    return none[:, :inputs], units, none[1:, :outputs]


def _weights(gradient: Tensor, x: Tensor) -> Tensor:
    """Gradients of weights `[n, out, in]`, from those of outputs `[n, N, out]` and inputs `[n, N, in]`."""
    if len(x) == 1:  # faster than a batch of one
        return (gradient[0].t() @ x[0]).unsqueeze(0)
    return gradient.transpose(1, 2) @ x


def _each(stacked: Tensor) -> list[list[Tensor]]:
    """The parts `[B, *]` of `[n, U, B, *]`."""
    return [list(of_layer.unbind()) for of_layer in stacked.unbind()]
