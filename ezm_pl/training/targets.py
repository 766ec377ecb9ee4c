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
    inside = torch.arange(unroll + 1, device=length.device) < length.unsqueeze(1)
    value, policy = (inside | terminated.unsqueeze(1)).float(), inside.float()
    # The observation after a step is real where the step is.
    return Masks(value[:, :unroll], value, policy, policy[:, :unroll])


def ends(length: Tensor, terminated: Tensor, unroll: int, td: int, discount: float) -> tuple[Tensor, Masks]:
    """What follows from where windows end: the discounts `[B, U + 1]` of their bootstraps, and their masks.

    Args:
        length, terminated: as for `masks`; `length` is at most `U + 1 + n`.
        unroll, td, discount: `U`, `n`, and that of a step.
    """
    table = _table(unroll, td, discount, length.device)
    rows = table.index_select(0, torch.add(length, terminated, alpha=len(table) // 2))
    discounts, value, policy = rows.unbind(1)
    return discounts, Masks(value[:, :unroll], value, policy, policy[:, :unroll])


@lru_cache
def _table(unroll: int, td: int, discount: float, device: torch.device) -> Tensor:
    """Discounts, masks of values and of decisions `[2 * L, 3, U + 1]`: by length, then of terminated ones."""
    lengths, position = torch.arange(unroll + td + 2), torch.arange(unroll + 1)
    length, terminated = lengths.repeat(2), torch.arange(2 * len(lengths)) >= len(lengths)
    left = length.unsqueeze(1) - position
    discounts = discount ** left.clamp(0, td).float() * ~(terminated.unsqueeze(1) & (left <= td))
    real = masks(length, terminated, unroll)
    return torch.stack([discounts, real.value, real.policy], 1).to(device)


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
    unroll = bootstrap.shape[1] - 1
    discounts, _ = ends(length, terminated, unroll, reward.shape[1] - unroll, discount)
    return discounted_sums(reward, bootstrap, discounts, discount)


def discounted_sums(reward: Tensor, bootstrap: Tensor, discounts: Tensor, discount: float) -> Tensor:
    """`n_step_returns` from the bootstraps' discounts that `ends` gives."""
    steps = reward.shape[1] - bootstrap.shape[1] + 1
    sums = (reward.unfold(1, steps, 1) * _powers(steps, discount, reward.device)).sum(-1)
    return torch.addcmul(sums, discounts, bootstrap)


@lru_cache
def _powers(steps: int, discount: float, device: torch.device) -> Tensor:
    return discount ** torch.arange(steps, device=device, dtype=torch.float32)
