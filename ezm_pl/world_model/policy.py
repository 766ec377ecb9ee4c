"""The squashed-Gaussian policy: `a = tanh(u)`, `u ~ N(mean, std)`, padded dimensions masked out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
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
        mean, log_std: `[..., A]` of the Gaussian before tanh; zero in padded dimensions.
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
        log_std = bounds.min_log_std + half * (torch.tanh(log_std + bounds.shift) + 1)
        return cls(mean * mask, log_std * mask, mask)

    def action(self, noise: Tensor, std_scale: Tensor | float = 1.0) -> Tensor:
        """Actions for standard-normal `noise` `[..., A]`, std widened by `std_scale`; zero where padded."""
        u = torch.addcmul(self.mean, noise * std_scale, self.log_std.exp())
        return torch.tanh(u).clamp(-MAX_ACTION, MAX_ACTION) * self.mask

    @property
    def mode(self) -> Tensor:
        """`tanh(mean)`, `[..., A]`."""
        return torch.tanh(self.mean).clamp(-MAX_ACTION, MAX_ACTION) * self.mask

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-density of actions `[..., A]`, summed over real dimensions: `[...]`."""
        action = action.clamp(-MAX_ACTION, MAX_ACTION)
        z = (torch.atanh(action) - self.mean) * torch.exp(-self.log_std)
        gaussian = torch.add(self.log_std, z.square(), alpha=0.5)  # minus its logarithm, without a constant
        constant = torch.log1p(-action * action) + _HALF_LOG_TWO_PI
        return -((gaussian + constant) * self.mask).sum(-1)

    def entropy(self, noise: Tensor) -> Tensor:
        """Entropy over real dimensions, `[...]`: exact for the Gaussian, one sample for tanh's share."""
        u = torch.addcmul(self.mean, noise, self.log_std.exp())
        # log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)), which stays finite for large |u|
        half_slope = -u - torch.nn.functional.softplus(-2 * u)
        constant = 0.5 + _HALF_LOG_TWO_PI + 2 * math.log(2)
        return ((torch.add(self.log_std, half_slope, alpha=2) + constant) * self.mask).sum(-1)
