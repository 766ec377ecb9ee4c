"""The folded, low-precision model of the search against the trained one in eval mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_networks import ACTION, OBSERVATION, SMALL, TASKS, build, mask, outputs
from torch import Tensor, nn

from ezm_pl.spec.experiment import ModelSpec
from ezm_pl.world_model import InferenceModel, WorldModel
from ezm_pl.world_model.fused import FusedNetworks
from ezm_pl.world_model.layers import Head
from ezm_pl.world_model.products import Kind, packs

BATCH = 40


def trained(**changes: Any) -> WorldModel:
    """A model whose BatchNorm and normaliser have seen data, with BatchNorm's scale and shift moved."""
    model = build(**{"value_floor": None, **changes}).train()
    generator = torch.Generator().manual_seed(5)
    for _ in range(10):
        observation = torch.randn(64, OBSERVATION, generator=generator) * 3 + 1
        task = torch.randint(TASKS, (64,), generator=generator)
        action = torch.randn(64, ACTION, generator=generator).tanh()
        model.normalizer.update(observation)
        latent = model.encode(observation, task)
        model.reward_logits(latent, action, task)
        features = model.features(latent, task)
        model.value_logits(features)
        model.policy(features, task)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            assert module.running_mean is not None and module.running_mean.abs().max() > 0.01
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return model.eval()


def infer(source: WorldModel, dtype: torch.dtype = torch.float32) -> InferenceModel:
    model = InferenceModel(source.spec, OBSERVATION, mask(), dtype)
    model.load(source)
    return model


def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(9)
    observation = torch.randn(BATCH, OBSERVATION, generator=generator) * 3
    action = torch.randn(BATCH, ACTION, generator=generator).tanh()
    return observation, torch.arange(BATCH) % TASKS, action


def expected(model: WorldModel, heads: tuple[int, ...]) -> dict[str, Tensor]:
    """Root value, policy and one step's reward and value from the trained model."""
    observation, task, action = batch()

    def value(latent: Tensor) -> Tensor:
        logits = model.value_logits(model.features(latent, task))
        return model.scalar.decode(logits)[list(heads)].amin(0)

    with torch.no_grad():
        latent = model.encode(observation, task)
        following = model.next_latent(latent, action, task)
        policy = model.policy(model.features(latent, task), task)
        return {
            "latent": latent,
            "value": value(latent),
            "following": following,
            "reward": model.scalar.decode(model.reward_logits(latent, action, task)),
            "next_value": value(following),
            "mean": policy.mean,
            "log_std": policy.log_std,
        }


def found(model: InferenceModel) -> dict[str, Tensor]:
    observation, task, action = batch()
    size = model.model.spec.latent_size
    state, value = model.root(observation, task)
    following, reward, next_value = model.step(state, action, task)
    policy = model.policy(state, task)
    return {
        "latent": state[:, :size],
        "value": value,
        "following": following[:, :size],
        "reward": reward,
        "next_value": next_value,
        "mean": policy.mean,
        "log_std": policy.log_std,
    }


@pytest.mark.parametrize("heads", [(0, 1), (2, 4)])
@pytest.mark.parametrize("parts", [ModelSpec().task_embedding_in, ()])
def test_equals_the_trained_model_in_eval_mode(heads: tuple[int, int], parts: tuple[str, ...]) -> None:
    source = trained(task_embedding_in=parts)
    model = infer(source)
    model.heads = heads
    target, result = expected(source, heads), found(model)
    for name, tensor in target.items():
        torch.testing.assert_close(result[name], tensor, rtol=1e-4, atol=1e-4, msg=name)
    assert all(tensor.std() > 0.01 for tensor in target.values())


def test_layer_norm_heads_equal_the_trained_model_in_train_mode() -> None:
    """LayerNorm is one function in training and in the search; scales and shifts are not trivial."""
    source = trained(head_norm="layer")
    for head in (module for module in source.modules() if isinstance(module, Head)):
        assert not head.norms
        for scale, shift in zip(head.scales, head.shifts, strict=True):
            nn.init.uniform_(scale, 0.5, 1.5)
            nn.init.normal_(shift, std=0.3)
    source.train()
    model = infer(source)
    model.heads = (1, 3)
    target, result = expected(source, (1, 3)), found(model)
    for name, tensor in target.items():
        torch.testing.assert_close(result[name], tensor, rtol=1e-4, atol=1e-4, msg=name)


def test_folding_keeps_the_epsilon_of_batchnorm() -> None:
    """Units that hardly vary: the running variance is of the size of epsilon, or zero."""
    torch.manual_seed(0)
    head, folded = Head(6, 8, 5, heads=2), Head(6, 8, 5, heads=2, folded=True)
    for norm in head.norms:
        assert isinstance(norm, nn.BatchNorm1d) and norm.running_var is not None
        norm.running_var.copy_(torch.linspace(0, 3e-5, 16))
    folded.fold(head.eval())
    x = torch.randn(9, 6)
    torch.testing.assert_close(folded(x), head(x), rtol=1e-4, atol=1e-1)
    assert head(x).abs().mean() > 1e3


