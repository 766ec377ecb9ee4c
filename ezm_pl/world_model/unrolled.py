"""Transitions as the learner computes them: all steps of an unroll in one node of the graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ezm_pl.world_model.layers import ResidualBlock, Transition
from ezm_pl.world_model.residual import Residuals, parameters_of, weights_wanted, working_dtype


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
        together = torch.cat([x.view(*latent.shape[:-1], -1) for x in (latent, *extras)], -1)
        return self._from(together.flatten(0, -2), None, 1.0).squeeze(1)

    def unroll(self, latent: Tensor, *extras: Tensor, share: float = 1.0) -> Tensor:
        """Latents `[B, U, S]` of `U` steps, from `[B, S]` and extras `[B, U, *]`.

        Args:
            latent, extras: where it starts, and what each step reads beside the latent.
            share: what each latent passes on of its gradient.
        """
        return self._from(latent, torch.cat(extras, -1) if len(extras) > 1 else extras[0], share)

    def _from(self, start: Tensor, extras: Tensor | None, share: float) -> Tensor:
        """As `_Unroll`."""
        (plain,) = self._plain
        blocks = [each for each in plain.blocks if isinstance(each, ResidualBlock)]
        dtype = working_dtype(plain.inner.weight)
        layers: list[Transition | ResidualBlock] = [plain, *blocks]
        parameters = [p for layer in layers for p in parameters_of(layer, dtype)]
        inputs = start.to(dtype), None if extras is None else extras.to(dtype)
        unrolled: Tensor = _Unroll.apply(plain.norm.eps, share, *inputs, *parameters)
        return unrolled


def unrolled(transition: nn.Module) -> UnrolledTransition:
    """A transition in this form, if it is not already."""
    if isinstance(transition, UnrolledTransition):
        return transition
    assert isinstance(transition, Transition)
    return UnrolledTransition(transition)


class _Unroll(torch.autograd.Function):
    """The steps of a transition and of the blocks behind it, `[B, U, S]`.

    From latents `[B, S]` and extras `[B, U, *]`; without these one step from both side by side, `[B, S + *]`.
    """

    @staticmethod
    def forward(
        ctx: Any, eps: float, share: float, start: Tensor, extras: Tensor | None, *parameters: Tensor
    ) -> Tensor:
        rows, steps = len(start), 1 if extras is None else extras.shape[1]
        layers = Residuals(parameters, eps, steps, rows)
        ctx.layers, ctx.share, ctx.several = layers, share, extras is not None
        size, last = parameters[2].shape[0], len(layers.layers) - 1
        inputs = start.unsqueeze(0)
        if extras is not None:
            # What each step reads, `[latent, extras]`; its latent is written where the next one reads it.
            inputs = start.new_empty(steps + 1, rows, size + extras.shape[2])
            inputs[0, :, :size], inputs[:-1, :, size:] = start, extras.transpose(0, 1)
        latents = [each[:, :size] for each in inputs.unbind()]
        for k in range(steps):
            x, latent = inputs[k], latents[k]
            for i in range(last + 1):
                out = latents[k + 1] if ctx.several and i == last else None
                x = latent = layers.forward(i, k, x, latent, out)
        return inputs[1:, :, :size].transpose(0, 1) if ctx.several else latent.unsqueeze(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | float | None, ...]:
        layers, share = ctx.layers, ctx.share
        whole, of_output = layers.begin_backward()
        count, steps, _, size = whole.shape
        torch.mul(gradients[0].transpose(0, 1), share, out=whole[-1])
        of_extras, of_latent = [], None
        for k in reversed(range(steps)):
            if of_latent is not None:
                of_output[-1][k].add_(of_latent, alpha=share)
            for i in reversed(range(1, count)):
                torch.add(of_output[i][k], layers.backward(i, k), out=of_output[i - 1][k])
            of_input = layers.backward(0, k)
            of_latent = of_input[:, :size].add_(of_output[0][k])
            of_extras.append(of_input[:, size:])
        of_start = of_latent if ctx.several else of_input
        extras = torch.stack(of_extras[::-1], 1) if ctx.needs_input_grad[3] else None
        if not weights_wanted(ctx, 2):
            return None, None, of_start, extras, *[None] * len(ctx.needs_input_grad[4:])
        return None, None, of_start, extras, *layers.gradients()
