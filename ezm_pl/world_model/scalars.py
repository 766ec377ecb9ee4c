"""Categorical scalars: rewards and values as distributions over atoms (MuZero, appendix F)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_EPSILON = 1e-3
_SLOPE = 1 + 2 * _EPSILON
_FACTORS = 2 / _SLOPE, 4 * _EPSILON / _SLOPE**2


def squash(x: Tensor, zero: float = 0.0, scale: float = 1.0) -> Tensor:
    """`sign(x)(sqrt(|x| + 1) - 1) + 0.001 x`, any shape (Pohlen et al. 2018), times `scale`, plus `zero`."""
    # sqrt(y + 1) - 1 = y / (1 + sqrt(y + 1)) = y sigmoid(-log(y + 1) / 2): no difference of near equals.
    linear = torch.rsub(x, zero, alpha=-_EPSILON * scale)
    return torch.addcmul(linear, x, torch.special.xlog1py(-0.5, x.abs()).sigmoid(), value=scale)


def unsquash(y: Tensor) -> Tensor:
    """The inverse of `squash`, any shape."""
    return _unsquashed(*(factor * y for factor in _FACTORS))


def _unsquashed(linear: Tensor, curved: Tensor) -> Tensor:
    """`unsquash(y)` from `y` times each of `_FACTORS`."""
    # x = linear (1 + t / 0.002) with t = (r - 1) / (r + 1) = tanh(log(r) / 2) and the quadratic's root
    # r = sqrt(1 + |curved|). A difference of near equals would in float32 cost 1e-4 around zero.
    share = torch.special.xlog1py(0.25, curved.abs()).tanh()
    return torch.addcmul(linear, linear, share, value=0.5 / _EPSILON)


class CategoricalScalar(nn.Module):
    """Evenly spaced atoms in squashed space, from `-support` to `support`.

    Args:
        atoms: number of atoms `Z`.
        support: largest scalar that the atoms hold; larger ones are clipped.
    """

    atoms: Tensor
    decoding: Tensor
    index: Tensor

    def __init__(self, atoms: int, support: float) -> None:
        super().__init__()
        edge = float(squash(torch.tensor(support, dtype=torch.float64)))
        self.low, self.spacing = -edge, 2 * edge / (atoms - 1)
        self.register_buffer("atoms", torch.linspace(-edge, edge, atoms), persistent=False)
        decoding = torch.stack([factor * self.atoms for factor in _FACTORS], 1)
        self.register_buffer("decoding", decoding, persistent=False)
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
        with torch.autocast(probability.device.type, enabled=False):  # it would round the product
            return expected(probability.to(self.decoding.dtype), self.decoding)


def expected(probability: Tensor, decoding: Tensor) -> Tensor:
    """As `CategoricalScalar.expectation`, from its `decoding` `[Z, 2]` and where no autocast rounds."""
    return _unsquashed(*(probability @ decoding).unbind(-1))
