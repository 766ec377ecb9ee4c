"""Health metrics: each against a case worked out by hand, and that measuring changes nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from training_helpers import make_batch, make_experiment, make_model, make_sizes, make_targets

from ezm_pl.envs import make
from ezm_pl.training.health import (
    batch_health,
    effective_sample_share,
    humanoid_tasks,
    network_gap,
    statistics_gap,
    upright,
)
from ezm_pl.training.losses import losses, unroll
from ezm_pl.world_model import InferenceModel

EXPERIMENT = make_experiment()
SIZES = make_sizes([5, 6], [1, 2])


def test_a_humanoid_is_upright_at_the_start_and_not_after_a_fall() -> None:
    env = make("h1-stand", protocol="ezm", seed=0)
    seen = [env.reset()[0]]
    for _ in range(150):
        seen.append(env.step(np.zeros(19))[0])
    env.close()
    stands = upright(torch.as_tensor(np.stack(seen)))
    assert bool(stands[0]) and not bool(stands[-1])
    lying = torch.tensor([0.0, 0.0, 1.0, math.sqrt(0.5), 0.0, math.sqrt(0.5), 0.0])
    assert not bool(upright(lying)), "high, but its axis lies level"


def test_which_tasks_have_humanoids() -> None:
    humanoid = humanoid_tasks(["h1-walk", "dmc-cartpole-balance", "h1hand-reach"])
    assert humanoid is not None and humanoid.tolist() == [True, False, True]
    assert humanoid_tasks(["dmc-cartpole-balance"]) is None


@pytest.mark.parametrize(
    ("weights", "share"), [([1.0] * 8, 1.0), ([0.3] * 8, 1.0), ([1.0, *[0.0] * 7], 1 / 8), ([1.0, 0.5], 0.9)]
)
def test_effective_sample_share(weights: list[float], share: float) -> None:
    assert float(effective_sample_share(torch.tensor(weights))) == pytest.approx(share)


def test_batch_health() -> None:
    model = make_model(EXPERIMENT, SIZES)
    batch = make_batch(EXPERIMENT, SIZES, size=4)
    targets = make_targets(EXPERIMENT, SIZES, batch)
    found = losses(unroll(model, batch, targets, EXPERIMENT.targets, torch.Generator()), EXPERIMENT.loss)
    floor = EXPERIMENT.replay.min_importance
    batch = batch._replace(weight=torch.tensor([1.0, floor, floor, floor]))
    named = batch_health(batch, found, EXPERIMENT, torch.tensor([True, False]))
    bound = math.exp(EXPERIMENT.model.max_log_std)
    assert float(named["train/health/std_of_bound"]) == pytest.approx(
        float(found.diagnostics["policy/std"]) / bound
    )
    assert float(named["train/health/weights_at_floor"]) == 0.75
    assert float(named["train/health/effective_samples"]) == pytest.approx(1.3**2 / (1.03 * 4))
    # Tasks alternate: rows 0 and 2 are of the first task, the humanoid's. One of them is made to stand.
    observation = torch.zeros_like(batch.observation)
    observation[0, 0, 2:4] = observation[1, 0, 2:4] = 1.0
    named = batch_health(
        batch._replace(observation=observation), found, EXPERIMENT, torch.tensor([True, False])
    )
    assert float(named["train/health/upright"]) == 0.5
    none_here = batch_health(batch, found, EXPERIMENT, torch.tensor([False, False]))
    assert float(none_here["train/health/upright"]) == 0, "a batch without a humanoid is no NaN"
    assert "train/health/upright" not in batch_health(batch, found, EXPERIMENT, None)


def test_statistics_gap_is_that_of_the_two_modes_and_leaves_the_model_as_it_was() -> None:
    model = make_model(EXPERIMENT, SIZES).train()
    torch.nn.init.normal_(model.value_heads.weights[2], std=0.3)
    batch = make_batch(EXPERIMENT, SIZES, size=16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gap = statistics_gap(model, batch, 5)
    assert gap.shape == (16, 6)
    assert model.value_heads.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert float(gap.abs().mean()) > 0.01, "running statistics are those of no data yet"
    model.eval()
    assert torch.equal(statistics_gap(model, batch, 5), gap), "the mode that the model is in does not matter"
    # Once the running statistics are the batch's own, the two modes agree but for the variance's correction.
    model.train()
    for norm in model.value_heads.norms:
        norm.momentum = 1.0
    for _ in range(3):
        with torch.no_grad():
            latents = [model.encode(batch.observation[:, 0], batch.task)]
            for k in range(5):
                latents.append(model.next_latent(latents[-1], batch.action[:, k], batch.task))
            model.value_heads(
                model.features(torch.stack(latents, 1).flatten(0, 1), batch.task.repeat_interleave(6))
            )
    assert float(statistics_gap(model, batch, 5).abs().mean()) < 0.1 * float(gap.abs().mean())


def test_network_gap_is_zero_between_equal_networks_only() -> None:
    model = make_model(EXPERIMENT, SIZES)
    mask = torch.as_tensor(SIZES.action_mask)
    learner, target = (InferenceModel(EXPERIMENT.model, SIZES.obs_size, mask) for _ in range(2))
    learner.load(model)
    target.load(model)
    batch = make_batch(EXPERIMENT, SIZES)
    assert torch.equal(network_gap(learner, target, batch.observation[:, 0], batch.task), torch.zeros(8))
    with torch.no_grad():
        for bias in model.value_heads.biases:
            bias.normal_(std=0.5, generator=torch.Generator().manual_seed(0))
    learner.load(model)
    gap = network_gap(learner, target, batch.observation[:, 0], batch.task)
    assert float(gap.abs().min()) > 0
    assert torch.equal(gap, -network_gap(target, learner, batch.observation[:, 0], batch.task))
