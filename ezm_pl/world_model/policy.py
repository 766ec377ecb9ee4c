"""The squashed-Gaussian policy: `a = tanh(u)`, `u ~ N(mean, std)`, padded dimensions masked out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ezm_pl.world_model.closed_form import Entropy, Surprise

MAX_ACTION = 0.999
"""Actions are kept inside +-0.999, where the inverse of tanh is finite."""


@dataclass(frozen=True)
class PolicyBounds:
    """How raw network outputs become means and log-stds.

    Attributes:
        min_log_std, max_log_std: the range of the log-std.
        initial_log_std: log-std of a raw output of zero; None for the middle of the range.
        max_mean: soft bound of the mean before tanh; None for no bound.
    """

    min_log_std: float = -10.0
    max_log_std: float = 2.0
    initial_log_std: float | None = None
    max_mean: float | None = None

    @property
    def shift(self) -> float:
        """What is added to the raw log-std so that zero means `initial_log_std`."""
        if self.initial_log_std is None:
            return 0.0
        span = self.max_log_std - self.min_log_std
        return math.atanh(2 * (self.initial_log_std - self.min_log_std) / span - 1)


@dataclass(frozen=True)
class SquashedGaussian:
    """Distributions over actions.

    Attributes:
        mean, log_std: `[..., A]` of the Gaussian before tanh; in padded dimensions they mean nothing.
        mask: `[..., A]`, 1 for real action dimensions, 0 for padding.
    """

    mean: Tensor
    log_std: Tensor
    mask: Tensor

    @classmethod
    def from_raw(cls, raw: Tensor, mask: Tensor, bounds: PolicyBounds) -> SquashedGaussian:
        """From network outputs `[..., 2A]` and a mask `[..., A]`; computes in float32."""
        mean, log_std = raw.float().chunk(2, dim=-1)
        if bounds.max_mean is not None:
            mean = bounds.max_mean * torch.tanh(mean / bounds.max_mean)
        half = (bounds.max_log_std - bounds.min_log_std) / 2
        centre = bounds.min_log_std + half
        log_std = torch.rsub(torch.tanh(log_std + bounds.shift), centre, alpha=-half)  # centre + half * tanh
        return cls(mean, log_std, mask)

    def action(self, noise: Tensor) -> Tensor:
        """Actions for `noise` `[..., A]`, standard-normal or scaled for a wider one; zero where padded."""
        u = torch.addcmul(self.mean, noise, self.log_std.exp())
        return torch.tanh(u).clamp(-MAX_ACTION, MAX_ACTION) * self.mask

    @property
    def mode(self) -> Tensor:
        """`tanh(mean)`, `[..., A]`."""
        return torch.tanh(self.mean).clamp(-MAX_ACTION, MAX_ACTION) * self.mask

    def surprise(self, action: Tensor) -> Tensor:
        """Minus the log-density `[...]` of actions `[..., A]` over real dimensions; they get no gradient."""
        action = action.clamp(-MAX_ACTION, MAX_ACTION)
        surprise: Tensor = Surprise.apply(self.mean, self.log_std, self.mask, action)
        return surprise

    def entropy(self, noise: Tensor) -> Tensor:
        """Entropy over real dimensions, `[...]`: exact for the Gaussian, one sample for tanh's share."""
        entropy: Tensor = Entropy.apply(self.mean, self.log_std, self.mask, noise)
        return entropy
