"""The world model: sizes, building blocks, task embeddings, the normaliser and what starts at zero."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ezm_pl.spec.experiment import ModelSpec
from ezm_pl.world_model import WorldModel
from ezm_pl.world_model.layers import Head, ResidualBlock, RunningNorm, Transition

TASKS, OBSERVATION, ACTION = 4, 7, 5
PARTS = ("representation", "dynamics", "reward", "value_policy")
SMALL: dict[str, Any] = {
    "latent_size": 16,
    "task_embedding_size": 6,
    "action_embedding_size": 4,
    "blocks": 2,
    "head_size": 12,
    "projector_size": 20,
    "projection_size": 10,
    "atoms": 11,
    "support": 20.0,
}


def mask() -> Tensor:
    """Tasks 0 and 1 use all dimensions, 2 and 3 the first three."""
    mask = torch.ones(TASKS, ACTION)
    mask[2:, 3:] = 0
    return mask


def build(seed: int = 0, **changes: Any) -> WorldModel:
    """A small model in eval mode whose last layers are no longer zero."""
    torch.manual_seed(seed)
    model = WorldModel(ModelSpec(**{**SMALL, **changes}), OBSERVATION, mask())
    for head in (model.reward_head, model.policy_head):
        nn.init.normal_(head.weights[2], std=0.3)
    return model.eval()


def outputs(model: WorldModel, task: Tensor, batch: int = 8) -> dict[str, Tensor]:
    """What each network says of the same inputs under given tasks `[B]`."""
    generator = torch.Generator().manual_seed(1)
    observation = torch.randn(batch, OBSERVATION, generator=generator)
    latent = torch.randn(batch, model.spec.latent_size, generator=generator)
    action = torch.randn(batch, ACTION, generator=generator).tanh()
    features = model.features(latent, task)
    return {
        "representation": model.encode(observation, task),
        "dynamics": model.next_latent(latent, action, task),
        "reward": model.reward_logits(latent, action, task),
        "value_policy": torch.cat([model.value_logits(features).flatten(), features.flatten()]),
    }


def count(module: nn.Module | nn.Parameter) -> int:
    parameters = [module] if isinstance(module, nn.Parameter) else module.parameters()
    return sum(parameter.numel() for parameter in parameters)


def test_parameter_count_at_published_sizes() -> None:
    """Nine tasks of hb-medium (51 observations, 19 actions): about 16M, 12.8M without the projections."""
    model = WorldModel(ModelSpec(), 51, torch.ones(9, 19))
    total, projections = count(model), count(model.projector) + count(model.predictor)
    assert 15.5e6 < total < 16.5e6
    assert total - projections == pytest.approx(12.8e6, rel=0.01)
    # By hand: S 512, E 128; a residual block of width w has 2 (w^2 + w) + 2w.
    block = 2 * (512 * 512 + 512) + 2 * 512
    assert count(model.task_embedding) == 9 * 128
    assert count(model.encoder) == (51 + 128) * 512 + 512 + 2 * 512 + 3 * block
    wide = 512 + 128 + 19
    assert count(model.dynamics) == 2 * wide + wide * 512 + 512 + 512 * 512 + 512 + 3 * block
    mlp = 2 * (2 * 512)  # two BatchNorms
    assert count(model.reward_head) == 2 * (512 * 512 + 512) + 512 * 51 + 51 + mlp
    head = 640 * 512 + 512 + 512 * 512 + 512 + 512 * 51 + 51 + mlp
    assert count(model.value_heads) == 5 * head
    assert count(model.trunk) == 3 * (2 * (640 * 640 + 640) + 2 * 640) + 2 * 640
    assert count(model.policy_head) == 640 * 512 + 512 + 512 * 512 + 512 + 512 * 38 + 38 + mlp


def test_shapes() -> None:
    model, task = build(), torch.arange(8) % TASKS
    found = outputs(model, task)
    assert found["representation"].shape == found["dynamics"].shape == (8, 16)
    assert found["reward"].shape == (8, 11)
    features = model.features(found["dynamics"], task)
    assert features.shape == (8, 16 + 6)
    assert model.value_logits(features).shape == (5, 8, 11)
    policy = model.policy(features, task)
    assert policy.mean.shape == policy.log_std.shape == policy.mask.shape == (8, ACTION)
    projection = model.projector(found["dynamics"])
    assert projection.shape == model.predict(projection).shape == (8, 10)


def test_residual_block_by_hand() -> None:
    """x + W2 relu(W1 LN(x) + b1) + b2."""
    block = ResidualBlock(4)
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(3, 4)
    normal = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    normal = normal * block.norm.weight + block.norm.bias
    inner = (normal @ block.inner.weight.T + block.inner.bias).clamp(min=0)
    expected = x + inner @ block.outer.weight.T + block.outer.bias
    torch.testing.assert_close(block(x), expected)


def test_transition_by_hand() -> None:
    """s + W2 relu(W1 LN([s, extras])): the latent passes, the extras only through the layers."""
    move = Transition(4, 3, 0)
    latent, extras = torch.randn(2, 4), torch.randn(2, 3)
    joined = F.layer_norm(torch.cat([latent, extras], -1), (7,))
    expected = latent + F.linear(
        F.relu(F.linear(joined, move.inner.weight, move.inner.bias)), move.outer.weight, move.outer.bias
    )
    torch.testing.assert_close(move(latent, extras), expected)
    assert len(Transition(4, 3, 3).blocks) == 3


@pytest.mark.parametrize("heads", [1, 3])
def test_heads_equal_separate_networks(heads: int) -> None:
    """In train mode (batch statistics) and, after these have moved, in eval mode."""
    torch.manual_seed(0)
    head, reference = Head(6, 8, 5, heads=heads), []
    for i in range(heads):
        layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8)]
        network = nn.Sequential(*layers, nn.ReLU(), nn.Linear(8, 5))
        for layer, linear in enumerate((network[0], network[3], network[6])):
            linear.load_state_dict({"weight": head.weights[layer][i], "bias": head.biases[layer][i]})
        reference.append(network)
    for _ in range(3):
        x = torch.randn(32, 6) * 2 + 1
        torch.testing.assert_close(head(x), torch.stack([network(x) for network in reference]))
    head.eval()
    x = torch.randn(4, 6)
    torch.testing.assert_close(head(x), torch.stack([network.eval()(x) for network in reference]))


@pytest.mark.parametrize("chosen", [(0, 1), (1, 4), (3,), (2, 3, 4), (4, 3, 2, 1, 0), (0, 1, 2, 3, 4)])
def test_some_heads_equal_slices_of_all(chosen: tuple[int, ...]) -> None:
    head = Head(6, 8, 5, heads=5, folded=True)
    x = torch.randn(9, 6)
    torch.testing.assert_close(head(x, chosen), head(x)[list(chosen)])


def test_some_heads_in_training_are_refused() -> None:
    with pytest.raises(ValueError, match="folded"):
        Head(6, 8, 5, heads=5)(torch.randn(9, 6), (0, 1))


def test_reward_is_zero_and_policy_centred_at_the_start() -> None:
    torch.manual_seed(0)
    model = WorldModel(ModelSpec(**SMALL), OBSERVATION, mask())
    task = torch.arange(32) % TASKS
    for training in (True, False):
        model.train(training)
        latent = model.encode(torch.randn(32, OBSERVATION), task)
        logits = model.reward_logits(latent, torch.randn(32, ACTION), task)
        torch.testing.assert_close(model.scalar.decode(logits), torch.zeros(32), rtol=0, atol=1e-6)
        policy = model.policy(model.features(latent, task), task)
        assert torch.equal(policy.mean, torch.zeros(32, ACTION))
        torch.testing.assert_close(policy.log_std, torch.full((32, ACTION), -4.0))
    assert model.value_logits(model.features(latent, task)).std() > 0.01  # values do not start at zero


def test_initial_log_std_of_the_spec_reaches_the_policy() -> None:
    spec = ModelSpec(**SMALL, initial_log_std=-1.5, min_log_std=-3.0, max_log_std=0.5)
    model = WorldModel(spec, OBSERVATION, mask()).eval()
    policy = model.policy(torch.randn(3, 22), torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(policy.log_std, torch.full((3, ACTION), -1.5))


def test_policy_masks_padded_dimensions_of_its_task() -> None:
    model = build()
    task = torch.tensor([0, 2, 3])
    policy = model.policy(torch.randn(3, 22), task)
    assert torch.equal(policy.mask, mask()[task])
    mode = policy.mode
    assert (mode[0] != 0).all() and (mode[1:, 3:] == 0).all() and (mode[1:, :3] != 0).all()


@pytest.mark.parametrize("off", PARTS)
def test_each_use_of_the_task_embedding_can_be_switched_off(off: str) -> None:
    """Then that network alone says the same of all tasks."""
    model = build(task_embedding_in=tuple(part for part in PARTS if part != off))
    first = outputs(model, torch.zeros(8, dtype=torch.long))
    second = outputs(model, torch.ones(8, dtype=torch.long))
    for part in PARTS:
        assert torch.equal(first[part], second[part]) == (part == off), part


def test_no_task_embedding_at_all() -> None:
    model = build(task_embedding_in=())
    first = outputs(model, torch.zeros(8, dtype=torch.long))
    second = outputs(model, torch.ones(8, dtype=torch.long))
    for part in PARTS:
        torch.testing.assert_close(first[part], second[part], rtol=0, atol=0)
    assert model.features(torch.randn(2, 16), torch.tensor([0, 1])).shape == (2, 16)


def test_task_embedding_routes_by_task() -> None:
    """A mixed batch equals the tasks one by one."""
    model, task = build(), torch.arange(8) % TASKS
    mixed = outputs(model, task)
    for which in range(TASKS):
        alone = outputs(model, torch.full((8,), which))
        for part in ("representation", "dynamics", "reward"):
            torch.testing.assert_close(mixed[part][task == which], alone[part][task == which])


def test_norm_of_the_task_embedding_is_capped_at_one() -> None:
    """Long embeddings count by direction alone, short ones by their length too."""
    model, task = build(), torch.arange(8) % TASKS
    direction = F.normalize(torch.randn(TASKS, 6), dim=-1)
    found = {}
    for length in (0.5, 1.0, 2.0, 50.0):
        model.task_embedding.data = direction * length
        found[length] = outputs(model, task)
    for part in PARTS:
        torch.testing.assert_close(found[1.0][part], found[50.0][part], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[2.0][part], found[50.0][part], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(found[0.5][part], found[1.0][part], atol=1e-4)
    _, capped = model._with_task("dynamics", torch.tensor([1, 3]), torch.zeros(2, ACTION))
    torch.testing.assert_close(capped.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(capped, direction[[1, 3]])


def test_gradients_reach_every_parameter() -> None:
    model = build().train()
    found = outputs(model, torch.arange(8) % TASKS)
    policy = model.policy(model.features(found["dynamics"], torch.arange(8) % TASKS), torch.arange(8) % TASKS)
    loss = torch.stack([(value**2).sum() for value in found.values()]).sum()
    loss = loss + (policy.mean**2).sum() + (policy.log_std**2).sum()
    loss = loss + (model.predict(model.projector(found["dynamics"])) ** 2).sum()
    loss.backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not silent
    still = [name for name, p in model.named_parameters() if p.grad is not None and (p.grad == 0).all()]
    # A bias before BatchNorm moves nothing; its gradient is zero or rounding noise.
    assert all("biases.0" in name or "biases.1" in name for name in still)


def test_reward_does_not_share_the_dynamics_trunk() -> None:
    model = build()
    logits = model.reward_logits(torch.randn(4, 16), torch.randn(4, ACTION), torch.zeros(4, dtype=torch.long))
    logits.sum().backward()
    assert all(p.grad is None for p in model.dynamics.parameters())
    assert all(p.grad is not None for p in model.reward_trunk.parameters())


def test_normaliser_equals_numpy_over_all_batches() -> None:
    norm, generator = RunningNorm(5), np.random.default_rng(0)
    scale = np.array([1.0, 100.0, 1e-3, 5.0, 0.0])
    shift = np.array([0.0, -500.0, 3.0, 1e3, 2.0])
    batches = [generator.normal(size=(n, 5)) * scale + shift + i for i, n in enumerate((1, 64, 7, 300, 64))]
    for batch in batches:
        norm.update(torch.tensor(batch))
    together = np.concatenate(batches)
    np.testing.assert_allclose(norm.mean.numpy(), together.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(norm.variance.numpy(), together.var(0), rtol=1e-3)
    assert float(norm.count) == len(together)
    x = together[:20]
    expected = ((x - together.mean(0)) / np.sqrt(together.var(0) + 1e-4)).clip(-10, 10)
    found = norm(torch.tensor(x, dtype=torch.float32)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-3)


def test_normaliser_starts_as_the_identity_and_bounds_outliers() -> None:
    norm = RunningNorm(3)
    x = torch.tensor([[0.5, -2.0, 1e6]])
    torch.testing.assert_close(norm(x), torch.tensor([[0.5, -2.0, 10.0]]), rtol=1e-3, atol=0)


def test_normaliser_is_frozen_in_eval_and_by_forward() -> None:
    model = build().train()
    model.normalizer.update(torch.randn(50, OBSERVATION) * 3 + 2)
    before = {name: value.clone() for name, value in model.normalizer.state_dict().items()}
    model.encode(torch.randn(50, OBSERVATION), torch.zeros(50, dtype=torch.long))
    model.eval()
    model.normalizer.update(torch.randn(50, OBSERVATION) * 9)
    for name, value in model.normalizer.state_dict().items():
        assert torch.equal(value, before[name]), name
    model.train()
    model.normalizer.update(torch.randn(50, OBSERVATION) * 9)
    assert not torch.equal(model.normalizer.mean, before["mean"])


def test_state_dict_carries_the_statistics() -> None:
    model, task = build(), torch.arange(8) % TASKS
    model.train()
    model.normalizer.update(torch.randn(200, OBSERVATION) * 5 - 3)
    outputs(model, task)  # moves BatchNorm's statistics
    other = build(seed=1)
    other.load_state_dict(model.state_dict())
    assert {"normalizer.mean", "normalizer.variance", "normalizer.count"} <= set(model.state_dict())
    first, second = outputs(model.eval(), task), outputs(other.eval(), task)
    for part in PARTS:
        assert torch.equal(first[part], second[part])


def test_padding_of_observations_is_silent() -> None:
    """A dimension that is zero in all batches stays zero after normalisation."""
    norm = RunningNorm(2)
    for _ in range(5):
        norm.update(torch.stack([torch.randn(64), torch.zeros(64)], 1))
    assert (norm(torch.tensor([[1.0, 0.0]]))[:, 1] == 0).all()
