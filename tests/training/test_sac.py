"""Soft actor-critic: its losses against numbers worked out by hand, and whole runs of it."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fit_helpers import fit_experiment, last, run
from lightning.pytorch.loggers import CSVLogger
from test_ranks import finish, two_ranks
from torch import Tensor
from training_helpers import make_batch, make_experiment, make_sizes

from ezm_pl.agent import Agent
from ezm_pl.spec import Experiment
from ezm_pl.spec.metrics import logged_metrics
from ezm_pl.training import CheckpointError, FitResult, evaluate
from ezm_pl.training.batch import Batch
from ezm_pl.training.diagnostics.networks import load_networks
from ezm_pl.training.fault_tolerance.skipped import NonFiniteUpdates
from ezm_pl.training.gradient_conflict import FILE
from ezm_pl.training.sac import SACModule, SACNetwork
from ezm_pl.training.sac.losses import (
    actor_loss,
    critic_loss,
    frozen_q,
    sac_losses,
    soft_target,
    temperature_loss,
    track,
)
from ezm_pl.world_model import SquashedGaussian

SIZES = make_sizes([4, 3], [2, 1])
"""The second task has one padded observation and one padded action."""


def sac_experiment(document: dict[str, Any] | None = None) -> Experiment:
    """The spec of a SAC agent whose `targets` are its windows, as `make_batch` reads them."""
    experiment = make_experiment({"agent": "sac", **(document or {})})
    return experiment.model_copy(update={"targets": experiment.windows})


EXPERIMENT = sac_experiment()


def make_network(seed: int = 0) -> SACNetwork:
    """One whose policy is not constant (its last layer starts at zero)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SACNetwork(EXPERIMENT.model, SIZES.obs_size, torch.as_tensor(SIZES.action_mask))
        torch.nn.init.normal_(network.policy_head.weights[2], std=0.1)
    return network


def windows(**fields: Any) -> Batch:
    """A batch of which only the fields that are given mean something."""
    return Batch(**{name: fields.get(name, torch.zeros(1)) for name in Batch._fields})


def test_the_target_is_the_soft_return() -> None:
    """Rows: inside an episode; terminated after the step; cut by a time limit after it."""
    batch = windows(length=torch.tensor([2, 1, 1]), terminated=torch.tensor([False, True, False]))
    next_q = torch.tensor([[10.0, 10.0, 7.0], [8.0, 8.0, 9.0]])
    found = soft_target(
        batch, torch.tensor([[1.0], [1.0], [2.0]]), next_q, torch.tensor([2.0, 2.0, -1.0]),
        torch.tensor([0.5, 0.5, 0.1]), 0.9,
    )  # fmt: skip
    assert found.tolist() == pytest.approx([1 + 0.9 * (8 + 0.5 * 2), 1.0, 2 + 0.9 * (7 + 0.1 * -1)])


def test_the_target_over_several_steps() -> None:
    """Rows: three steps; terminated after the second; cut after the second; terminated in the fourth."""
    batch = windows(length=torch.tensor([4, 2, 2, 4]), terminated=torch.tensor([False, True, False, True]))
    reward = torch.tensor([[1.0, 2, 3], [1, 2, 0], [1, 2, 0], [1, 2, 3]])
    found = soft_target(batch, reward, torch.full((2, 4), 10.0), torch.zeros(4), torch.zeros(4), 0.5)
    sums = 1 + 0.5 * 2
    assert found.tolist() == [sums + 0.75 + 0.125 * 10, sums, sums + 0.25 * 10, sums + 0.75 + 0.125 * 10]


def test_the_losses_by_hand() -> None:
    q = torch.tensor([[3.0, 1.0], [5.0, -1.0]])
    assert critic_loss(q, torch.tensor([4.0, 1.0])).tolist() == [0.5 * (1 + 1), 0.5 * (0 + 4)]
    assert actor_loss(q, torch.tensor([2.0, -1.0]), torch.tensor([0.5, 0.1])).tolist() == pytest.approx(
        [-(3 + 0.5 * 2), -(-1 + 0.1 * -1)]
    )
    temperature = torch.tensor([0.5, 0.1])
    assert temperature_loss(temperature, torch.tensor([-1.0, 3.0]), torch.tensor([-2.0, -1.0])).tolist() == (
        pytest.approx([0.5 * 1, 0.1 * 4])
    )


