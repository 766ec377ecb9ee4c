"""EZMModule in Lightning's loop, fed from memory: inference copies, updates that are skipped, statistics."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from training_helpers import make_batch, make_experiment, make_sizes

from ezm_pl.selfplay import Pacing, PhaseTimer, WeightStore
from ezm_pl.spec import Experiment
from ezm_pl.training import EZMModule
from ezm_pl.training.batch import Batch, Targets
from ezm_pl.training.fault_tolerance.skipped import NonFiniteUpdates
from ezm_pl.training.pipeline import Prepared

SIZES = make_sizes([4, 3], [2, 1])


class Priorities:
    """A buffer that only keeps the priorities it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[np.ndarray, np.ndarray]] = []

    def update_priorities(self, task: Any, index: np.ndarray, transition_id: Any, error: np.ndarray) -> None:
        self.told.append((index, error))


class FromMemory(L.LightningDataModule):
    """Stands in for self-play: these batches, no collector; each is reanalysed when it is used."""

    def __init__(self, batches: list[Batch]) -> None:
        super().__init__()
        self.batches, self.buffer, self.store = batches, Priorities(), WeightStore()
        self.timer, self.pacing, self.pipeline = PhaseTimer(), Pacing(10**6, 10**6, 1.0), self
        self.sync = SimpleNamespace(ranks_in_sync=True)
        self.published: list[tuple[int, float]] = []
        publish = self.store.publish

        def recorded(version: int, state: Any) -> None:
            self.published.append((version, float(state["model.task_embedding"][0, 0])))
            publish(version, state)

        self.store.publish = recorded  # type: ignore[method-assign]

    def start(self, actor: Any, act: Any, device: torch.device, targets: Any) -> None:
        self.actor, self.reanalyse = actor, targets

    def drain(self) -> None:
        """Nothing is reanalysed beforehand."""

    def prepared(self) -> Iterator[Prepared]:
        for batch in self.batches:
            yield Prepared(batch, lambda batch=batch: (batch, self.reanalyse(batch, self.pacing.updates)))

    def train_dataloader(self) -> Iterator[Prepared]:
        return self.prepared()


class Recorded(EZMModule):
    """Keeps the tag (see `Tagging`) of the target network that each batch was reanalysed with."""

    def __init__(self, experiment: Experiment) -> None:
        super().__init__(experiment, SIZES)
        self.tags: list[tuple[int, float]] = []
        self.snapshots: list[dict[str, Tensor]] = []

    def reanalyse(self, batch: Batch, updates: int) -> Targets:
        self.tags.append((updates, float(self.target.model.task_embedding[0, 0])))
        return super().reanalyse(batch, updates)

    def everything(self) -> dict[str, Tensor]:
        """Parameters, statistics and optimiser state of the learning copy."""
        optimizer = self.optimizers().optimizer  # type: ignore[union-attr]
        state = {f"model.{name}": x.clone() for name, x in self.model.state_dict().items()}
        for i, parameter in enumerate(self.model.parameters()):
            for name, x in optimizer.state.get(parameter, {}).items():
                state[f"adam.{i}.{name}"] = x.clone()
        return state


class Tagging(Recorded):
    """After the optimiser's step `s` the first entry of the task embedding is `s`."""

    def _step_if_finite(self, *args: Any) -> Tensor:
        skipped = super()._step_if_finite(*args)
        with torch.no_grad():
            self.model.task_embedding[0, 0] = self.global_step
        return skipped


class Snapshots(Callback):
    """State before the first update and after every one."""

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        if not module.snapshots:  # type: ignore[union-attr]
            module.snapshots.append(module.everything())  # type: ignore[union-attr, operator]

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        module.snapshots.append(module.everything())  # type: ignore[union-attr, operator]


def train(
    experiment: Experiment,
    batches: list[Batch],
    *callbacks: Callback,
    precision: Any = "32-true",
    kind: type[Recorded] = Recorded,
) -> tuple[Recorded, FromMemory]:
    module, data = kind(experiment), FromMemory(batches)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, data)
    return module, data


def batches(experiment: Experiment, count: int) -> list[Batch]:
    return [make_batch(experiment, SIZES, 4, seed=i) for i in range(count)]


def test_the_target_is_5_to_9_updates_old_and_the_actor_0_to_4() -> None:
    """Refreshed every 5 updates: after 10 the actor has the weights of update 10, the target of update 5."""
    experiment = make_experiment()
    module, data = train(experiment, batches(experiment, 23), kind=Tagging)
    initial = module.tags[0][1]
    for done, tag in module.tags:
        expected = done // 5 * 5 - 5
        assert tag == (expected if expected > 0 else initial), f"after {done} updates"
    assert [done for done, _ in module.tags] == list(range(23))
    assert [(v, t) for v, t in data.published if v > 0] == [(5, 5.0), (10, 10.0), (15, 15.0), (20, 20.0)]
    assert data.published[0][0] == 0, "the first weights go out before the first update"
    newest = data.store.newer_than(-1)
    assert newest is not None
    data.actor.load_state_dict(newest[1])
    assert float(data.actor.model.task_embedding[0, 0]) == 20
    assert data.pacing.updates == 23


