"""`FusedNetworks`: a frozen world model's forward passes in few operations.

At small batches a search costs the number of its operations. So here LayerNorms are absorbed by the layers
after them, parallel heads are batched products, and what several layers read is put together once.
`products.py` has the two kinds of linear layers: BLAS products, and oneDNN's for large ones on a CPU.

Shapes: `B` positions, `S` latent, `E` task embedding, `A` actions, `Z` atoms. A search state is
`[B, S + E + 3A]` in float32: latent, task embedding, then the policy's mean, log-std and mask.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ezm_pl.world_model.layers import ResidualBlock, Transition, normalised
from ezm_pl.world_model.model import WorldModel
from ezm_pl.world_model.products import Kind, heads_of, linear, residual_pair
from ezm_pl.world_model.scalars import expected


class _Residual:
    """`other + W2 relu(W1 LN(x))`.

    Args:
        plain: the layer. columns: the order in which its inputs come here.
    """

    def __init__(self, plain: ResidualBlock | Transition, kind: Kind, columns: Tensor | None = None) -> None:
        norm, weight = plain.norm, plain.inner.weight.float()
        self.shape, self.eps = norm.normalized_shape, norm.eps
        bias = plain.inner.bias.float() + weight @ norm.bias.float()
        weight = weight * norm.weight.float()
        if columns is not None:
            weight = weight[:, columns]
        self.products = residual_pair(weight, bias, plain.outer.weight, plain.outer.bias, kind)

    def __call__(self, x: Tensor, other: Tensor, out: Tensor | None = None) -> Tensor:
        """`x` `[B, in]`, `other` `[B, out]`."""
        inner, outer = self.products
        return outer.added_to(other, inner.relu(torch.layer_norm(x, self.shape, None, None, self.eps)), out)


class _Transitions:
    """The `Transition`s of dynamics and reward, whose blocks have one shape, from inputs that come as one.

    Where `kind.paired`, both blocks are one batch of products.

    Args:
        plain: both. columns: the orders in which their inputs come here.
    """

    def __init__(self, plain: Sequence[Transition], kind: Kind, columns: Sequence[Tensor]) -> None:
        self.first = [_Residual(each, kind, order) for each, order in zip(plain, columns, strict=True)]
        blocks = list(zip(*(_blocks(each.blocks, kind) for each in plain), strict=True))
        self.apart = [] if kind.paired else blocks
        self.together = [_Pair(*both) for both in blocks] if kind.paired else []

    def __call__(self, dynamics: Tensor, reward: Tensor, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Both inputs `[B, S + ...]` and their first part, latents `[B, S]`, to both outputs `[B, S]`."""
        first, second = self.first
        if self.apart:
            dynamics, reward = first(dynamics, latent), second(reward, latent)
            for one, other in self.apart:
                dynamics, reward = one(dynamics, dynamics), other(reward, reward)
            return dynamics, reward
        both = latent.new_empty(2, *latent.shape)
        first(dynamics, latent, both[0])
        second(reward, latent, both[1])
        for pair in self.together:
            both = pair(both)
        return both[0], both[1]


class _Pair:
    """Two residual blocks of BLAS products as one batch."""

    def __init__(self, first: _Residual, second: _Residual) -> None:
        self.shape, self.eps = first.shape, first.eps
        parts = [
            (inner.weight, inner.bias, outer.weight) for inner, outer in (first.products, second.products)
        ]
        self.inner, bias, self.outer = (torch.stack(part) for part in zip(*parts, strict=True))
        self.bias = bias.unsqueeze(1)

    def __call__(self, x: Tensor) -> Tensor:
        """`[2, B, S]`."""
        normed = torch.layer_norm(x, self.shape, None, None, self.eps)
        return torch.baddbmm(x, torch.baddbmm(self.bias, normed, self.inner).relu_(), self.outer)


def _blocks(layers: nn.Sequential, kind: Kind) -> list[_Residual]:
    return [_Residual(layer, kind) for layer in layers if isinstance(layer, ResidualBlock)]


