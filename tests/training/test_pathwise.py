"""Policy improvement through the model's gradient: the gradient itself, who gets it, and the spread of Q."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from training_helpers import gradients, make_batch, make_experiment, make_model, make_sizes, make_targets

from ezm_pl.spec.experiment import LossSpec
from ezm_pl.training.losses import TERMS, Losses, losses, unroll
from ezm_pl.training.pathwise import QSpread, action_gradient, expected_minimum
from ezm_pl.world_model import WorldModel

SIZES = make_sizes([4, 3], [2, 1])
EXPERIMENT = make_experiment({"targets": {"unroll_steps": 3, "td_steps": 2, "discount": 0.9}})


def only(**weights: float) -> LossSpec:
    return LossSpec(**(dict.fromkeys(TERMS, 0.0) | weights))


def q_value(model: WorldModel, latent: Tensor, action: Tensor, task: Tensor) -> Tensor:
    """Written out, in eval mode: the mean over pairs of heads of the smaller value."""
    reward = model.scalar.decode(model.reward_logits(latent, action, task))
    features = model.features(model.next_latent(latent, action, task), task)
    values = model.scalar.decode(model.value_logits(features))
    pairs = [torch.minimum(values[i], values[j]) for i, j in itertools.combinations(range(len(values)), 2)]
    return reward + 0.9 * torch.stack(pairs).mean(0)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_the_action_gradient_against_finite_differences(norm: str) -> None:
    experiment = make_experiment({"model": {"head_norm": norm}})
    model = make_model(experiment, SIZES).double()
    for module in (model.reward_head, model.value_heads):
        for statistics in module.norms:
            torch.nn.init.uniform_(statistics.running_mean, -1, 1)  # type: ignore[arg-type]
    model.train()
    task = torch.tensor([0, 0, 1])
    latent = torch.randn(3, experiment.model.latent_size, generator=torch.Generator().manual_seed(1)).double()
    action = torch.tensor([[0.3, -0.5], [0.9, 0.0], [-0.2, 0.0]]).double()
    slope, q = action_gradient(model, latent, action, task, 0.9)
    assert model.value_heads.training and model.reward_head.training, "left as it was"
    model.eval()
    step = 1e-2
    for dimension in range(2):
        moved = action.clone()
        moved[:, dimension] += step
        above = q_value(model, latent, moved, task)
        moved[:, dimension] -= 2 * step
        numeric = (above - q_value(model, latent, moved, task)) / (2 * step)
        torch.testing.assert_close(slope[:, dimension].float(), numeric.float(), rtol=0.1, atol=5e-4)
    torch.testing.assert_close(q, q_value(model, latent, action, task), rtol=1e-4, atol=1e-5)


def test_expected_minimum_by_hand() -> None:
    """Of 1, 2 and 4 the pairs' minima are 1, 1 and 2."""
    assert float(expected_minimum(torch.tensor([[4.0], [1.0], [2.0]]))) == pytest.approx(4 / 3)


def pathwise_loss(model: WorldModel, weights: LossSpec, **changes: Any) -> Losses:
    batch = make_batch(EXPERIMENT, SIZES, 6)._replace(**changes)
    targets = make_targets(EXPERIMENT, SIZES, batch)
    noise = torch.Generator().manual_seed(5)
    return losses(unroll(model, batch, targets, EXPERIMENT.targets, noise, QSpread(2)), weights)


def test_the_term_trains_the_policy_and_not_the_model_it_climbs() -> None:
    model = make_model(EXPERIMENT, SIZES)
    pathwise_loss(model, only(pathwise=1.0)).total.backward()
    trained = {name.split(".")[0] for name in gradients(model)}
    assert trained == {"encoder", "task_embedding", "dynamics", "trunk", "policy_head"}


def test_descending_the_term_raises_q() -> None:
    """Only the policy's head moves; Q of its mode at the encoded latent rises three times in a row."""
    model = make_model(EXPERIMENT, SIZES).eval()
    batch = make_batch(EXPERIMENT, SIZES, 6)

    def mean_q() -> float:
        with torch.no_grad():
            latent = model.encode(batch.observation[:, 0], batch.task)
            mode = model.policy(model.features(latent, batch.task), batch.task).mode
            return float(q_value(model, latent, mode, batch.task).mean())

    optimizer = torch.optim.SGD(model.policy_head.parameters(), lr=0.5)
    reached = [mean_q()]
    for _ in range(3):
        for _ in range(20):
            optimizer.zero_grad()
            pathwise_loss(model, only(pathwise=1.0)).total.backward()
            optimizer.step()
        reached.append(mean_q())
    assert reached == sorted(reached) and reached[-1] > reached[0] + 1e-3


def test_a_weight_of_zero_draws_no_noise_and_needs_no_spread() -> None:
    model = make_model(EXPERIMENT, SIZES)
    batch = make_batch(EXPERIMENT, SIZES, 6)
    targets = make_targets(EXPERIMENT, SIZES, batch)
    noise = torch.Generator().manual_seed(5)
    found = losses(unroll(model, batch, targets, EXPERIMENT.targets, noise), EXPERIMENT.loss)
    assert "pathwise" not in found.terms
    entropy_only = torch.Generator().manual_seed(5)
    torch.randn(6 * 4, 2, generator=entropy_only)
    assert torch.equal(noise.get_state(), entropy_only.get_state())


def test_the_spread_is_kept_per_task() -> None:
    spread = QSpread(3, floor=0.5)
    q, task = torch.tensor([0.0, 10.0, 7.0, 7.0, 3.0]), torch.tensor([0, 0, 1, 1, 2])
    first = spread(q, task, torch.ones(5))
    assert first.tolist() == pytest.approx([3.29 * 5, 3.29 * 5, 0.5, 0.5, 0.5])
    spread(q * 3, task, torch.ones(5))
    assert float(spread.spread()[0]) == pytest.approx(3.29 * ((25 + 225) / 2) ** 0.5, rel=1e-5), "plain mean"
    before = spread.variance.clone()
    spread(q, task, torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0]))
    assert torch.equal(spread.variance, before), "a single Q has no spread"


def test_the_spread_follows_slowly() -> None:
    spread, task = QSpread(1, rate=0.01), torch.zeros(2, dtype=torch.long)
    for _ in range(300):
        spread(torch.tensor([-1.0, 1.0]), task, torch.ones(2))
    spread(torch.tensor([-100.0, 100.0]), task, torch.ones(2))
    assert float(spread.variance) == pytest.approx(0.99 + 0.01 * 100**2, rel=1e-4)
