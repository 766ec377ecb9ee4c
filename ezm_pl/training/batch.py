"""What travels from the replay buffer to the losses.

Shapes: `B` positions, `U` unroll steps, `n` TD steps, `O` observation, `A` action, `R` candidates.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ezm_pl.replay import Windows


class Batch(NamedTuple):
    """Windows of experience as tensors; fields as in `ezm_pl.replay.Windows`."""

    task: Tensor
    observation: Tensor
    action: Tensor
    reward: Tensor
    length: Tensor
    terminated: Tensor
    return_scale: Tensor
    weight: Tensor
    age: Tensor
    replay_index: Tensor
    transition_id: Tensor

    @classmethod
    def from_windows(cls, windows: Windows) -> Batch:
        """Shares memory with the arrays of `windows`."""
        return cls(*(torch.from_numpy(getattr(windows, name)) for name in cls._fields))

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory, from where copies to a GPU need not be waited for."""
        return Batch(*(x.pin_memory() for x in self))


class Targets(NamedTuple):
    """What the losses compare with.

    Attributes:
        reward: `[B, U]`.
        value: `[B, U + 1]`.
        action: `[B, P, R, A]` candidate actions of the search, `P` the positions that are searched.
        action_weight: `[B, P, R]`, sums to 1: the search's choice or its improved policy.
        reward_mask: `[B, U]`, 1 where the reward is known.
        value_mask: `[B, U + 1]`, 1 where the value is known (also past a termination: zero).
        policy_mask: `[B, U + 1]`, 1 where a decision was taken.
        latent_mask: `[B, U]`, 1 where the observation after step `k` is real.
    """

    reward: Tensor
    value: Tensor
    action: Tensor
    action_weight: Tensor
    reward_mask: Tensor
    value_mask: Tensor
    policy_mask: Tensor
    latent_mask: Tensor
