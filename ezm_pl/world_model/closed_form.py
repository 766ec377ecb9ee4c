"""Functions whose gradient is written out, because autograd would take twice as many operations for it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
_ROOT_TWO_PI = math.sqrt(2 * math.pi)


class CapNorm(torch.autograd.Function):
    """Rows `[T, E]` scaled down to an L2 norm of at most 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = norm.clamp(min=1.0)
        capped = x / scale
        ctx.save_for_backward(capped, norm, scale)
        return capped

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        capped, norm, scale = ctx.saved_tensors
        # A row of norm 1 moves along the sphere only.
        along = (gradients[0] * capped).sum(-1, keepdim=True)
        along = torch.ops.aten.threshold_backward(along, norm, 1)  # 0 where the norm is at most 1
        return torch.addcmul(gradients[0], capped, along, value=-1) / scale


class Cosine(torch.autograd.Function):
    """The cosine `[N]` of the angles between rows `[N, P]`, in float32; `goal` gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, goal: Tensor) -> Tensor:
        both = torch.stack([x, goal])
        norm = torch.linalg.vector_norm(both, dim=-1, keepdim=True, dtype=torch.float32).clamp_(min=1e-8)
        unit, goal = both / norm
        cosine = (unit * goal).sum(-1, keepdim=True)
        ctx.save_for_backward(unit, goal, norm[0], cosine)
        ctx.dtype = x.dtype
        return cosine.squeeze(-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        unit, goal, norm, cosine = ctx.saved_tensors
        across = torch.addcmul(goal, unit, cosine, value=-1)
        return (across * (gradients[0].unsqueeze(-1) / norm)).to(ctx.dtype), None


class Surprise(torch.autograd.Function):
    """Minus the log-density `[...]` of `tanh(u)`, `u ~ N(mean, std)`, for actions `[..., A]`.

    Summed over dimensions, each times its `mask`, which may be a weight. Mean, log-std and mask are broadcast
    to the actions, which get no gradient.
    """

    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_std: Tensor, mask: Tensor, action: Tensor) -> Tensor:
        std = torch.exp(log_std)
        z = (mean - torch.atanh(action)) / std
        # log(sqrt(2 pi) (1 - action^2)), the slope of tanh and the Gaussian's constant
        slope = torch.rsub(action * action, _ROOT_TWO_PI, alpha=_ROOT_TWO_PI).log()
        ctx.save_for_backward(std, z, mask)
        return (torch.addcmul(slope + log_std, z, z, value=0.5) * mask).sum(-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        std, z, mask = ctx.saved_tensors
        gradient = gradients[0].unsqueeze(-1) * mask
        by_z = gradient * z
        log_std = torch.addcmul(gradient, by_z, z, value=-1)
        return by_z.sum_to_size(std.shape) / std, log_std.sum_to_size(std.shape), None, None


class Entropy(torch.autograd.Function):
    """Entropy `[...]` of `tanh(u)`, `u ~ N(mean, std)` `[..., A]`: exact but for one sample of tanh's share.

    Summed over the dimensions that `mask` `[..., A]` has; no gradient for the noise of the sample.
    """

    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_std: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        spread = noise * log_std.exp()
        u = mean + spread
        # log(1 - tanh(u)^2) = 2 (log 2 - log(exp(u) + exp(-u))), which stays finite for large |u|
        log_two_cosh = torch.logaddexp(u, -u)
        constant = 0.5 + _HALF_LOG_TWO_PI + 2 * math.log(2)
        ctx.save_for_backward(u, spread, mask)
        return ((torch.add(log_std, log_two_cosh, alpha=-2) + constant) * mask).sum(-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        u, spread, mask = ctx.saved_tensors
        gradient = gradients[0].unsqueeze(-1) * mask
        mean = gradient * (-2 * torch.tanh(u))
        return mean, torch.addcmul(gradient, mean, spread), None, None
