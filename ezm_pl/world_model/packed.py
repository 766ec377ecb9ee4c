"""Linear layers on the CPU from weights in oneDNN's own layout, with what follows them in the same pass.

Otherwise oneDNN brings each weight into that layout at every call. Measured on an AMD EPYC with
AVX512-BF16, 2 cores, 512 x 512: 1.2 to 1.6 times as fast in bfloat16 as `F.linear` and ReLU, and in
float32, where `F.linear` calls MKL, 1.6 to 2.4 times.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_ROWS = 64
"""Batch that the layout is chosen for; others run with it too, at most some percent slower."""


@dataclass(frozen=True)
class Packed:
    """A layer for oneDNN: called like `linear`, without weights.

    Attributes:
        weight: in oneDNN's layout. bias: `[out]`.
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor, *, relu: bool = False, add: Tensor | None = None) -> Tensor:
        fused = torch.ops.mkldnn._linear_pointwise
        if add is not None:
            return fused.binary(x, add, self.weight, self.bias, "add")
        return fused.default(x, self.weight, self.bias, "relu" if relu else "none", [], "")


class Norm(nn.LayerNorm):
    """LayerNorm whose scale and shift the layers after it may have absorbed (see `pack`)."""

    absorbed = False

    def forward(self, x: Tensor) -> Tensor:
        if self.absorbed:
            return torch.layer_norm(x, self.normalized_shape, None, None, self.eps)
        return super().forward(x)


def pack(weight: Tensor, bias: Tensor, norm: Norm | None = None) -> Packed | None:
    """Packs `[out, in]` and `[out]` as they are now; None where oneDNN does not compute with them.

    The scale and shift of `norm`, the layer before, become part of the copy: half of a LayerNorm's time.
    """
    packs = _packs(weight)
    if norm is not None:
        norm.absorbed = packs
    if not packs:
        return None
    if norm is not None:
        bias = (bias.float() + weight.float() @ norm.bias.float()).to(bias.dtype)
        weight = (weight.float() * norm.weight.float()).to(weight.dtype)
    return Packed(torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS), bias)


def _packs(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32


def linear(
    x: Tensor, weight: Tensor, bias: Tensor, *, relu: bool = False, add: Tensor | None = None
) -> Tensor:
    """`W x + b`, then ReLU, or `add` `[B, out]` added: `[B, in] -> [B, out]`."""
    x = F.linear(x, weight, bias)
    if relu:
        x = F.relu(x, inplace=True)
    return x if add is None else add + x


def residual(x: Tensor, norm: Norm, inner: Dense, outer: Dense, add: Tensor) -> Tensor:
    """`add + W2 relu(W1 LN(x))`: `[B, in] -> [B, out]`."""
    if inner.packed is None or outer.packed is None:
        return outer(inner(norm(x), relu=True), add=add)
    # The same without three calls of modules, which at one root are felt.
    x = torch.layer_norm(x, norm.normalized_shape, None, None, norm.eps)
    return outer.packed(inner.packed(x, relu=True), add=add)


class Dense(nn.Linear):
    """A linear layer that can run packed. The packed copy is in no state dict."""

    packed: Packed | None = None

    def pack(self, norm: Norm | None = None) -> None:
        """Packs the weights as they are now, with those of `norm` before it (see `pack`)."""
        self.packed = pack(self.weight, self.bias, norm)

    def forward(self, x: Tensor, relu: bool = False, add: Tensor | None = None) -> Tensor:
        """`W x + b`, then ReLU, or `add` `[B, out]` added: `[B, in] -> [B, out]`."""
        if self.packed is not None:
            return self.packed(x, relu=relu, add=add)
        return linear(x, self.weight, self.bias, relu=relu, add=add)
