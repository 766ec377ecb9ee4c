"""Targets from windows of experience: n-step returns and masks (docs/algorithm.md, "Targets")."""

from __future__ import annotations

from functools import lru_cache
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
    inside = _positions(unroll + 1, length.device) < length.unsqueeze(1)
    value = (inside | terminated.unsqueeze(1)).float()
    policy = inside.float()
    # The observation after a step is real where the step is.
    return Masks(value[:, :unroll], value, policy, policy[:, :unroll])


@lru_cache
def _positions(count: int, device: torch.device) -> Tensor:
    return torch.arange(count, device=device)


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
        length: `[B]` real steps in the window, at most `U + 1 + n`.
        terminated: `[B]` whether the window's last real step terminated the episode.
        discount: a step.

    Returns:
        `[B, U + 1]`.
    """
    positions = bootstrap.shape[1]
    steps = reward.shape[1] - positions + 1
    powers, of_bootstrap = _discounts(positions, steps, discount, reward.device)
    rows = torch.add(length, terminated, alpha=len(of_bootstrap) // 2)
    sums = (reward.unfold(1, steps, 1) * powers).sum(-1)
    return torch.addcmul(sums, of_bootstrap.index_select(0, rows), bootstrap)


@lru_cache
def _discounts(positions: int, steps: int, discount: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of `n` rewards `[n]`; of bootstraps `[2 * L, U + 1]` by length, then the same of terminated windows."""
    powers = discount ** torch.arange(steps + 1, dtype=torch.float32)
    position = torch.arange(positions)
    length = torch.arange(positions + steps + 1).unsqueeze(1)
    bootstrap = powers[(length - position).clamp(0, steps)]
    terminated = bootstrap * (length > position + steps)
    return powers[:steps].to(device), torch.cat([bootstrap, terminated]).to(device)
