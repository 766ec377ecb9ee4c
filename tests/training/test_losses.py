"""The unrolled losses: values by an independent computation, masks, weights, and where gradients flow."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_helpers import gradients, make_batch, make_experiment, make_model, make_sizes, make_targets

from ezm_pl.spec import Experiment
from ezm_pl.spec.experiment import LossSpec
from ezm_pl.spec.metrics import OPTIONAL_TERMS
from ezm_pl.training.batch import Batch, Targets
from ezm_pl.training.losses import TERMS as ALL_TERMS
from ezm_pl.training.losses import Losses, imagine, losses, unroll
from ezm_pl.world_model import WorldModel

TERMS = tuple(name for name in ALL_TERMS if name not in OPTIONAL_TERMS)
SIZES = make_sizes([4, 3], [2, 1])
EXPERIMENT = make_experiment({"targets": {"unroll_steps": 3, "td_steps": 2, "discount": 0.9}})
# Rows of both tasks: whole windows, a time limit and terminations inside the unroll.
LENGTHS, ENDS = [5, 5, 2, 2, 1, 3], [False, True, False, True, True, False]


def only(**weights: float) -> LossSpec:
    """Weights of zero but for those given."""
    return LossSpec(**(dict.fromkeys(TERMS, 0.0) | weights))


def world(size: int = 6, **changes: Any) -> tuple[WorldModel, Batch, Targets]:
    model = make_model(EXPERIMENT, SIZES).eval()
    ends = {"length": LENGTHS, "terminated": ENDS} if size == 6 else {}
    batch = make_batch(EXPERIMENT, SIZES, size, **(ends | changes))
    return model, batch, make_targets(EXPERIMENT, SIZES, batch)


def loss(
    model: WorldModel,
    batch: Batch,
    targets: Targets,
    weights: LossSpec | None = None,
    experiment: Experiment = EXPERIMENT,
) -> Losses:
    """Always with the same entropy noise."""
    generator = torch.Generator().manual_seed(5)
    weights = weights or experiment.loss
    return losses(unroll(model, batch, targets, experiment.targets, generator), weights)


def assert_same(one: Losses, two: Losses) -> None:
    torch.testing.assert_close(one.total, two.total, rtol=1e-5, atol=1e-6)
    for name in TERMS:
        torch.testing.assert_close(one.terms[name], two.terms[name], rtol=1e-5, atol=1e-6, msg=name)


def two_hot_cross_entropy(logits: Tensor, scalar: float, model: WorldModel) -> float:
    """Written out: squash, find the two atoms around it, share by distance."""
    squashed = math.copysign(math.sqrt(abs(scalar) + 1) - 1, scalar) + 0.001 * scalar
    atoms = model.scalar.atoms.tolist()
    above = next(i for i, atom in enumerate(atoms) if atom > squashed)
    share = (squashed - atoms[above - 1]) / (atoms[above] - atoms[above - 1])
    log_probability = logits.log_softmax(-1)
    return -float((1 - share) * log_probability[above - 1] + share * log_probability[above])


def gaussian_log_density(action: float, mean: float, log_std: float) -> float:
    """Of tanh(u), u ~ N(mean, std)."""
    u = math.atanh(action)
    gaussian = -0.5 * ((u - mean) / math.exp(log_std)) ** 2 - log_std - 0.5 * math.log(2 * math.pi)
    return gaussian - math.log(1 - action**2)


@torch.no_grad()
def plain_terms(model: WorldModel, batch: Batch, targets: Targets, discount: float) -> dict[str, float]:
    """docs/algorithm.md, "Losses", one position and one step at a time (entropy left out)."""
    size, steps = targets.reward.shape
    sums = dict.fromkeys(TERMS, 0.0)
    for b in range(size):
        task, weight = batch.task[b : b + 1], float(batch.weight[b])
        latent = model.encode(batch.observation[b : b + 1, 0], task)
        for k in range(steps + 1):
            features = model.features(latent, task)
            value_logits = model.value_logits(features)[:, 0]
            heads = len(value_logits)
            if targets.value_mask[b, k]:
                target = float(targets.value[b, k])
                each = [two_hot_cross_entropy(head, target, model) for head in value_logits]
                sums["value"] += weight * sum(each) / heads
            if targets.policy_mask[b, k]:
                policy = model.policy(features, task)
                for r in range(targets.action.shape[2]):
                    density = sum(
                        gaussian_log_density(
                            float(targets.action[b, k, r, a]),
                            float(policy.mean[0, a]),
                            float(policy.log_std[0, a]),
                        )
                        for a in range(int(SIZES.action_sizes[batch.task[b]]))
                    )
                    sums["policy"] -= weight * float(targets.action_weight[b, k, r]) * density
            if k == steps:
                break
            action = batch.action[b : b + 1, k]
            reward_logits = model.reward_logits(latent, action, task)[0]
            if targets.reward_mask[b, k]:
                sums["reward"] += weight * two_hot_cross_entropy(
                    reward_logits, float(targets.reward[b, k]), model
                )
            latent = model.next_latent(latent, action, task)
            if targets.latent_mask[b, k]:
                goal = model.projector(model.encode(batch.observation[b : b + 1, k + 1], task))[0]
                guess = model.predict(model.projector(latent))[0]
                sums["temporal"] -= weight * float(guess @ goal / guess.norm() / goal.norm())
            if targets.policy_mask[b, k]:
                following = model.scalar.decode(model.value_logits(model.features(latent, task)))
                imagined = float(model.scalar.decode(reward_logits)) + discount * float(following.mean())
                each = [two_hot_cross_entropy(head, imagined, model) for head in value_logits]
                sums["path"] += weight * sum(each) / heads
    return {name: total / size / steps for name, total in sums.items()}


def test_terms_and_total_against_a_plain_computation() -> None:
    model, batch, targets = world()
    batch = batch._replace(weight=torch.tensor([1.0, 0.5, 0.1, 0.7, 0.3, 1.0]))
    weights = LossSpec(reward=2.0, value=0.5, policy=3.0, entropy=0.0, temporal=7.0, path=0.3)
    found = loss(model, batch, targets, weights)
    plain = plain_terms(model, batch, targets, 0.9)
    for name in TERMS:
        if name != "entropy":
            assert float(found.terms[name]) == pytest.approx(plain[name], rel=1e-4), name
    total = sum(getattr(weights, name) * plain[name] for name in TERMS if name != "entropy")
    assert found.total.item() == pytest.approx(total, rel=1e-4)


def test_the_entropy_term_falls_as_the_policy_widens() -> None:
    model, batch, targets = world()
    narrow = loss(model, batch, targets, only(entropy=0.5))
    assert narrow.total.item() == pytest.approx(0.5 * float(narrow.terms["entropy"]))
    model.policy_head.biases[2].data[:, 2:] += 0.1
    assert loss(model, batch, targets).terms["entropy"] < narrow.terms["entropy"]


def test_entropy_by_hand() -> None:
    """A std so small that tanh is straight: log(std sqrt(2 pi e)) + log(1 - tanh(mean)^2) per dimension."""
    experiment = make_experiment(
        {
            "targets": {"unroll_steps": 1, "td_steps": 1},
            "model": {"min_log_std": -14.0, "max_log_std": -6.0},
        }
    )
    model = make_model(experiment, SIZES).eval()
    model.policy_head.weights[2].data.zero_()
    mean, log_std = 0.4, -10.0  # the middle of the range
    model.policy_head.biases[2].data[:] = torch.tensor([[mean, mean, 0.0, 0.0]])
    batch = make_batch(experiment, SIZES, 2)
    found = loss(model, batch, make_targets(experiment, SIZES, batch), experiment=experiment)
    one = log_std + 0.5 * math.log(2 * math.pi * math.e) + math.log(1 - math.tanh(mean) ** 2)
    # Two positions each: the first task has two dimensions, the second one; divided by U = 1.
    assert float(found.terms["entropy"]) == pytest.approx(-2 * (2 * one + one) / 2, abs=1e-3)
    assert float(found.diagnostics["policy/entropy"]) == pytest.approx(one, abs=1e-3), (
        "a dimension and position"
    )


def test_priorities_come_from_the_mean_head_at_the_position_itself() -> None:
    model, batch, targets = world()
    with torch.no_grad():
        features = model.features(model.encode(batch.observation[:, 0], batch.task), batch.task)
        value = model.scalar.decode(model.value_logits(features)).mean(0)
    torch.testing.assert_close(loss(model, batch, targets).value_error, value - targets.value[:, 0])


@pytest.mark.parametrize("training", [True, False])
def test_what_lies_past_the_end_does_not_count(training: bool) -> None:
    """Masked targets and observations are replaced by others: no term moves."""
    model, batch, targets = world()
    model.train(training)
    before = loss(model, batch, targets)
    hidden = {name: ~getattr(targets, f"{name}_mask").bool() for name in ("reward", "value", "policy")}
    assert all(mask.any() for mask in hidden.values())
    action = torch.where(hidden["policy"][..., None, None], torch.tensor(0.3), targets.action)
    changed = targets._replace(
        reward=targets.reward + 50 * hidden["reward"],
        value=targets.value + 50 * hidden["value"],
        action=action,
        action_weight=torch.where(hidden["policy"][..., None], torch.tensor(9.0), targets.action_weight),
    )
    past = torch.arange(6) > batch.length.unsqueeze(1)
    observation = torch.where(past.unsqueeze(-1), torch.tensor(2.0), batch.observation)
    assert_same(loss(model, batch._replace(observation=observation), changed), before)


def test_actions_past_the_end_do_not_count() -> None:
    """In eval mode; in training they reach the others through BatchNorm's statistics, where they are 0.

    A termination is the exception: there the reward and value are known to be zero whatever one does.
    """
    model, batch, targets = world(terminated=[False] * 6)
    past = torch.arange(3) >= batch.length.unsqueeze(1)
    assert past.any()
    action = torch.where(past.unsqueeze(-1), torch.tensor(0.7), batch.action)
    before = loss(model, batch, targets)
    assert_same(loss(model, batch._replace(action=action), targets), before)


def test_unmasked_targets_do_count() -> None:
    """The counterpart: the same changes in real places move the terms."""
    model, batch, targets = world()
    before = loss(model, batch, targets)
    shifted = targets._replace(
        reward=targets.reward + 5, value=targets.value + 5, action=targets.action * 0.5
    )
    after = loss(model, batch._replace(observation=batch.observation.flip(-1)), shifted)
    for name in TERMS:
        assert abs(float(after.terms[name] - before.terms[name])) > 1e-4, name


def test_importance_weights_scale_positions() -> None:
    """Doubled weights double every term; a weight of zero takes the position out of the sum."""
    model, batch, targets = world()
    before = loss(model, batch, targets)
    double = loss(model, batch._replace(weight=batch.weight * 2), targets)
    assert double.total.item() == pytest.approx(2 * before.total.item(), rel=1e-5)
    for name in TERMS:
        assert double.terms[name].item() == pytest.approx(2 * before.terms[name].item(), rel=1e-5)
    last = torch.tensor([0.0, 0, 0, 0, 0, 1])
    alone = Batch(*(x[5:] for x in batch)), Targets(*(x[5:] for x in targets))
    kept, single = loss(model, batch._replace(weight=last), targets), loss(model, *alone)
    for name in TERMS:
        if name != "entropy":  # its noise is another one
            assert float(kept.terms[name]) == pytest.approx(float(single.terms[name]) / 6, rel=1e-4)


REPRESENTATION = {"encoder", "task_embedding"}
FLOWS = {
    "reward": REPRESENTATION | {"dynamics", "action_encoder", "reward_trunk", "reward_head"},
    "value": REPRESENTATION | {"dynamics", "trunk", "value_heads"},
    "policy": REPRESENTATION | {"dynamics", "trunk", "policy_head"},
    "entropy": REPRESENTATION | {"dynamics", "trunk", "policy_head"},
    "temporal": REPRESENTATION | {"dynamics", "projector", "predictor"},
    "path": REPRESENTATION | {"dynamics", "trunk", "value_heads"},
}


@pytest.mark.parametrize("term", TERMS)
def test_each_term_trains_exactly_its_networks(term: str) -> None:
    model, batch, targets = world()
    model.train()
    loss(model, batch, targets, only(**{term: 1.0})).total.backward()
    assert {name.split(".")[0] for name in gradients(model)} == FLOWS[term]


@pytest.mark.parametrize("term", TERMS)
def test_a_weight_of_zero_switches_a_term_off(term: str) -> None:
    """Everything but `term`: networks that only it trains are left without a gradient."""
    model, batch, targets = world()
    model.train()
    weights = LossSpec(**(dict.fromkeys(TERMS, 1.0) | {term: 0.0}))
    loss(model, batch, targets, weights).total.backward()
    others = set().union(*(FLOWS[other] for other in TERMS if other != term))
    assert {name.split(".")[0] for name in gradients(model)} == others


def test_all_parameters_are_trained_by_the_whole() -> None:
    """But for biases in front of a BatchNorm, which takes every shift out again."""
    model, batch, targets = world()
    model.train()
    loss(model, batch, targets).total.backward()
    named = {name for name, _ in model.named_parameters()}
    dead = {name for name in named - gradients(model).keys()}
    assert {name for name in dead if "biases" not in name} == set()


def test_temporal_consistency_has_no_gradient_through_its_target() -> None:
    """Equal to the gradient against constant goals, and not to that with goals left in the graph."""
    model, batch, targets = world()
    steps = 3

    def by_hand(goal: Tensor) -> dict[str, Tensor | None]:
        guess = model.predict(model.projector(imagine(model, batch)[:, 1:].flatten(0, 1)))
        similarity = nn.functional.cosine_similarity(guess, goal, dim=-1).view(-1, steps)
        total = -((similarity * targets.latent_mask).sum(1)).mean() / steps
        parameters = dict(model.named_parameters())
        found = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
        return dict(zip(parameters, found, strict=True))

    loss(model, batch, targets, only(temporal=1.0)).total.backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    task = batch.task.repeat_interleave(steps)
    goal = model.projector(model.encode(batch.observation[:, 1 : steps + 1].flatten(0, 1), task))
    leaky = by_hand(goal)
    for name, expected in by_hand(goal.detach()).items():
        if expected is not None:
            torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-6, msg=name)
    for name in ("projector.0.weight", "encoder.0.weight"):
        assert not torch.allclose(found[name], leaky[name], rtol=1e-2), name  # type: ignore[arg-type]


def test_path_consistency_has_no_gradient_through_its_target() -> None:
    """Only the value at k learns: equal to the gradient against constant `r + discount v'`."""
    model, batch, targets = world()
    steps = 3
    loss(model, batch, targets, only(path=1.0)).total.backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    assert found["reward_head.weights.2"] is None or not found["reward_head.weights.2"].any()
    latents = imagine(model, batch)
    task = batch.task.repeat_interleave(steps + 1)
    logits = model.value_logits(model.features(latents.flatten(0, 1), task)).unflatten(1, (-1, steps + 1))
    with torch.no_grad():
        step_task = batch.task.repeat_interleave(steps)
        reward = model.scalar.decode(
            model.reward_logits(latents[:, :steps].flatten(0, 1), batch.action.flatten(0, 1), step_task)
        )
        value = model.scalar.decode(logits).mean(0)
        goal = model.scalar.two_hot(reward.view(-1, steps) + 0.9 * value[:, 1:])
    each = -(goal * logits[:, :, :steps].log_softmax(-1)).sum(-1).mean(0)
    total = (each * targets.policy_mask[:, :steps]).sum(1).mean() / steps
    parameters = dict(model.named_parameters())
    expected = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    for name, theirs in zip(parameters, expected, strict=True):
        mine = found[name]
        if theirs is not None:
            assert mine is not None, name
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6, msg=name)


def test_padded_action_dimensions_carry_no_gradient() -> None:
    """All positions of task 1, whose second action dimension is padding."""
    model, batch, targets = world()
    model.train()
    mask = torch.tensor([1.0, 0.0])
    batch = batch._replace(task=torch.ones(6, dtype=torch.long), action=batch.action * mask)
    targets = targets._replace(action=targets.action * mask)
    found = loss(model, batch, targets)
    found.total.backward()
    weight, bias = model.policy_head.weights[2].grad, model.policy_head.biases[2].grad
    assert weight is not None and bias is not None
    for rows in (weight[0], bias[0]):  # means of both dimensions, then log-stds of both
        assert rows[[1, 3]].abs().max() == 0 and rows[[0, 2]].abs().min() >= 0 and rows[[0, 2]].any()
    padded = targets._replace(action=targets.action + torch.tensor([0.0, 0.4]))
    assert_same(loss(model, batch, padded), loss(model, batch, targets))


def test_the_diagnostics_of_saturation_count_real_dimensions_only() -> None:
    """Two positions of the one-dimensional task: of weights 0.25 and 0.75 the second lies beyond 0.95."""
    model, _, _ = world()
    batch = make_batch(EXPERIMENT, SIZES, 2)._replace(task=torch.ones(2, dtype=torch.long))
    targets = make_targets(EXPERIMENT, SIZES, batch, candidates=2)
    action = torch.tensor([[0.5, 0.99], [0.97, 0.99]]).expand(2, 4, 2, 2)
    weight = torch.tensor([0.25, 0.75]).expand(2, 4, 2)
    found = loss(model, batch, targets._replace(action=action, action_weight=weight))
    assert float(found.diagnostics["policy/saturated_targets"]) == pytest.approx(0.75)
