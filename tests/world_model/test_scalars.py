"""Categorical scalars: the squashing, two-hot targets, expectation and loss, by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ezm_pl.world_model import CategoricalScalar
from ezm_pl.world_model.scalars import squash, unsquash


def test_squash_by_hand() -> None:
    x = torch.tensor([0.0, 3.0, -3.0, 8.0, 299.0, -299.0])
    # sqrt(4) - 1 + 0.003, sqrt(9) - 1 + 0.008, sqrt(300) - 1 + 0.299
    expected = torch.tensor([0.0, 1.003, -1.003, 2.008, 16.619508, -16.619508])
    torch.testing.assert_close(squash(x), expected)


def test_unsquash_inverts_squash() -> None:
    x = torch.cat([-torch.logspace(-6, 4, 101), torch.zeros(1), torch.logspace(-6, 4, 101)])
    torch.testing.assert_close(unsquash(squash(x)), x, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(squash(unsquash(x / 500)), x / 500, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(unsquash(squash(x.double())), x.double(), rtol=1e-9, atol=1e-12)


def test_unsquash_is_exact_near_zero() -> None:
    """A value head that says nearly nothing must not flicker: the slope at zero is 1 / (0.5 + 0.001)."""
    y = torch.tensor([1e-7, -1e-7, 1e-5, 1e-3, -1e-3])
    expected = y.double() / 0.501
    torch.testing.assert_close(unsquash(y).double(), expected, rtol=2e-3, atol=1e-9)


def test_atoms() -> None:
    scalar = CategoricalScalar(51, 299.0)
    assert scalar.atoms.numel() == 51
    edge = 300**0.5 - 1 + 0.299
    torch.testing.assert_close(scalar.atoms[[0, 25, 50]], torch.tensor([-edge, 0.0, edge]))
    torch.testing.assert_close(scalar.atoms.diff(), torch.full((50,), 2 * edge / 50))


def test_two_hot_by_hand() -> None:
    """Five atoms at -2, -1, 0, 1, 2 times edge/2, where the edge is squash(8) = 2.008: spacing 1.004."""
    scalar = CategoricalScalar(5, 8.0)
    x = torch.tensor([0.0, 3.0, -8.0, 8.0])
    target = scalar.two_hot(x)
    share = 1.003 / 1.004  # of atom 3, for squash(3) = 1.003
    expected = torch.tensor(
        [[0, 0, 1, 0, 0], [0, 0, 1 - share, share, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1.0]]
    )
    torch.testing.assert_close(target, expected, rtol=0, atol=1e-6)
    halfway = unsquash(torch.tensor([0.5 * 1.004, -1.5 * 1.004]))
    expected = torch.tensor([[0, 0, 0.5, 0.5, 0], [0.5, 0.5, 0, 0, 0]])
    torch.testing.assert_close(scalar.two_hot(halfway), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("x", [300.0, 1e9, -300.0, -1e9])
def test_scalars_beyond_the_support_are_clipped_to_its_edge(x: float) -> None:
    scalar = CategoricalScalar(51, 299.0)
    target = scalar.two_hot(torch.tensor(x))
    assert target[50 if x > 0 else 0] == 1 and target.sum() == 1


def test_two_hot_is_a_distribution_that_decodes_to_the_scalar() -> None:
    scalar = CategoricalScalar(51, 299.0)
    x = torch.linspace(-299, 299, 997).view(-1, 1)
    target = scalar.two_hot(x)
    assert target.shape == (997, 1, 51)
    assert (target >= 0).all() and ((target > 0).sum(-1) <= 2).all()
    torch.testing.assert_close(target.sum(-1), torch.ones(997, 1))
    # softmax(log p) = p
    torch.testing.assert_close(scalar.decode(target.clamp(min=1e-38).log()), x, rtol=1e-4, atol=1e-3)


def test_decode_is_the_inverse_of_the_expectation_in_squashed_space() -> None:
    scalar = CategoricalScalar(5, 8.0)
    probability = torch.tensor([0.1, 0.2, 0.3, 0.1, 0.3])
    expectation = (probability * 1.004 * torch.arange(-2, 3)).sum()  # 0.3 atoms of 1.004
    torch.testing.assert_close(expectation, torch.tensor(0.3 * 1.004))
    torch.testing.assert_close(scalar.decode(probability.log() + 7), unsquash(expectation))
    assert float(scalar.decode(torch.zeros(5))) == pytest.approx(0, abs=1e-6)


def test_cross_entropy_is_smallest_at_the_target() -> None:
    scalar = CategoricalScalar(51, 299.0)
    x = torch.tensor([0.3, -20.0, 150.0, 298.0])
    target = scalar.two_hot(x)
    logits = torch.zeros(4, 51, requires_grad=True)
    start = F.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(start.detach(), torch.full((4,), 51.0).log())
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(400):
        optimizer.zero_grad()
        F.cross_entropy(logits, target).backward()
        optimizer.step()
    final = F.cross_entropy(logits, target, reduction="none").detach()
    entropy = -(target * target.clamp(min=1e-38).log()).sum(-1)
    torch.testing.assert_close(final, entropy, rtol=0, atol=5e-3)
    assert (final >= entropy - 1e-6).all()
    torch.testing.assert_close(scalar.decode(logits.detach()), x, rtol=0.03, atol=0.05)


def test_decode_computes_in_float32_also_under_autocast() -> None:
    scalar = CategoricalScalar(51, 299.0)
    logits = torch.randn(64, 51) * 3
    with torch.autocast("cpu", torch.bfloat16):
        found = scalar.decode(logits.bfloat16())
    torch.testing.assert_close(found, scalar.decode(logits.bfloat16().float()), rtol=1e-5, atol=1e-6)