class FusedNetworks:
    """What a search computes of a frozen `WorldModel(..., inference=True)`.

    Args:
        model: weights and sizes, read once.
        kind: of the linear layers, and what they compute in.

    Attributes:
        tensors: all that it computes with, in a fixed order.
    """

    def __init__(self, model: WorldModel, kind: Kind) -> None:
        spec, mask, self.kind = model.spec, model.action_mask.float(), kind
        latent, embedding, actions = spec.latent_size, spec.task_embedding_size, mask.shape[1]
        self.latent, self.actions, self.floor = latent, actions, spec.value_floor
        self.uses = {part: embedding * used for part, used in model.embedding_used.items()}
        self.embedding = embedding if any(self.uses.values()) else 0
        self.decoding = model.scalar.decoding.float().clone()
        self.task = torch.cat([model.capped_embedding().float()[:, : self.embedding], mask], 1)
        self.mean = model.normalizer.mean.clone()
        self.variance = model.normalizer.variance.clone()

        first, norm = model.encoder[0], model.encoder[1]
        assert isinstance(first, nn.Linear) and isinstance(norm, nn.LayerNorm)
        self.encoder, self.encoder_norm = linear(first.weight, first.bias, kind), _Norm(norm, kind)
        self.encoder_blocks = _blocks(model.encoder, kind)
        # The world model's inputs end with the embedding, the search state's come before the action.
        self.transitions = _Transitions(
            [model.dynamics, model.reward_trunk],
            kind,
            [
                _columns(latent, actions, self.uses["dynamics"], mask),
                _columns(latent, spec.action_embedding_size, self.uses["reward"], mask),
            ],
        )
        first, norm = model.action_encoder[0], model.action_encoder[1]
        assert isinstance(first, nn.Linear) and isinstance(norm, nn.LayerNorm)
        columns = _columns(0, actions, self.uses["reward"], mask)
        self.action_encoder = linear(first.weight[:, columns], first.bias, kind)
        self.action_norm = _Norm(norm, kind)
        self.trunk = _blocks(model.trunk, kind)
        norm = model.trunk[-1]
        assert isinstance(norm, nn.LayerNorm)
        self.features_eps = norm.eps
        bounds = model.bounds
        half = (bounds.max_log_std - bounds.min_log_std) / 2
        ones = torch.ones_like(mask[0])
        bound = bounds.max_mean or 1.0
        self.bounded_mean = bounds.max_mean is not None
        # (mean, log_std) = offset + scale * tanh(slope * raw + shift), or the mean is the raw one.
        slope, shift = torch.cat([ones / bound, ones]), torch.cat([0 * ones, ones * bounds.shift])
        policy = copy.deepcopy(model.policy_head).float()
        policy.weights[2].mul_(slope.unsqueeze(1))
        policy.biases[2].mul_(slope).add_(shift)
        self.heads = heads_of(model.value_heads, policy, model.reward_head, norm, kind)
        self.policy_scale = torch.cat([ones * bound, ones * half])
        self.policy_offset = torch.cat([0 * ones, ones * (bounds.min_log_std + half)])
        self.tensors = list(_tensors(vars(self)))

    def load(self, other: FusedNetworks) -> None:
        """Takes the weights of another one of the same kind: BLAS products' in place, for captured graphs."""
        if self.kind.packed:  # a packed weight cannot be written to
            vars(self).update(vars(other))
        elif self is not other:
            for mine, theirs in zip(self.tensors, other.tensors, strict=True):
                mine.copy_(theirs)
            self.heads.drawn = other.heads.drawn

    def with_tensors(self, tensors: Sequence[Tensor]) -> FusedNetworks:
        """The same computation with others in the place of `self.tensors`."""
        return copy.deepcopy(self, {id(a): b for a, b in zip(self.tensors, tensors, strict=True)})

    def encode(self, observation: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
        """Observations `[B, O]` of tasks `[B]` to latents `[B, S]`; the tasks' rows `[B, E + A]`."""
        x = normalised(observation, self.mean, self.variance)
        rows = self.task.index_select(0, task)
        if self.uses["representation"]:
            x = self._joined(x, rows[:, : self.embedding])
        x = self.encoder_norm(self.encoder(x.to(self.kind.dtype))).tanh_()
        for block in self.encoder_blocks:
            x = block(x, x)
        return x, rows

    def features(self, latent: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """What value and policy heads read `[B, S + E]`, and latent and embedding side by side."""
        known = self._joined(latent, embedding) if self.embedding else latent
        x = known if self.uses["value_policy"] else latent
        for block in self.trunk:
            x = block(x, x)
        return torch.layer_norm(x, x.shape[-1:], None, None, self.features_eps), known

    def root(self, observation: Tensor, task: Tensor, heads: Sequence[int]) -> tuple[Tensor, Tensor]:
        """As `InferenceModel.root`."""
        latent, rows = self.encode(observation, task)
        features, known = self.features(latent, rows[:, : self.embedding])
        logits, raw = self.heads(features, None, heads)
        mask = rows[:, self.embedding :]
        return torch.cat([known, self._policy(raw), mask], -1), self._value(self._decode(logits))

    def step(self, state: Tensor, action: Tensor, heads: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """As `InferenceModel.step`."""
        size, mask = self.latent + self.embedding, state[:, -self.actions :]
        whole = self._joined(state[:, :size], action)
        known, latent, action = whole[:, :size], whole[:, : self.latent], whole[:, size:]
        x = whole if self.uses["dynamics"] else torch.cat([latent, action], -1)
        base, encoded = (known, whole[:, self.latent :]) if self.uses["reward"] else (latent, action)
        encoded = self.action_norm(self.action_encoder(encoded)).tanh_()
        latent, reward = self.transitions(x, torch.cat([base, encoded], -1), latent)
        features, known = self.features(latent, known[:, self.latent :])
        logits, raw = self.heads(features, reward, heads)
        scalars = self._decode(logits)
        state = torch.cat([known, self._policy(raw), mask], -1)
        return state, scalars[-1], self._value(scalars[:-1])

    def policy_only(self, observation: Tensor, task: Tensor) -> Tensor:
        """The policy's mean, log-std and mask `[B, 3A]`, without a value."""
        latent, rows = self.encode(observation, task)
        features, _ = self.features(latent, rows[:, : self.embedding])
        mask = rows[:, self.embedding :]
        return torch.cat([self._policy(self.heads.policy(features)), mask], -1)

    def _joined(self, *parts: Tensor) -> Tensor:
        """`[B, *]` side by side, in the dtype that the layers compute in."""
        whole = parts[0].new_empty(parts[0].shape[0], sum(x.shape[1] for x in parts), dtype=self.kind.dtype)
        return torch.cat(parts, -1, out=whole)

    def _policy(self, raw: Tensor) -> Tensor:
        """Raw outputs, overwritten here, to mean and log-std `[B, 2A]`."""
        (raw if self.bounded_mean else raw[:, self.actions :]).tanh_()
        return torch.addcmul(self.policy_offset, raw, self.policy_scale)

    def _decode(self, logits: Tensor) -> Tensor:
        """As `CategoricalScalar.decode`."""
        return expected(logits.softmax(-1), self.decoding)

    def _value(self, each: Tensor) -> Tensor:
        """Values `[H, B]` of single heads to what the search uses of them, `[B]`."""
        value = each.amin(0)
        return value if self.floor is None else value.clamp_(min=self.floor)


class _Norm:
    """A LayerNorm with scale and shift."""

    def __init__(self, plain: nn.LayerNorm, kind: Kind) -> None:
        self.weight, self.bias = (p.detach().to(kind.dtype) for p in (plain.weight, plain.bias))
        self.eps = plain.eps

    def __call__(self, x: Tensor) -> Tensor:
        return torch.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)


def _columns(latent: int, extra: int, embedding: int, like: Tensor) -> Tensor:
    """Where inputs (latent, embedding, extra) are among (latent, extra, embedding)."""
    order = [
        *range(latent),
        *range(latent + extra, latent + extra + embedding),
        *range(latent, latent + extra),
    ]
    return torch.tensor(order, device=like.device)


def _tensors(part: object) -> Iterator[Tensor]:
    """All tensors that an object of this module or of `products.py` holds, in a fixed order."""
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, dict):
        yield from _tensors(list(part.values()))
    elif isinstance(part, list | tuple):
        for each in part:
            yield from _tensors(each)
    elif hasattr(part, "__dict__"):
        yield from _tensors(vars(part))
