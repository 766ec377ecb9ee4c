"""The squashed Gaussian against torch.distributions and Monte Carlo."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from ezm_pl.world_model import MAX_ACTION, PolicyBounds, SquashedGaussian

MASK = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0]])


def policy(seed: int = 0) -> SquashedGaussian:
    raw = torch.randn(3, 8, generator=torch.Generator().manual_seed(seed))
    raw[:, 4:] *= 0.2
    return SquashedGaussian.from_raw(raw, MASK, PolicyBounds(initial_log_std=-1.0))


def reference(policy: SquashedGaussian) -> TransformedDistribution:
    base = Normal(policy.mean.double(), policy.log_std.double().exp())
    return TransformedDistribution(base, [TanhTransform(cache_size=1)])


def test_surprise_equals_torch_distributions_over_real_dimensions() -> None:
    given = policy()
    for seed in range(20):
        noise = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))
        action = given.action(noise)
        per_dimension = reference(given).log_prob(action.double())
        expected = torch.where(MASK > 0, per_dimension, 0.0).sum(-1)
        torch.testing.assert_close(-given.surprise(action).double(), expected, rtol=1e-4, atol=1e-4)


def test_padded_dimensions_do_not_count() -> None:
    """Not their actions, noise or raw outputs: log-prob, entropy and actions stay as they are."""
    raw, noise = torch.randn(3, 8), torch.randn(3, 4)
    other = torch.where(MASK > 0, 0.0, 1.0)
    bounds = PolicyBounds()
    first = SquashedGaussian.from_raw(raw, MASK, bounds)
    second = SquashedGaussian.from_raw(raw + torch.cat([other, other], -1), MASK, bounds)
    assert torch.equal(first.action(noise), second.action(noise + other))
    assert (first.action(noise)[MASK == 0] == 0).all() and (first.mode[MASK == 0] == 0).all()
    action = first.action(noise)
    torch.testing.assert_close(first.surprise(action), second.surprise(action + 0.5 * other))
    torch.testing.assert_close(first.entropy(noise), second.entropy(noise + other))


def test_surprise_of_one_task_is_that_of_its_own_dimensions_alone() -> None:
    given = policy()
    small = SquashedGaussian(given.mean[1, :2], given.log_std[1, :2], torch.ones(2))
    action = given.action(torch.randn(3, 4))
    torch.testing.assert_close(given.surprise(action)[1], small.surprise(action[1, :2]))


def test_density_integrates_to_one() -> None:
    one = SquashedGaussian(torch.tensor([0.3]), torch.tensor([-0.7]), torch.ones(1))
    grid = torch.linspace(-MAX_ACTION, MAX_ACTION, 20001).unsqueeze(-1)
    assert float(torch.trapezoid((-one.surprise(grid)).exp(), grid[:, 0])) == pytest.approx(1, abs=1e-3)


def test_entropy_equals_monte_carlo() -> None:
    given = policy()
    noise = torch.randn(200_000, 3, 4, generator=torch.Generator().manual_seed(3))
    estimate = given.entropy(noise).mean(0)
    distribution = reference(given)
    u = given.mean + noise * given.log_std.exp()
    log_prob = distribution.base_dist.log_prob(u) - 2 * (
        math.log(2) - u - torch.nn.functional.softplus(-2 * u)
    )
    torch.testing.assert_close(estimate, -(log_prob * MASK).sum(-1).mean(0).float(), rtol=0, atol=0.02)


def test_entropy_of_narrow_policies_is_that_of_the_gaussian() -> None:
    """Near zero tanh is the identity: 0.5 log(2 pi e) + log std, and it grows with the std."""
    log_std = torch.tensor([[-6.0], [-5.0]])
    narrow = SquashedGaussian(torch.zeros(2, 1), log_std, torch.ones(2, 1))
    expected = 0.5 * math.log(2 * math.pi * math.e) + log_std[:, 0]
    torch.testing.assert_close(narrow.entropy(torch.randn(2, 1)), expected, rtol=0, atol=1e-2)


def test_entropy_and_surprise_are_finite_far_out() -> None:
    mean = torch.tensor([[50.0], [-50.0]], requires_grad=True)
    log_std = torch.tensor([[2.0], [-10.0]], requires_grad=True)
    far = SquashedGaussian(mean, log_std, torch.ones(2, 1))
    value = far.entropy(torch.ones(2, 1)).sum() - far.surprise(torch.tensor([[1.0], [-1.0]])).sum()
    value.backward()
    for tensor in (value, mean.grad, log_std.grad):
        assert isinstance(tensor, Tensor) and tensor.isfinite().all()


def test_log_std_lies_in_its_range_and_starts_at_minus_four() -> None:
    bounds, mask = PolicyBounds(), torch.ones(1)
    raw = torch.tensor([[0.0, -1e4], [0.0, 0.0], [0.0, 1e4]])
    torch.testing.assert_close(
        SquashedGaussian.from_raw(raw, mask, bounds).log_std, torch.tensor([[-10.0], [-4.0], [2.0]])
    )
    # log sigma = -10 + 6 (tanh(raw) + 1)
    given = SquashedGaussian.from_raw(torch.tensor([0.0, 0.7]), mask, bounds)
    assert float(given.log_std) == pytest.approx(-10 + 6 * (math.tanh(0.7) + 1), abs=1e-5)


@pytest.mark.parametrize("initial", [-9.5, -4.0, -1.0, 0.0, 1.9])
def test_initial_log_std_is_that_of_a_raw_zero(initial: float) -> None:
    bounds = PolicyBounds(initial_log_std=initial)
    given = SquashedGaussian.from_raw(torch.zeros(6), torch.ones(3), bounds)
    torch.testing.assert_close(given.log_std, torch.full((3,), initial), rtol=0, atol=1e-4)
    wide = SquashedGaussian.from_raw(torch.tensor([0.0, -1e4]), torch.ones(1), bounds)
    assert float(wide.log_std) == pytest.approx(-10)


def test_other_log_std_range() -> None:
    bounds = PolicyBounds(math.log(0.08), 0.0, math.log(0.3))
    raw = torch.tensor([[0.0, -1e4], [0.0, 0.0], [0.0, 1e4]])
    std = SquashedGaussian.from_raw(raw, torch.ones(1), bounds).log_std.exp()
    torch.testing.assert_close(std, torch.tensor([[0.08], [0.3], [1.0]]), rtol=1e-4, atol=0)


def test_max_mean_bounds_the_mean_softly() -> None:
    raw = torch.tensor([[0.01, 0.0], [1.0, 0.0], [100.0, 0.0], [-100.0, 0.0]])
    bounded = SquashedGaussian.from_raw(raw, torch.ones(1), PolicyBounds(max_mean=2.5)).mean
    expected = [[0.01], [2.5 * math.tanh(0.4)], [2.5], [-2.5]]
    torch.testing.assert_close(bounded, torch.tensor(expected), rtol=1e-4, atol=0)
    assert float(SquashedGaussian.from_raw(raw, torch.ones(1), PolicyBounds()).mean.max()) == 100


def test_actions_by_hand() -> None:
    given = SquashedGaussian(torch.tensor([0.5, 0.5]), torch.tensor([0.0, -1.0]), torch.ones(2))
    noise = torch.tensor([1.0, -2.0])
    u = torch.tensor([0.5 + 3.0, 0.5 - 2 * math.exp(-1) * 3.0])
    torch.testing.assert_close(given.action(3 * noise), torch.tanh(u))
    torch.testing.assert_close(given.mode, torch.tensor([0.5, 0.5]).tanh())


def test_actions_stay_inside_the_bound() -> None:
    given = SquashedGaussian(torch.tensor([9.0, -9.0, 0.0]), torch.zeros(3), torch.ones(3))
    actions = given.action(300 * torch.randn(1000, 3))
    assert actions.abs().max() == torch.tensor(MAX_ACTION) and given.mode.abs().max() == torch.tensor(0.999)
    assert torch.isfinite(given.surprise(actions)).all()


def test_gradients_raise_the_density_of_an_action() -> None:
    raw = torch.zeros(1, 4, requires_grad=True)
    action = torch.tensor([[0.4, -0.6]])
    optimizer = torch.optim.Adam([raw], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        given = SquashedGaussian.from_raw(raw, torch.ones(2), PolicyBounds(-3.0, 1.0))
        given.surprise(action).sum().backward()
        optimizer.step()
    given = SquashedGaussian.from_raw(raw.detach(), torch.ones(2), PolicyBounds(-3.0, 1.0))
    torch.testing.assert_close(given.mode, action, rtol=0, atol=0.02)


def test_low_precision_outputs_are_computed_in_float32() -> None:
    given = SquashedGaussian.from_raw(torch.randn(2, 4).bfloat16(), torch.ones(2), PolicyBounds())
    assert given.mean.dtype == given.log_std.dtype == torch.float32