def test_refresh_every_is_a_setting() -> None:
    experiment = make_experiment({"optim": {"refresh_every": 2}})
    module, data = train(experiment, batches(experiment, 7), kind=Tagging)
    assert [tag for done, tag in module.tags if done >= 4] == [2, 2, 4]
    assert [version for version, _ in data.published] == [0, 2, 4, 6]


def test_priorities_return_to_the_buffer_after_every_update() -> None:
    experiment = make_experiment()
    _, data = train(experiment, batches(experiment, 3))
    assert len(data.buffer.told) == 3
    for index, error in data.buffer.told:
        assert index.tolist() == [0, 1, 2, 3] and np.isfinite(error).all() and (error != 0).any()


def poisoned(batch: Batch, how: str) -> Batch:
    if how == "reward":  # a NaN loss through NaN targets
        return batch._replace(reward=batch.reward * torch.nan)
    if how == "weight":  # an infinite loss
        return batch._replace(weight=batch.weight * torch.inf)
    return batch._replace(observation=batch.observation * torch.inf)  # NaN from the encoder on


@pytest.mark.parametrize("how", ["reward", "weight", "observation"])
def test_an_update_that_is_not_finite_is_skipped_and_counted(how: str) -> None:
    """Nothing of the learner moves: parameters, Adam's state, BatchNorm's and the normaliser's statistics."""
    experiment = make_experiment()
    some = batches(experiment, 5)
    some[2] = poisoned(some[2], how)
    module, data = train(experiment, some, Snapshots())
    assert float(module.nonfinite_updates) == 1
    assert module.global_step == 5
    before, after = module.snapshots[2], module.snapshots[3]
    assert before.keys() == after.keys() and any(name.startswith("adam.") for name in before)
    for name, old in before.items():
        assert torch.equal(old, after[name]), name
    for one, two in ((1, 2), (3, 4), (4, 5)):
        moved = [n for n, x in module.snapshots[one].items() if not torch.equal(x, module.snapshots[two][n])]
        assert any(n.startswith("model.encoder") for n in moved)
        assert any(n.endswith("exp_avg") for n in moved)
        assert "model.normalizer.mean" in moved
        assert any(n.endswith("running_var") for n in moved)
    assert all(torch.isfinite(x).all() for x in module.snapshots[-1].values())
    # The buffer leaves the priorities of errors that are not finite alone.
    assert [bool(np.isfinite(error).all()) for _, error in data.buffer.told] == [
        True,
        True,
        False,
        True,
        True,
    ]
    assert np.isnan(data.buffer.told[2][1]).all()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_too_many_skipped_updates_in_a_row_stop_the_run_with_a_diagnosis(precision: str) -> None:
    experiment = make_experiment({"optim": {"max_skipped_updates": 3}, "trainer": {"log_every": 1}})
    some = batches(experiment, 9)
    for n in (1, 2, 4, 5, 6):  # two in a row, then three
        reward = some[n].reward.clone()
        reward[some[n].task == 1, 0] = torch.nan
        some[n] = some[n]._replace(reward=reward)
    with pytest.raises(NonFiniteUpdates) as caught:
        train(experiment, some, precision=precision)
    text = str(caught.value)
    assert text.startswith("3 updates in a row were skipped") and "\n" not in text
    assert "loss terms: reward" in text
    assert "batch.reward: dmc-reacher-easy (2 of 2 windows)" in text
    assert "dmc-cartpole-balance" not in text and "the weights are finite" in text


def test_gradients_are_clipped_to_the_spec_s_norm() -> None:
    """What Adam averages has the spec's norm; a huge weight makes clipping certain."""
    experiment = make_experiment({"optim": {"max_grad_norm": 0.25, "weight_decay": 0.0}})
    norms: list[float] = []

    class Norm(Callback):
        def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
            averages = [of["exp_avg"] for of in trainer.optimizers[0].state.values()]
            norms.append(float(torch.stack([x.norm() for x in averages]).norm()))

    (one,) = batches(experiment, 1)
    train(experiment, [one._replace(weight=one.weight * 1e4)], Norm())
    assert norms == pytest.approx([0.1 * 0.25], rel=1e-3)  # the average of a gradient and nothing before it


def test_only_the_learning_copy_is_trained() -> None:
    """The inference copies never have a gradient, and an optimiser step leaves them as they are."""
    experiment = make_experiment({"optim": {"refresh_every": 100}})
    module = Recorded(experiment)
    before = {
        name: x.clone()
        for name, x in module.state_dict().items()
        if name.startswith(("actor_weights", "target"))
    }
    module, _ = train(experiment, batches(experiment, 3))
    for name, x in module.state_dict().items():
        if name in before:
            assert torch.equal(x, before[name]), name
    assert all(p.grad is None and not p.requires_grad for p in module.actor_weights.parameters())
    assert all(p.grad is None and not p.requires_grad for p in module.target.parameters())
    optimised = {
        id(p)
        for g in module.configure_optimizers().param_groups
        for p in g["params"]  # type: ignore[union-attr]
    }
    assert optimised == {id(p) for p in module.model.parameters()}


