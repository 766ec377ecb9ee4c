"""Policy improvement through the model's own gradient: `docs/algorithm.md`, "Pathwise policy improvement".

`Q(s, a) = r(s, a) + discount * V(g(s, a))`, and its gradient with respect to the action alone, divided by
the spread of Q, moves the policy. Related: SVG (Heess et al. 2015), Dreamer (Hafner et al. 2020).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ezm_pl.world_model import WorldModel
from ezm_pl.world_model.synchronised import sum_over_ranks

_NORMAL_5_TO_95 = 3.29
"""The distance between the 5% and the 95% quantile of a normal distribution, in standard deviations."""


def action_gradient(
    model: WorldModel, latent: Tensor, action: Tensor, task: Tensor, discount: float
) -> tuple[Tensor, Tensor]:
    """`dQ/da` `[B, A]` and `Q` `[B]` for latents `[B, S]`, actions `[B, A]` and tasks `[B]` (or `[B, E]`).

    Neither the model nor the latents get a gradient. V is the expected minimum of two value heads drawn
    at random. BatchNorm computes with its running statistics, as the search does.
    """
    action = action.detach().requires_grad_()
    latent, task = latent.detach(), task.detach()
    with torch.enable_grad(), _running_statistics(model.reward_head, model.value_heads):
        reward = model.reward_logits(latent, action, task)
        features = model.features(model.next_latent(latent, action, task), task)
        scalars = model.scalar.decode(torch.cat([reward.unsqueeze(0), model.value_logits(features)]))
        q = scalars[0] + discount * expected_minimum(scalars[1:])
        (slope,) = torch.autograd.grad(q.sum(), action)
    return slope, q.detach()


def expected_minimum(values: Tensor) -> Tensor:
    """The mean over all pairs of heads of the smaller value: `[H, B] -> [B]`."""
    heads = values.shape[0]
    # The i-th smallest of H values is the minimum of H - 1 - i pairs.
    pairs = torch.arange(heads - 1, -1, -1, device=values.device, dtype=values.dtype)
    return (values.sort(0).values * (pairs / pairs.sum()).unsqueeze(1)).sum(0)


class QSpread(nn.Module):
    """The running spread of Q per task, the same on all ranks: about its 5% to 95% range.

    Args:
        tasks: `T`.
        rate: weight of a new batch.
        floor: the smallest spread, in units of return.
    """

    variance: Tensor
    seen: Tensor

    def __init__(self, tasks: int, rate: float = 0.01, floor: float = 1.0) -> None:
        super().__init__()
        self.rate, self.floor = rate, floor
        self.register_buffer("variance", torch.zeros(tasks))
        self.register_buffer("seen", torch.zeros(tasks))

    @torch.no_grad()
    def forward(self, q: Tensor, task: Tensor, weight: Tensor) -> Tensor:
        """Takes in Q `[B]` of tasks `[B]` with weights `[B]` (0 or 1); the spreads `[B]`."""
        zeros = torch.zeros(2, len(self.variance), device=q.device)
        sums = sum_over_ranks(zeros.index_add(1, task, torch.stack([weight, weight * q])))
        count = sums[0].clamp(min=1)
        centred = weight * (q - (sums[1] / count)[task]).square()
        variance = sum_over_ranks(zeros[0].index_add(0, task, centred)) / count
        present = (sums[0] > 1).float()
        self.seen.add_(present)
        # Until 1 / rate batches have been seen: their plain mean.
        rate = present * torch.clamp(1 / self.seen.clamp(min=1), min=self.rate)
        self.variance.lerp_(variance, rate)
        return self.spread()[task]

    def spread(self) -> Tensor:
        """The spread of each task's Q `[T]`."""
        return (_NORMAL_5_TO_95 * self.variance.sqrt()).clamp(min=self.floor)


@contextmanager
def _running_statistics(*modules: nn.Module) -> Iterator[None]:
    before = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.train(training)