def test_the_losses_of_a_batch_are_these() -> None:
    """Every term of `sac_losses`, put together once more from the networks' outputs and the same noise."""
    batch = make_batch(EXPERIMENT, SIZES, 6, length=[2, 2, 1, 1, 2, 1], terminated=[False, True] * 3)
    network, target = make_network(0), make_network(1)
    log_temperature = torch.tensor([0.1, 0.4]).log()
    found = sac_losses(batch, network, target, log_temperature, EXPERIMENT, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    there, here = (torch.randn(6, 2, generator=generator) for _ in range(2))
    alpha = torch.tensor([0.1, 0.4])[batch.task]

    def drawn(observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        policy = network.policy(network.encode(observation, batch.task), batch.task)
        return policy.action(noise), policy.entropy(noise)

    action, entropy = drawn(batch.observation[:, 1], there)
    ahead = target.q(target.encode(batch.observation[:, 1], batch.task), action).min(0).values
    ended = batch.terminated & (batch.length == 1)
    discount = EXPERIMENT.targets.discount
    y = batch.reward[:, 0] + discount * torch.where(ended, 0.0, ahead + alpha * entropy)
    features = network.encode(batch.observation[:, 0], batch.task)
    q = network.q(features, batch.action[:, 0])
    action, entropy = drawn(batch.observation[:, 0], here)
    own = network.q(features, action).min(0).values
    expected = {
        "critic": (0.5 * ((q[0] - y) ** 2 + (q[1] - y) ** 2)).mean(),
        "actor": (-own - alpha * entropy).mean(),
        "temperature": (alpha * (entropy + torch.tensor([2.0, 1.0])[batch.task])).mean(),
    }
    for name, value in expected.items():
        assert float(found.terms[name]) == pytest.approx(float(value.detach()), rel=1e-4), name
    assert float(found.total.detach()) == pytest.approx(float(found.windows.detach().sum()))
    assert float(found.total.detach()) == pytest.approx(float(sum(expected.values()).detach()), rel=1e-4)  # type: ignore[union-attr]


def gradients(loss: Tensor, network: SACNetwork) -> dict[str, float]:
    """The largest gradient of each parameter."""
    network.zero_grad()
    loss.backward()
    return {
        name: 0.0 if x.grad is None else float(x.grad.abs().max()) for name, x in network.named_parameters()
    }


def test_each_loss_reaches_its_own_parameters() -> None:
    """The policy's loss its head alone: neither Q nor the encoder, which the Q loss trains."""
    network, batch = make_network(), make_batch(EXPERIMENT, SIZES, 8)
    features = network.encode(batch.observation[:, 0], batch.task)
    policy = network.policy(features.detach(), batch.task)
    noise = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    q = frozen_q(network, features, policy.action(noise))
    actor = gradients(actor_loss(q, policy.entropy(noise), torch.full((8,), 0.1)).mean(), network)
    moved = {name for name, size in actor.items() if size > 0}
    assert moved == {name for name in actor if name.startswith("policy_head.")}
    log_temperature = torch.nn.Parameter(torch.zeros(2))
    found = sac_losses(batch, network, make_network(1), log_temperature, EXPERIMENT, torch.Generator())
    everything = gradients(found.total, network)
    assert all(size > 0 for size in everything.values())
    assert log_temperature.grad is not None and (log_temperature.grad != 0).all()


def test_the_policy_climbs_q() -> None:
    """The gradient of a frozen Q for the action is the one that finite differences give."""
    network, batch = make_network().double(), make_batch(EXPERIMENT, SIZES, 4)
    features = network.encode(batch.observation[:, 0].double(), batch.task).detach()
    action = batch.action[:, 0].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda a: frozen_q(network, features, a).amin(0), action)


def test_padded_actions_have_no_gradient_and_no_entropy() -> None:
    network = make_network()
    batch = make_batch(EXPERIMENT, SIZES, 8)
    only = Batch(*(x[batch.task == 1] for x in batch))
    found = sac_losses(only, network, make_network(1), torch.zeros(2), EXPERIMENT, torch.Generator())
    network.zero_grad()
    found.total.backward()
    head, first = network.policy_head, network.q_heads.weights[0].grad
    for parameter in (head.weights[2], head.biases[2]):
        grad = parameter.grad
        assert grad is not None and first is not None
        rows = grad[0].reshape(4, -1).abs().amax(1)  # mean of both actions, then log std
        assert rows[0] > 0 and rows[2] > 0, "the real action"
        assert rows[1] == rows[3] == 0, "the padded one"
    assert (first[:, :, -1] == 0).all() and (first[:, :, -2] != 0).any(), "Q reads the padded action as zero"
    policy = network.policy(network.encode(only.observation[:, 0], only.task), only.task)
    noise = torch.randn(4, 2)
    alone = SquashedGaussian(policy.mean[:, :1], policy.log_std[:, :1], policy.mask[:, :1])
    assert torch.equal(policy.entropy(noise), alone.entropy(noise[:, :1]))
    assert (policy.action(noise)[:, 1] == 0).all()


def test_the_entropy_that_is_learned_from_is_minus_the_mean_log_probability() -> None:
    many = 200_000
    policy = SquashedGaussian(
        torch.tensor([0.3, -0.8]).expand(many, 2),
        torch.tensor([-0.5, -1.2]).expand(many, 2),
        torch.ones(many, 2),
    )
    noise = torch.randn(many, 2, generator=torch.Generator().manual_seed(0))
    direct = policy.surprise(policy.action(noise))
    assert float(policy.entropy(noise).mean()) == pytest.approx(float(direct.mean()), abs=0.01)
    assert float(policy.entropy(noise).std()) < 0.8 * float(direct.std()), "with less variance"


def test_the_temperature_moves_towards_the_target_entropy() -> None:
    """Too much entropy in the first task lowers its temperature; too little in the second raises its own."""
    network, batch = make_network(), make_batch(EXPERIMENT, SIZES, 8)
    spread = torch.tensor([1.0, -4.0])
    with torch.no_grad():
        network.policy_head.weights[2].zero_()
    log_temperature = torch.nn.Parameter(torch.full((2,), 0.1).log())
    policy = network.policy(network.encode(batch.observation[:, 0], batch.task), batch.task)
    wide = SquashedGaussian(policy.mean, spread[batch.task].unsqueeze(1) * policy.mask, policy.mask)
    entropy = wide.entropy(torch.zeros(8, 2)).detach()
    goal = -1.0 * policy.mask.sum(-1)
    assert (entropy > goal)[batch.task == 0].all() and (entropy < goal)[batch.task == 1].all()
    temperature_loss(log_temperature.exp()[batch.task], entropy, goal).mean().backward()
    assert log_temperature.grad is not None
    assert log_temperature.grad[0] > 0 > log_temperature.grad[1]
    assert log_temperature.grad.tolist() == pytest.approx(
        [0.1 * float((entropy - goal)[batch.task == task].sum()) / 8 for task in range(2)]
    )


def test_the_target_network_follows() -> None:
    network, target = make_network(0), make_network(1)
    network.normalizer.update(torch.randn(32, 4, generator=torch.Generator().manual_seed(0)))
    before = copy.deepcopy(target)
    track(target, network, 0.25)
    for mine, old, new in zip(target.parameters(), before.parameters(), network.parameters(), strict=True):
        assert torch.allclose(mine, 0.75 * old + 0.25 * new, atol=1e-6)
    assert torch.equal(target.normalizer.mean, network.normalizer.mean)
    track(target, network, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(target.parameters(), network.parameters(), strict=True))


def test_it_fits_a_batch() -> None:
    """Repeated updates on one batch of one-step episodes bring Q to its rewards."""
    batch = make_batch(EXPERIMENT, SIZES, 16, length=[1] * 16, terminated=[True] * 16)
    module = SACModule(EXPERIMENT, SIZES)
    optimizer = torch.optim.Adam(module.network.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    errors = []
    for _ in range(150):
        found = sac_losses(
            batch, module.network, module.target, module.log_temperature, EXPERIMENT, generator
        )
        optimizer.zero_grad()
        found.total.backward()
        optimizer.step()
        errors.append(float(found.diagnostics["value/error"]))
    assert errors[-1] < 0.1 * errors[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FitResult]:
    folder = tmp_path_factory.mktemp("sac")
    settings = {"agent": "sac", "trainer": {"log_every": 1, "gradient_conflict_every": 3}}
    return folder, run(fit_experiment(settings), folder, logger=CSVLogger(folder, "csv", version=""))


def test_a_run_logs_saves_and_resumes(finished: tuple[Path, FitResult], tmp_path: Path) -> None:
    folder, result = finished
    assert result.status == "finished" and result.updates == 6
    header = (folder / "csv" / "metrics.csv").read_text().splitlines()[0].split(",")
    experiment = fit_experiment({"agent": "sac"})
    said = set(logged_metrics(experiment))
    assert said - set(header) <= {f"selfplay/{task}/return" for task in experiment.tasks}
    assert {name for name in header if name.startswith("train/")} <= said
    saved = torch.load(last(folder), weights_only=True)
    assert saved["state_dict"]["log_temperature"].shape == (2,)
    measured = json.loads((folder / FILE).read_text())["measured"]
    assert [each["update"] for each in measured] == [0, 3]
    assert measured[1]["cosine"].keys() == {"representation", "value_policy"}
    longer = fit_experiment({"agent": "sac", "optim": {"final_updates": 3}})
    resumed = run(longer, tmp_path, checkpoint=last(folder))
    assert resumed.updates == 9
    with pytest.raises(CheckpointError, match="agent: sac -> ezm"):
        run(fit_experiment(), tmp_path, checkpoint=last(folder))


def test_a_trained_agent_acts_and_says_what_it_lacks(finished: tuple[Path, FitResult]) -> None:
    checkpoint = last(finished[0])
    again = [evaluate(checkpoint, episodes=1, seed=0, search=search) for search in (True, False)]
    assert np.array_equal(again[0].returns_ezm, again[1].returns_ezm), "there is no search to leave out"
    agent = Agent.load(checkpoint)
    task = agent.tasks[0]
    observation = agent.make_env(task).reset(seed=0)[0]
    action = agent.act(observation, task)
    assert np.array_equal(action, agent.act(observation, task, plan=False)) and np.abs(action).max() <= 1
    with pytest.raises(ValueError, match="agent sac, which has no search"):
        agent.plan(observation, task)
    with pytest.raises(CheckpointError, match="agent sac"):
        load_networks(checkpoint)


def test_updates_that_are_not_finite_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run ends with the reason in one line, and nothing has been learned from them."""
    first = SACModule.on_fit_start

    def start(module: SACModule) -> None:
        module.before = {name: x.clone() for name, x in module.state_dict().items()}  # type: ignore[assignment]
        module.data.buffer.blocks.reward = np.full_like(module.data.buffer.blocks.reward, np.nan)
        add = module.data.buffer.add
        monkeypatch.setattr(
            module.data.buffer, "add", lambda o, a, r, *rest: add(o, a, np.full_like(r, np.nan), *rest)
        )
        kept.append(module)
        first(module)

    kept: list[SACModule] = []
    monkeypatch.setattr(SACModule, "on_fit_start", start)
    experiment = fit_experiment(
        {"agent": "sac", "optim": {"max_skipped_updates": 2}, "eval": {"at_start": False}}
    )
    with pytest.raises(NonFiniteUpdates, match=r"loss terms: critic.*batch.reward: dmc-cartpole-balance"):
        run(experiment, tmp_path)
    (module,) = kept
    assert float(module.nonfinite_updates) >= 2
    for name, before in module.before.items():  # type: ignore[union-attr, operator]
        if not name.startswith(("nonfinite", "_skipped")):
            assert torch.equal(module.state_dict()[name], before), name


def test_deterministic_runs_are_equal(tmp_path: Path) -> None:
    experiment = fit_experiment(
        {"agent": "sac", "trainer": {"deterministic": True}, "eval": {"at_start": False}}
    )
    try:
        for name in ("one", "two"):
            run(experiment, tmp_path / name)
    finally:
        torch.use_deterministic_algorithms(False)
    one, two = (torch.load(last(tmp_path / n), weights_only=True)["state_dict"] for n in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_two_ranks_learn_the_same_weights(tmp_path: Path) -> None:
    """Each from half of the batch, so gradients have been reduced."""
    with two_ranks(tmp_path, overrides={"agent": "sac", "eval": {"at_start": False}}) as process:
        one, two = finish(tmp_path, process)
    assert one["updates"] == two["updates"] == 6
    assert not any(torch.equal(a, b) for a, b in zip(one["observed"], two["observed"], strict=True))
    assert {name for name in one["state"] if not torch.equal(one["state"][name], two["state"][name])} == set()
    assert not math.isclose(float(one["state"]["log_temperature"][0]), math.log(0.1), abs_tol=1e-6)
