"""Transitions as the learner computes them: all steps of an unroll in one node of the graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ezm_pl.world_model.layers import ResidualBlock, Transition
from ezm_pl.world_model.residual import (
    PARAMETERS,
    Residuals,
    parameters_of,
    weights_wanted,
    working_dtype,
)


class UnrolledTransition(nn.Module):
    """A `Transition` in few operations, for one step or for several in a row.

    Args:
        plain: whose parameters it reads.
    """

    def __init__(self, plain: Transition) -> None:
        super().__init__()
        self._plain = [plain]  # its parameters are not this module's

    def forward(self, latent: Tensor, *extras: Tensor) -> Tensor:
        """As `Transition`, from `[..., S]` and extras `[..., *]` (or `[N, *]`) to `[N, S]`."""
        together = torch.cat([x.view(*latent.shape[:-1], -1) for x in extras], -1).flatten(0, -2)
        return self.unroll(latent.flatten(0, -2), together.unsqueeze(1)).squeeze(1)

    def unroll(self, latent: Tensor, *extras: Tensor, share: float = 1.0) -> Tensor:
        """Latents `[B, U, S]` of `U` steps, from `[B, S]` and extras `[B, U, *]`.

        Args:
            latent, extras: where it starts, and what each step reads beside the latent.
            share: what each latent passes on of its gradient.
        """
        (plain,) = self._plain
        blocks = [each for each in plain.blocks if isinstance(each, ResidualBlock)]
        dtype = working_dtype(plain.inner.weight)
        layers: list[Transition | ResidualBlock] = [plain, *blocks]
        parameters = [p for layer in layers for p in parameters_of(layer, dtype)]
        inputs = latent.to(dtype), (torch.cat(extras, -1) if len(extras) > 1 else extras[0]).to(dtype)
        unrolled: Tensor = _Unroll.apply(plain.norm.eps, share, *inputs, *parameters)
        return unrolled


def unrolled(transition: nn.Module) -> UnrolledTransition:
    """A transition in this form, if it is not already."""
    if isinstance(transition, UnrolledTransition):
        return transition
    assert isinstance(transition, Transition)
    return UnrolledTransition(transition)


class _Unroll(torch.autograd.Function):
    """The steps of a transition and of the blocks behind it."""

    @staticmethod
    def forward(
        ctx: Any, eps: float, share: float, latent: Tensor, extras: Tensor, *parameters: Tensor
    ) -> Tensor:
        rows, steps, ctx.extras = extras.shape
        first = Residuals(parameters[:PARAMETERS], eps, steps, rows)
        blocks = Residuals(parameters[PARAMETERS:], eps, steps, rows)
        size = latent.shape[1]
        # What each step reads, `[latent, extras]`; a step's latent is written where the next one reads it.
        inputs = latent.new_empty(steps + 1, rows, size + ctx.extras)
        inputs[0, :, :size], inputs[:-1, :, size:] = latent, extras.transpose(0, 1)
        latents = [each[:, :size] for each in inputs.unbind()]
        last = len(blocks.layers) - 1
        for k in range(steps):
            latent = first.forward(0, k, inputs[k], latents[k])
            for i in range(last + 1):
                latent = blocks.forward(i, k, latent, latent, latents[k + 1] if i == last else None)
        ctx.first, ctx.blocks, ctx.share = first, blocks, share
        return inputs[1:, :, :size].transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | float | None, ...]:
        first, blocks, share = ctx.first, ctx.blocks, ctx.share
        (_, of_first), (whole, of_blocks) = first.begin_backward(), blocks.begin_backward()
        layers, steps, _, size = whole.shape
        torch.mul(gradients[0].transpose(0, 1), share, out=whole[-1])
        of_extras, of_latent = [], None
        for k in reversed(range(steps)):
            if of_latent is not None:
                of_blocks[-1][k].add_(of_latent, alpha=share)
            for i in reversed(range(layers)):
                before = of_blocks[i - 1][k] if i else of_first[0][k]
                torch.add(of_blocks[i][k], blocks.backward(i, k), out=before)
            beside, extras = first.backward(0, k).split([size, ctx.extras], 1)
            of_latent = of_first[0][k] + beside
            of_extras.append(extras)
        extras = torch.stack(of_extras[::-1], 1) if ctx.needs_input_grad[3] else None
        if not weights_wanted(ctx, 2):
            return None, None, of_latent, extras, *[None] * (PARAMETERS * (1 + layers))
        return None, None, of_latent, extras, *first.gradients(), *blocks.gradients()
