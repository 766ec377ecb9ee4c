"""The building blocks of the world model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ezm_pl.world_model.closed_form import CapNorm
from ezm_pl.world_model.synchronised import BatchNorm, moments, ranks


class ResidualBlock(nn.Module):
    """`x + W2 relu(W1 LN(x))`, `[B, width] -> [B, width]`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(F.relu(self.inner(self.norm(x)), inplace=True))


def encoder_layers(inputs: int, latent: int, blocks: int) -> nn.Sequential:
    """The representation network, `[B, inputs] -> [B, latent]`."""
    return nn.Sequential(
        nn.Linear(inputs, latent),
        nn.LayerNorm(latent),
        nn.Tanh(),
        *(ResidualBlock(latent) for _ in range(blocks)),
    )


def cap_norm(embedding: Tensor) -> Tensor:
    """Task embeddings `[T, E]` scaled down to an L2 norm of at most 1."""
    capped: Tensor = CapNorm.apply(embedding)
    return capped


class Transition(nn.Module):
    """`s + W2 relu(W1 LN([s, extras]))`, then residual blocks: `[B, S]` and extras `[B, *] -> [B, S]`."""

    def __init__(self, latent: int, extras: int, blocks: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(latent + extras)
        self.inner = nn.Linear(latent + extras, latent)
        self.outer = nn.Linear(latent, latent)
        self.blocks = nn.Sequential(*(ResidualBlock(latent) for _ in range(blocks)))

    def forward(self, latent: Tensor, *extras: Tensor) -> Tensor:
        x = self.norm(torch.cat([latent, *extras], -1))
        return self.blocks(latent + self.outer(F.relu(self.inner(x), inplace=True)))


class Head(nn.Module):
    """Parallel MLPs `in -> hidden -> hidden -> out`, normalised before each ReLU.

    All heads read the same input. `folded` builds the inference form, which has no BatchNorm: its
    weights come from `fold`, and any subset of its heads can be computed.

    Args:
        inputs, hidden, outputs: layer widths.
        heads: number of independent heads `H`.
        zero_last: start with all outputs zero.
        folded: the inference form.
        norm: BatchNorm, or LayerNorm, which is the same function in training and in the search.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        *,
        heads: int = 1,
        zero_last: bool = False,
        folded: bool = False,
        norm: Literal["batch", "layer"] = "batch",
    ) -> None:
        super().__init__()
        self.heads, self.folded, self.hidden = heads, folded, hidden
        sizes = [(inputs, hidden), (hidden, hidden), (hidden, outputs)]
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(heads, o, i)) for i, o in sizes)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(heads, o)) for _, o in sizes)
        for weight in self.weights:
            for head in weight:
                nn.init.kaiming_uniform_(head, a=5**0.5)
        if zero_last:
            nn.init.zeros_(self.weights[2])
        norms = 2 if norm == "batch" and not folded else 0
        self.norms = nn.ModuleList(BatchNorm(heads * hidden) for _ in range(norms))
        layer_norms = 2 if norm == "layer" else 0
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(heads, hidden)) for _ in range(layer_norms))
        self.shifts = nn.ParameterList(nn.Parameter(torch.zeros(heads, hidden)) for _ in range(layer_norms))

    def forward(self, x: Tensor, heads: Sequence[int] | None = None) -> Tensor:
        """`[B, in] -> [H', B, out]`, `H'` the heads asked for (all by default)."""
        if self.folded:
            each = [self._one(x, head) for head in (range(self.heads) if heads is None else heads)]
            return torch.stack(each) if len(each) > 1 else each[0].unsqueeze(0)
        if heads is not None:
            raise ValueError("some of the heads can be computed in the folded form only")
        for layer in range(3):
            weight, bias = self.weights[layer], self.biases[layer]
            if layer == 0:  # one input for all heads: one wide matrix product
                x = F.linear(x, weight.flatten(0, 1), bias.flatten())
            elif self.heads > 1:
                x = torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))
            else:
                x = F.linear(x, weight.squeeze(0), bias.squeeze(0))
            if layer < 2 and self.scales:
                x = x.unflatten(-1, (self.heads, -1)).transpose(0, 1) if layer == 0 else x
                scale, shift = self.scales[layer], self.shifts[layer]
                if self.heads == 1:
                    x = F.layer_norm(x, (self.hidden,), scale.squeeze(0), shift.squeeze(0))
                else:
                    x = torch.addcmul(shift.unsqueeze(1), F.layer_norm(x, (self.hidden,)), scale.unsqueeze(1))
                x = F.relu(x, inplace=True)
            elif layer < 2:
                wide = x if layer == 0 else x.transpose(0, 1).flatten(1)
                x = F.relu(self.norms[layer](wide), inplace=True)
                x = x.unflatten(-1, (self.heads, -1)).transpose(0, 1)
        return x

    def _one(self, x: Tensor, head: int) -> Tensor:
        """A single head in the folded form, `[B, in] -> [B, out]`."""
        for layer in range(3):
            x = F.linear(x, self.weights[layer][head], self.biases[layer][head])
            if layer < 2 and self.scales:
                x = F.layer_norm(x, (self.hidden,), self.scales[layer][head], self.shifts[layer][head])
            if layer < 2:
                x = F.relu(x, inplace=True)
        return x

    @torch.no_grad()
    def fold(self, trained: Head) -> None:
        """Takes the weights of a trained head, with BatchNorm's running statistics multiplied in."""
        for layer in range(3):
            weight, bias = trained.weights[layer].detach(), trained.biases[layer].detach()
            if layer < 2 and trained.norms:
                norm = trained.norms[layer]
                assert isinstance(norm, BatchNorm)
                assert norm.running_var is not None and norm.running_mean is not None
                scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).view_as(bias)
                weight = weight * scale.unsqueeze(-1)
                bias = (bias - norm.running_mean.view_as(bias)) * scale + norm.bias.view_as(bias)
            self.weights[layer].copy_(weight)
            self.biases[layer].copy_(bias)
        for mine, theirs in zip(
            [*self.scales, *self.shifts], [*trained.scales, *trained.shifts], strict=True
        ):
            mine.copy_(theirs)


class RunningNorm(nn.Module):
    """Normalises observations `[..., O]` by the mean and variance of all training batches seen.

    Statistics move in train mode by `update` only; they travel in the state dict.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("variance", torch.ones(size))
        self.register_buffer("count", torch.zeros(()))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Adds all ranks' batches `[N, O]` to the statistics (Chan et al. 1979); frozen in eval mode."""
        if not self.training:
            return
        rows: Tensor | int
        if ranks() == 1:
            variance, mean = torch.var_mean(x.float(), dim=0, correction=0)
            rows = x.shape[0]
        else:
            mean, variance, rows = (part.float() for part in moments(x.float()))
        self.count.add_(rows)
        share = rows / self.count
        before = mean - self.mean
        self.mean.lerp_(mean, share)
        spread = torch.addcmul(variance, before, mean - self.mean)  # the batch's, about both means
        self.variance.lerp_(spread, share)

    def forward(self, x: Tensor) -> Tensor:
        return normalised(x.flatten(0, -2), self.mean, self.variance).view_as(x)


def normalised(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Observations `[N, O]` by their mean and variance `[O]`, at most 10 deviations from the mean."""
    return F.batch_norm(x.to(mean.dtype), mean, variance, eps=1e-4).clamp(-10, 10)
