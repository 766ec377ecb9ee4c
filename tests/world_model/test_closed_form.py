"""Gradients in closed form against finite differences, in double precision; values against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ezm_pl.world_model.closed_form import CapNorm, Cosine, Entropy, Surprise


def draw(*shape: int, seed: int = 0, gradient: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_(gradient)


def test_rows_longer_than_one_are_capped_and_shorter_ones_are_not() -> None:
    x = torch.cat([draw(3, 4, gradient=False) * 3, draw(2, 4, seed=1, gradient=False) * 0.1]).requires_grad_()
    lengths = x.norm(dim=-1)
    assert lengths.gt(1).tolist() == [True] * 3 + [False] * 2
    expected = x / lengths.clamp(min=1).unsqueeze(-1)
    torch.testing.assert_close(CapNorm.apply(x), expected)
    assert torch.autograd.gradcheck(CapNorm.apply, (x,))


def test_cosine() -> None:
    """It computes in float32, so its gradient is compared with that of torch's own."""
    x, goal = draw(5, 4, gradient=False).float().requires_grad_(), draw(5, 4, seed=1, gradient=False).float()
    found, expected = Cosine.apply(x, goal), F.cosine_similarity(x, goal, dim=-1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    direction = draw(5, seed=2, gradient=False).float()
    (gradient,) = torch.autograd.grad((found * direction).sum(), x)
    torch.testing.assert_close(
        gradient, torch.autograd.grad((expected * direction).sum(), x)[0], rtol=1e-5, atol=1e-6
    )


MASK = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]], dtype=torch.float64)


@pytest.mark.parametrize("candidates", [1, 4])
def test_surprise_of_several_actions_of_each_policy(candidates: int) -> None:
    mean, log_std = draw(2, 1, 3), draw(2, 1, 3, seed=1)
    action = draw(2, candidates, 3, seed=2, gradient=False).tanh()

    def surprise(mean: Tensor, log_std: Tensor) -> Tensor:
        found: Tensor = Surprise.apply(mean, log_std, MASK.unsqueeze(1), action)
        return found

    assert surprise(mean, log_std).shape == (2, candidates)
    assert torch.autograd.gradcheck(surprise, (mean, log_std))


def test_entropy() -> None:
    mean, log_std, noise = draw(2, 3), draw(2, 3, seed=1), draw(2, 3, seed=2, gradient=False)
    assert torch.autograd.gradcheck(lambda a, b: Entropy.apply(a, b, MASK, noise), (mean, log_std))
