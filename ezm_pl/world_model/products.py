"""The linear layers of `FusedNetworks`, in two kinds.

- BLAS products of weights `[in, out]`: on a GPU, and on a CPU where layers or batches are small.
- oneDNN's, on weights in a layout of its own, with ReLU or sum: on a CPU. A call costs about 15 us more;
  large products of 512 x 512 take 0.4 of the time in bfloat16, 0.7 of it in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ezm_pl.world_model.layers import Head

_ROWS = 64
"""Batch that oneDNN's layout is chosen for; others run with it too, at most some percent slower."""


@dataclass(frozen=True)
class Kind:
    """How to compute.

    Attributes:
        dtype: of weights and layers.
        packed: whether oneDNN multiplies.
        paired: whether the blocks of dynamics and reward are one batch, which is fewer operations: on a GPU.
            A processor multiplies one after the other faster.
    """

    dtype: torch.dtype
    packed: bool
    paired: bool = False


def packs(weight: Tensor) -> bool:
    """Whether oneDNN computes with packed weights of this type on this device."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32


class Linear(Protocol):
    """`W x + b`, `[B, in] -> [B, out]`."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor: ...

    def relu(self, x: Tensor) -> Tensor:
        """`relu(W x + b)`."""

    def added_to(self, other: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
        """`other + W x + b`, written to `out` if there is one."""


class _Blas:
    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        self.weight = weight.detach().t().to(dtype).contiguous()
        self.bias = bias.detach().to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)

    def relu(self, x: Tensor) -> Tensor:
        return torch._addmm_activation(self.bias, x, self.weight)

    def added_to(self, other: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Without `b`, which `residual_pair` has put into the weights."""
        return torch.addmm(other, x, self.weight, out=out)


class _OneDnn:
    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        contiguous = weight.detach().to(dtype).contiguous()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(contiguous, _ROWS)
        self.bias = bias.detach().to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, "none", [], "")

    def relu(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, "relu", [], "")

    def added_to(self, other: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
        found: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, "add")
        return found if out is None else out.copy_(found)


def linear(weight: Tensor, bias: Tensor, kind: Kind) -> Linear:
    """A layer of weights `[out, in]` and a bias `[out]`."""
    return (_OneDnn if kind.packed else _Blas)(weight, bias, kind.dtype)


def residual_pair(
    inner: Tensor, inner_bias: Tensor, outer: Tensor, outer_bias: Tensor, kind: Kind
) -> tuple[Linear, Linear]:
    """Two layers with a ReLU between them, the second one used by `added_to` only."""
    if not kind.packed:
        # A product adds one thing only. So the second bias is the weight of a hidden unit that is always 1
        # (eight units: products like such widths).
        outer = torch.cat([outer.float(), outer_bias.float().unsqueeze(1), outer.new_zeros(len(outer), 7)], 1)
        inner = torch.cat([inner, inner.new_zeros(8, inner.shape[1])])
        inner_bias = torch.cat([inner_bias, torch.ones_like(inner_bias[:1]), inner_bias.new_zeros(7)])
    return linear(inner, inner_bias, kind), linear(outer, outer_bias, kind)


class Heads(Protocol):
    """All heads of a search step. `heads`: the value heads that count; `drawn`: those it is ready for."""

    drawn: tuple[int, ...]

    def __call__(
        self, features: Tensor, reward: Tensor | None, heads: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Logits `[H', B, Z]` of the value heads, then of the reward where it is given; the raw policy.

        All in float32.

        Args:
            features: `[B, S + E]`. reward: the reward trunk's output `[B, S]`.
        """

    def policy(self, features: Tensor) -> Tensor:
        """The policy's raw output `[B, 2A]`."""

    def draw(self, heads: Sequence[int]) -> None:
        """Gets ready for these value heads."""


def heads_of(values: Head, policy: Head, reward: Head, norm: nn.LayerNorm, kind: Kind) -> Heads:
    """The heads, the first two of which read features that lack the scale and shift of `norm`."""
    return (_SeparateHeads if kind.packed else _BatchedHeads)(values, policy, reward, norm, kind.dtype)


def _absorbed(head: Head, index: int, norm: nn.LayerNorm | None) -> tuple[Tensor, Tensor]:
    """First layer of a head with the scale and shift of `norm` multiplied in."""
    weight, bias = head.weights[0][index].float(), head.biases[0][index].float()
    if norm is None:
        return weight, bias
    return weight * norm.weight.float(), bias + weight @ norm.bias.float()


class _SeparateHeads:
    """One head after the other, whichever are asked for."""

    drawn: tuple[int, ...]

    def __init__(
        self, values: Head, policy: Head, reward: Head, norm: nn.LayerNorm, dtype: torch.dtype
    ) -> None:
        def mlp(head: Head, index: int, norm: nn.LayerNorm | None) -> _Mlp:
            return _Mlp(head, index, norm, dtype)

        self.drawn = ()
        self.values = [mlp(values, index, norm) for index in range(values.heads)]
        self._policy, self.reward = mlp(policy, 0, norm), mlp(reward, 0, None)

    def policy(self, features: Tensor) -> Tensor:
        return self._policy(features).float()

    def draw(self, heads: Sequence[int]) -> None:
        """Nothing: each head is by itself."""

    def __call__(
        self, features: Tensor, reward: Tensor | None, heads: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        each = [self.values[head](features) for head in heads]
        if reward is not None:
            each.append(self.reward(reward))
        return torch.stack(each).float(), self.policy(features)


class _Mlp:
    """A head of oneDNN's layers."""

    def __init__(self, head: Head, index: int, norm: nn.LayerNorm | None, dtype: torch.dtype) -> None:
        later = [(head.weights[i][index], head.biases[i][index]) for i in (1, 2)]
        self.layers = [_OneDnn(w, b, dtype) for w, b in (_absorbed(head, index, norm), *later)]
        self.affine = [
            (scale[index].detach().to(dtype), shift[index].detach().to(dtype))
            for scale, shift in zip(head.scales, head.shifts, strict=True)
        ]

    def __call__(self, x: Tensor) -> Tensor:
        if not self.affine:
            return self.layers[2](self.layers[1].relu(self.layers[0].relu(x)))
        for layer, (scale, shift) in zip(self.layers[:2], self.affine, strict=True):
            x = F.layer_norm(layer(x), scale.shape, scale, shift).relu_()
        return self.layers[2](x)


class _BatchedHeads:
    """The drawn value heads, the policy and the reward as one batch of MLPs.

    All weights of a head are one row, with zeros where it is narrower: drawing a value head is one copy.
    """

    drawn: tuple[int, ...]

    def __init__(
        self, values: Head, policy: Head, reward: Head, norm: nn.LayerNorm, dtype: torch.dtype
    ) -> None:
        self.atoms, self.raw = values.weights[2].shape[1], policy.weights[2].shape[1]
        inputs, hidden = values.weights[0].shape[2], values.hidden
        self.hidden = hidden
        outputs = -(-max(self.atoms, self.raw) // 8) * 8
        shapes = [(inputs, hidden), (hidden, hidden), (hidden, outputs), *[(1, hidden)] * 2, (1, outputs)]
        shapes += [(1, hidden)] * 4 * bool(values.scales)

        def row(head: Head, index: int, norm: nn.LayerNorm | None) -> Tensor:
            first, bias = _absorbed(head, index, norm)
            parts = [first.t(), *(head.weights[i][index].t() for i in (1, 2))]
            parts += [b.unsqueeze(0) for b in (bias, head.biases[1][index], head.biases[2][index])]
            parts += [p[index].unsqueeze(0) for p in (*head.scales, *head.shifts)]
            padded = [
                F.pad(p.detach().float(), (0, wide - p.shape[1], 0, high - p.shape[0])).flatten()
                for p, (high, wide) in zip(parts, shapes, strict=True)
            ]
            return torch.cat(padded).to(dtype)

        self.values = torch.stack([row(values, index, norm) for index in range(values.heads)])
        self.drawn = (0, 1)
        self.rows = torch.stack([row(policy, 0, norm), *self.values[:2], row(reward, 0, None)])
        sizes = [high * wide for high, wide in shapes]
        parts = [part.view(4, *shape) for part, shape in zip(self.rows.split(sizes, 1), shapes, strict=True)]
        self.first, self.first_bias = parts[0][:3], parts[3][:3]
        self.policy_first = parts[0][0], parts[3][0]
        self.reward_first = parts[0][3, : reward.weights[0].shape[2]], parts[3][3]
        # Second and third layers of the first so many heads.
        self.later = {count: [part[:count] for part in parts[1:3] + parts[4:]] for count in (1, 3, 4)}

    def draw(self, heads: Sequence[int]) -> None:
        """Puts two other value heads into the batch."""
        if tuple(heads) != self.drawn:
            self.drawn = tuple(heads)
            for row, head in enumerate(heads):
                self.rows[row + 1].copy_(self.values[head])

    def __call__(
        self, features: Tensor, reward: Tensor | None, heads: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        self.draw(heads)
        count = 3 if reward is None else 4
        x = features.new_empty(count, features.shape[0], self.hidden)
        shared = features.expand(3, -1, -1)
        torch.baddbmm(self.first_bias, shared, self.first, out=x if reward is None else x[:3])
        if reward is not None:
            weight, bias = self.reward_first
            torch.addmm(bias, reward, weight, out=x[3])
        out = self._later(x)
        return out[1:, :, : self.atoms], out[0, :, : self.raw]

    def policy(self, features: Tensor) -> Tensor:
        weight, bias = self.policy_first
        return self._later(torch.addmm(bias, features, weight).unsqueeze(0))[0, :, : self.raw]

    def _later(self, x: Tensor) -> Tensor:
        """From the first layer's outputs `[n, B, H]` of the first heads to their outputs."""
        second, last, second_bias, last_bias, *affine = self.later[len(x)]
        x = torch.baddbmm(second_bias, self._activated(x, affine[0::2]), second)
        return torch.baddbmm(last_bias, self._activated(x, affine[1::2]), last).float()

    def _activated(self, x: Tensor, affine: Sequence[Tensor]) -> Tensor:
        if affine:
            scale, shift = affine
            x = torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), scale)
        return x.relu_()
