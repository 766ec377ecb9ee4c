"""Statistics over all ranks of a run: what BatchNorm and the observation normaliser need.

With one rank nothing here communicates.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F


def ranks() -> int:
    """How many processes train together."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of `x` over all ranks, without gradient; any shape."""
    if ranks() > 1:
        x = x.clone()
        distributed.all_reduce(x)
    return x


class _Sum(torch.autograd.Function):
    """The sum over ranks; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradients[0])


def moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean `[C]`, biased variance `[C]` and count `[]` of the rows of `x` `[N, C]` on all ranks.

    Differentiable. Each rank's own moments are exchanged in double precision, so means far from zero
    cost no more accuracy than on one rank.
    """
    variance, mean = (part.double() for part in torch.var_mean(x, dim=0, correction=0))
    rows = mean.new_full((1,), x.shape[0])
    sums = _Sum.apply(torch.cat([mean * rows, (variance + mean.square()) * rows, rows]))
    first, second, count = sums.split([x.shape[1], x.shape[1], 1])
    mean = first / count
    variance = (second / count - mean.square()).clamp(min=0)
    return mean.to(x.dtype), variance.to(x.dtype), count.squeeze(0).detach()


class BatchNorm(nn.BatchNorm1d):
    """`nn.BatchNorm1d` over the batches of all ranks (torch's SyncBatchNorm needs a GPU)."""

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C] -> [N, C]`. `num_batches_tracked` is left to `count_batches`."""
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        if not self.training or ranks() == 1:
            moments_of = self.running_mean, self.running_var
            return F.batch_norm(
                x, *moments_of, self.weight, self.bias, self.training, self.momentum, self.eps
            )
        wide = x.float()
        mean, variance, count = moments(wide)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)).float(), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return ((wide - mean) * scale + self.bias).to(x.dtype)


def count_batches(*heads: nn.Module) -> None:
    """Counts one more batch of every BatchNorm in `heads`, as torch's own do one by one."""
    norms = [
        norm for head in heads for norm in head.modules() if isinstance(norm, BatchNorm) and norm.training
    ]
    if norms:
        torch._foreach_add_([norm.get_buffer("num_batches_tracked") for norm in norms], 1)
