"""Targets from windows of experience: n-step returns and masks (docs/algorithm.md, "Targets")."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Masks(NamedTuple):
    """Which parts of a window are real; see `Targets` for each field's meaning."""

    reward: Tensor
    value: Tensor
    policy: Tensor
    latent: Tensor


def masks(length: Tensor, terminated: Tensor, unroll: int) -> Masks:
    """Masks of windows with `length` `[B]` real steps, some of which end in a termination `[B]`.

    After a termination rewards and values are known to be zero; after a time limit nothing is known.
    """
    position = torch.arange(unroll + 1, device=length.device)
    inside = position < length.unsqueeze(1)
    known = inside | terminated.unsqueeze(1)
    latent = position[1:] <= length.unsqueeze(1)
    return Masks(known[:, :unroll].float(), known.float(), inside.float(), latent.float())


def n_step_returns(
    reward: Tensor, bootstrap: Tensor, length: Tensor, terminated: Tensor, discount: float
) -> Tensor:
    """n-step TD targets `sum_i discount^i r_{k+i} + discount^m V(o_{k+m})` for every `k`.

    `m` is `n`, or the steps left in the episode if those are fewer: a time limit bootstraps from the
    last observation, a termination does not bootstrap.

    Args:
        reward: `[B, U + n]`, zero past the end of the episode.
        bootstrap: `[B, U + 1]` values of the observation `n` steps after each position, or of the
            episode's last observation if that comes first.
        length: `[B]` real steps in the window.
        terminated: `[B]` whether the window's last real step terminated the episode.
        discount: a step.

    Returns:
        `[B, U + 1]`.
    """
    positions = bootstrap.shape[1]
    steps = reward.shape[1] - positions + 1
    powers = discount ** torch.arange(steps, device=reward.device, dtype=reward.dtype)
    sums = (reward.unfold(1, steps, 1) * powers).sum(-1)
    left = (length.unsqueeze(1) - torch.arange(positions, device=length.device)).clamp(0, steps)
    ends = terminated.unsqueeze(1) & (
        length.unsqueeze(1) <= torch.arange(positions, device=length.device) + steps
    )
    return sums + torch.where(ends, 0.0, discount ** left.to(reward.dtype) * bootstrap)