def test_the_normaliser_learns_from_the_sampled_observations_in_training_only() -> None:
    experiment = make_experiment()
    some = batches(experiment, 3)
    module, _ = train(experiment, some)
    seen = torch.cat([b.observation[:, 0] for b in some])
    torch.testing.assert_close(module.model.normalizer.mean, seen.mean(0))
    torch.testing.assert_close(module.model.normalizer.variance, seen.var(0, correction=0))
    assert float(module.model.normalizer.count) == 12
    module.eval()
    module.model.normalizer.update(torch.full((5, 4), 100.0))
    assert float(module.model.normalizer.count) == 12
    module.train()
    assert module.model.training and not module.actor_weights.training and not module.target.training


def test_the_same_seed_gives_the_same_network_and_another_seed_another() -> None:
    """And global random state neither matters nor moves."""
    torch.manual_seed(1)
    one = EZMModule(make_experiment({"seed": 3}), SIZES)
    torch.manual_seed(2)
    two = EZMModule(make_experiment({"seed": 3}), SIZES)
    other = EZMModule(make_experiment({"seed": 4}), SIZES)
    for (name, x), y in zip(one.model.state_dict().items(), two.model.state_dict().values(), strict=True):
        assert torch.equal(x, y), name
    assert not torch.equal(one.model.task_embedding, other.model.task_embedding)


def test_training_is_deterministic() -> None:
    experiment = make_experiment()
    states = [train(experiment, batches(experiment, 3))[0].state_dict() for _ in range(2)]
    for name, x in states[0].items():
        assert torch.equal(x, states[1][name]), name


def test_a_batch_of_very_different_tasks_at_the_sizes_of_hb_medium() -> None:
    """Nine tasks of different observation and action sizes, padded: an update trains, all stays finite."""
    sizes = make_sizes([51, 40, 51, 6, 51, 51, 30, 51, 51], [19, 10, 19, 1, 19, 19, 7, 19, 19])
    experiment = make_experiment()
    some = []
    for seed in range(2):
        lengths = [10, 3, 10, 1, 7, 10, 2, 10, 5] * 2
        ends = [False, True, True, False, True, False, False, False, True] * 2
        some.append(make_batch(experiment, sizes, 18, seed, length=lengths, terminated=ends))

    class Wide(Recorded):
        def __init__(self, experiment: Experiment) -> None:
            EZMModule.__init__(self, experiment, sizes)
            self.tags, self.snapshots = [], []

    module, data = Wide(experiment), FromMemory(some)
    before = module.model.task_embedding.detach().clone()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, data)
    assert float(module.nonfinite_updates) == 0
    assert (module.model.task_embedding != before).any(1).all(), "every task's embedding has been trained"
    for _, error in data.buffer.told:
        assert np.isfinite(error).all()


def test_the_average_of_the_weights_acts_and_bootstraps() -> None:
    """Update `s` sets a weight to `s`: the average of decay 0.5, taken every 5 updates, moves by 31/32."""
    experiment = make_experiment({"optim": {"averaging": 0.5}})
    start = float(EZMModule(experiment, SIZES).model.task_embedding[0, 0].detach())
    module, data = train(experiment, batches(experiment, 10), kind=Tagging)
    first = start + (5 - start) * 31 / 32
    second = first + (10 - first) * 31 / 32
    assert float(module.smoothed.task_embedding[0, 0]) == pytest.approx(second, rel=1e-5)
    assert float(module.actor_weights.model.task_embedding[0, 0]) == pytest.approx(second, rel=1e-5)
    assert float(module.target.model.task_embedding[0, 0]) == pytest.approx(first, rel=1e-5)
    assert [value for _, value in data.published] == pytest.approx([start, first, second], rel=1e-5)
    assert not any(parameter.requires_grad for parameter in module.smoothed.parameters())


def test_the_learning_rate_falls_to_a_tenth_over_the_last_share_of_updates() -> None:
    experiment = make_experiment({"optim": {"decay_share": 0.5, "total_updates": 10, "learning_rate": 1e-3}})
    rates: list[float] = []

    class Rates(Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    train(experiment, batches(experiment, 10), Rates())
    assert rates == pytest.approx([1e-3] * 6 + [0.82e-3, 0.64e-3, 0.46e-3, 0.28e-3])


def test_the_spread_of_q_is_as_it_was_after_a_skipped_update() -> None:
    experiment = make_experiment({"loss": {"pathwise": 1.0, "observation": 1.0}})
    broken = batches(experiment, 2)
    broken[1] = broken[1]._replace(observation=broken[1].observation * torch.nan)
    one, _ = train(experiment, broken[:1])
    two, _ = train(experiment, broken)
    assert one.spread is not None and two.spread is not None
    assert int(two.nonfinite_updates) == 1
    torch.testing.assert_close(two.spread.variance, one.spread.variance)
    assert one.spread.seen.tolist() == two.spread.seen.tolist() == [1, 1]