def test_a_second_load_follows_the_trained_model() -> None:
    """Weights, BatchNorm statistics and the normaliser's; nothing stays of the first load."""
    source = trained()
    model = infer(source)
    before = found(model)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    source.train()
    source.normalizer.update(torch.randn(500, OBSERVATION) * 10)
    outputs(source, torch.arange(8) % TASKS)
    source.eval()
    assert torch.equal(found(model)["reward"], before["reward"])  # a copy, no view
    model.load(source)
    target, result = expected(source, (0, 1)), found(model)
    for name, tensor in target.items():
        torch.testing.assert_close(result[name], tensor, rtol=1e-4, atol=1e-4, msg=name)
        assert not torch.allclose(before[name], tensor, atol=1e-4), name


def test_load_from_another_inference_model() -> None:
    source = trained()
    first, second = infer(source), InferenceModel(source.spec, OBSERVATION, mask())
    second.load(first)
    for name, tensor in found(first).items():
        assert torch.equal(found(second)[name], tensor), name


def test_bfloat16_is_close_to_float32() -> None:
    source = trained()
    exact, result = found(infer(source)), found(infer(source, torch.bfloat16))
    for name in ("value", "reward", "next_value", "mean", "log_std"):
        assert result[name].dtype == torch.float32, name
        difference = (result[name] - exact[name]).abs().mean() / exact[name].std()
        assert difference < 0.05, (name, float(difference))


def test_value_is_the_minimum_of_the_drawn_heads_and_floored() -> None:
    source = trained(value_floor=0.0)
    model = infer(source)
    state, _ = model.root(*batch()[:2])
    size = source.spec.latent_size + source.spec.task_embedding_size
    each = model.model.scalar.decode(model.model.value_logits(model.model.trunk(state[:, :size])))
    assert each.shape == (5, BATCH) and (each.amin(0) < 0).any() and (each.amin(0) > 0).any()
    model.heads = (1, 3)
    torch.testing.assert_close(model.value(state), torch.minimum(each[1], each[3]).clamp(min=0))
    torch.testing.assert_close(model.value(state, range(5)), each.amin(0).clamp(min=0))
    torch.testing.assert_close(model.value(state, (4,)), each[4].clamp(min=0))


@pytest.mark.parametrize("floor", [None, 0.0, -0.1])
def test_value_floor_is_the_specs(floor: float | None) -> None:
    model = infer(trained(value_floor=floor))
    state, value = model.root(*batch()[:2])
    lowest = float(value.min())
    assert lowest < -0.1 if floor is None else lowest == pytest.approx(floor)
    torch.testing.assert_close(model.value(state), value)


def test_two_heads_are_drawn_at_random() -> None:
    model = infer(trained())
    generator, drawn = torch.Generator().manual_seed(0), []
    for _ in range(1000):
        model.draw_heads(generator)
        drawn.append(model.heads)
    assert all(0 <= a < b < 5 for a, b in drawn)
    counts = {pair: drawn.count(pair) for pair in set(drawn)}
    assert len(counts) == 10 and min(counts.values()) > 60  # 100 each, std 9.5
    model.draw_heads(torch.Generator().manual_seed(3))
    first = model.heads
    model.draw_heads(torch.Generator().manual_seed(3))
    assert model.heads == first


