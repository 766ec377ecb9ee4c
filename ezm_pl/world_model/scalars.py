"""Categorical scalars: rewards and values as distributions over atoms (MuZero, appendix F)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_EPSILON = 1e-3


def squash(x: Tensor, zero: float = 0.0, scale: float = 1.0) -> Tensor:
    """`sign(x)(sqrt(|x| + 1) - 1) + 0.001 x`, any shape (Pohlen et al. 2018), times `scale`, plus `zero`."""
    # sqrt(y + 1) - 1 = y / (sqrt(y + 1) + 1), without a difference of near equals.
    linear = torch.rsub(x, zero, alpha=-_EPSILON * scale)
    return torch.addcdiv(linear, x, torch.sqrt(x.abs() + 1) + 1, value=scale)


def unsquash(y: Tensor) -> Tensor:
    """The inverse of `squash`, any shape."""
    # With w = sqrt(|x| + 1) - 1: |y| = w + 0.001 w (w + 2). Solved without a difference of near equals,
    # which in float32 would cost 1e-4 around zero.
    slope = (1 + 2 * _EPSILON) / 4
    # `double` is 2 w with the sign of y.
    double = y / (torch.sqrt(torch.rsub(y.abs(), slope**2, alpha=-_EPSILON / 4)) + slope)
    return torch.addcmul(double, double, double.abs(), value=0.25)


class CategoricalScalar(nn.Module):
    """Evenly spaced atoms in squashed space, from `-support` to `support`.

    Args:
        atoms: number of atoms `Z`.
        support: largest scalar that the atoms hold; larger ones are clipped.
    """

    atoms: Tensor
    index: Tensor

    def __init__(self, atoms: int, support: float) -> None:
        super().__init__()
        edge = float(squash(torch.tensor(support, dtype=torch.float64)))
        self.low, self.spacing = -edge, 2 * edge / (atoms - 1)
        self.register_buffer("atoms", torch.linspace(-edge, edge, atoms), persistent=False)
        self.register_buffer("index", torch.arange(atoms, dtype=torch.float32), persistent=False)

    def two_hot(self, scalar: Tensor) -> Tensor:
        """Scalars `[...]` to probabilities `[..., Z]`, at most two of them non-zero; NaN stays NaN."""
        last = self.atoms.numel() - 1
        atom_zero = -self.low / self.spacing
        position = squash(scalar.float(), atom_zero, 1 / self.spacing).clamp(0, last)
        return (1 - (position.unsqueeze(-1) - self.index).abs()).clamp(min=0)

    def decode(self, logits: Tensor) -> Tensor:
        """Logits `[..., Z]` to the scalar whose squashed value is the expectation, `[...]` float32."""
        return self.expectation(logits.softmax(-1, dtype=torch.float32))

    def expectation(self, probability: Tensor) -> Tensor:
        """Probabilities `[..., Z]` float32 to the scalar whose squashed value is the expectation, `[...]`."""
        return unsquash((probability * self.atoms).sum(-1))