def test_the_drawn_heads_decide_root_and_step() -> None:
    model, source = infer(trained()), trained()
    for heads in ((0, 1), (2, 3), (1, 4)):
        model.heads = heads
        target, result = expected(source, heads), found(model)
        torch.testing.assert_close(result["value"], target["value"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(result["next_value"], target["next_value"], rtol=1e-4, atol=1e-4)


def test_nothing_has_a_gradient_or_batchnorm_and_train_mode_changes_nothing() -> None:
    model = infer(trained())
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(isinstance(m, nn.BatchNorm1d) for m in model.modules())
    assert not hasattr(model.model, "projector") and not hasattr(model.model, "predictor")
    result = found(model)
    assert not any(tensor.requires_grad for tensor in result.values())
    single = model.root(batch()[0][:1], batch()[1][:1])[1]
    torch.testing.assert_close(single, result["value"][:1], rtol=1e-4, atol=1e-5)


def test_a_search_state_holds_its_policy_and_its_task() -> None:
    """State: latent, task embedding, mean, log-std and mask; the policy asks no network."""
    model = infer(trained())
    observation, task, _ = batch()
    state, _ = model.root(observation, task)
    size = SMALL["latent_size"] + SMALL["task_embedding_size"]
    assert state.shape == (BATCH, size + 3 * ACTION) and state.dtype == torch.float32
    policy, alone = model.policy(state, task), model.policy_of(observation, task)
    for name in ("mean", "log_std", "mask"):
        torch.testing.assert_close(getattr(alone, name), getattr(policy, name), msg=name)
    assert torch.equal(policy.mask, mask()[task])


def moved_norms(**changes: Any) -> WorldModel:
    """A trained model whose LayerNorms have a scale and a shift of their own."""
    source = trained(**changes)
    for module in source.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return source


KINDS = [
    Kind(torch.float32, False),
    Kind(torch.float32, False, True),
    Kind(torch.float32, True),
    Kind(torch.bfloat16, False),
    Kind(torch.bfloat16, False, True),
    Kind(torch.bfloat16, True),
]


@pytest.mark.parametrize("parts", [ModelSpec().task_embedding_in, ("dynamics",), ("reward", "value_policy")])
@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("kind", KINDS)
def test_fused_networks_compute_the_same(kind: Kind, norm: str, parts: tuple[str, ...]) -> None:
    """In each kind, with what the layers absorb, against the trained model in eval mode."""
    if kind.packed and not packs(torch.zeros(4, 4, dtype=kind.dtype)):
        pytest.skip("oneDNN does not pack here")
    source = moved_norms(task_embedding_in=parts, head_norm=norm, max_mean=1.5)
    model = infer(source, kind.dtype)
    model._networks = lambda rows: FusedNetworks(model.model, kind)  # type: ignore[method-assign]
    model.heads = (1, 3)
    result = found(model)
    tolerance = 1e-4 if kind.dtype == torch.float32 else 0.05
    for name, tensor in expected(source, (1, 3)).items():
        difference = (result[name] - tensor).abs().mean() / tensor.std()
        assert difference < tolerance, (name, float(difference))


@pytest.mark.skipif(not packs(torch.zeros(4, 4, dtype=torch.bfloat16)), reason="oneDNN does not pack here")
def test_small_batches_of_a_narrow_network_are_computed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same weights, so that the two differ by bfloat16's rounding only."""
    model = infer(trained(), torch.bfloat16)
    assert model._networks(BATCH).kind == Kind(torch.float32, False)
    monkeypatch.setattr("ezm_pl.world_model.inference._FEW", 0)
    assert model._networks(BATCH).kind == Kind(torch.bfloat16, True)


def test_fused_weights_follow_every_change() -> None:
    """After `load`, `load_state_dict` (also the parent's) and a move the new weights count."""
    source, other = moved_norms(), moved_norms()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    fresh = infer(other)
    target = found(fresh)
    for change in ("load", "load_state_dict", "parent"):
        model = infer(source)
        assert not torch.allclose(found(model)["reward"], target["reward"], atol=1e-4)
        if change == "load":
            model.load(other)
        elif change == "load_state_dict":
            model.load_state_dict(fresh.state_dict())
        else:
            nn.ModuleList([model]).load_state_dict(nn.ModuleList([fresh]).state_dict())
        for name, tensor in found(model).items():
            assert torch.equal(tensor, target[name]), (change, name)
    doubled = infer(source)
    found(doubled)
    assert doubled.double().policy(doubled.root(*batch()[:2])[0].double(), batch()[1]).mean.isfinite().all()


def test_new_weights_and_heads_are_written_where_the_old_were() -> None:
    """What a captured graph reads: `prepare` changes the numbers, not the tensors."""
    source, other = moved_norms(), moved_norms(head_norm="batch")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    model = infer(source)
    with torch.inference_mode():
        networks = model._networks(0)
    before = [tensor.data_ptr() for tensor in networks.tensors]
    model.load(other)
    model.heads = (2, 4)
    model.prepare()
    assert model._networks(0) is networks and [t.data_ptr() for t in networks.tensors] == before
    fresh = infer(other)
    fresh.heads = (2, 4)
    for name, tensor in found(fresh).items():
        assert torch.equal(found(model)[name], tensor), name


def test_autocast_around_a_search_changes_nothing() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = infer(trained(), dtype)
        alone = found(model)
        with torch.autocast("cpu", torch.bfloat16):
            inside = found(model)
        for name, tensor in alone.items():
            assert torch.equal(inside[name], tensor), (dtype, name)


def test_large_batches_go_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows than a chunk holds, not a multiple of it: every row as alone."""
    monkeypatch.setattr("ezm_pl.world_model.inference._CHUNK", 1001 * SMALL["latent_size"])
    model = infer(trained())
    observation, task, action = (x.repeat(60, *(1,) * (x.dim() - 1)) for x in batch())
    state, _ = model.root(observation, task)
    assert len(state) == 2400
    for whole, part in zip(
        model.step(state, action, task), model.step(state[-7:], action[-7:], task[-7:]), strict=True
    ):
        assert len(whole) == 2400
        torch.testing.assert_close(whole[-7:], part, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(whole[:40], whole[-40:], rtol=1e-4, atol=1e-4)
