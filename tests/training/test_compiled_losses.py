"""Losses and gradients as one C++ program: equal results for any weights, batches and draws."""

from __future__ import annotations

import copy
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_helpers import make_batch, make_experiment, make_model, make_sizes, make_targets

from ezm_pl.programs import program as of_programs
from ezm_pl.spec import Experiment
from ezm_pl.training.batch import Batch, Targets
from ezm_pl.training.compiled_losses import CompiledLosses
from ezm_pl.training.losses import losses, unroll
from ezm_pl.training.pathwise import QSpread
from ezm_pl.world_model import WorldModel

SIZES = make_sizes([4, 3], [2, 1])
BASE: dict[str, Any] = {"targets": {"unroll_steps": 3, "td_steps": 2}, "loss": {"pathwise": 1.0}}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


class Updates:
    """The same updates plainly and by `CompiledLosses`, each with a model of its own."""

    def __init__(self, experiment: Experiment, seed: int = 0) -> None:
        self.experiment = experiment
        self.model, self.spread = make_model(experiment, SIZES, seed), QSpread(2)
        self.compiled = CompiledLosses(experiment, self.model, self.spread, bfloat16=False)
        self.generator = torch.Generator().manual_seed(seed)

    def plain(self, batch: Batch, targets: Targets) -> dict[str, Tensor]:
        self.model.normalizer.update(batch.observation[:, 0])
        spec = self.experiment.targets
        x = unroll(self.model, batch, targets, spec, self.generator, self.spread)
        found = losses(x, self.experiment.loss)
        found.total.backward()
        return self.state({"total": found.total.detach(), "error": found.value_error})

    def by_program(self, batch: Batch, targets: Targets) -> dict[str, Tensor] | None:
        found = self.compiled(batch, targets, self.generator)
        return None if found is None else self.state({"total": found.total, "error": found.value_error})

    def state(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                assert parameter.grad.stride() == parameter.stride(), "a fused optimiser reads no strides"
                found[f"gradient of {name}"], parameter.grad = parameter.grad, None
        for module in (self.model, self.spread):
            found |= {f"buffer {name}": x.clone() for name, x in module.named_buffers()}
        return found | {"generator": self.generator.get_state()}


def batch_of(experiment: Experiment, size: int, seed: int) -> tuple[Batch, Targets]:
    batch = make_batch(experiment, SIZES, size, seed, length=[5, 5, 2, 1, 3, 5][:size])
    return batch, make_targets(experiment, SIZES, batch, seed + 1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_program_finds_the_same_losses_gradients_and_statistics() -> None:
    updates, plain = (Updates(make_experiment(BASE)) for _ in range(2))
    first = batch_of(updates.experiment, 6, 0)
    assert updates.by_program(*first) is None
    with updates.compiled.watched(*first):
        noted = updates.plain(*first)
    assert_same(noted, plain.plain(*first), exactly=True)
    assert updates.compiled.wait()
    # Another batch, other weights of the network, then other weights of the terms: the same program.
    for seed, loss in ((5, {}), (6, {"value": 0.7, "pathwise": 0.3})):
        experiment = make_experiment(BASE | {"loss": BASE["loss"] | loss})
        for each in (updates, plain):
            each.experiment = each.compiled._experiment = experiment
            for parameter in each.model.parameters():
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
                parameter.data.add_(noise, alpha=0.05)
        batch = batch_of(experiment, 6, seed)
        found = updates.by_program(*batch)
        assert found is not None
        assert_same(found, plain.plain(*batch))
    assert updates.by_program(*batch_of(experiment, 4, 0)) is None, "a program is of one batch size"

    assert copy.deepcopy(updates.compiled).wait()
    updates.model.task_embedding.requires_grad_(False)
    assert updates.by_program(*batch) is None, "a program is of what it learns"

    later = Updates(make_experiment(BASE | {"loss": BASE["loss"] | {"reward": 0.5}}))
    with later.compiled.watched(*first):
        later.plain(*first)
    assert later.compiled._of(*first).spec.made(), "weights of the terms are inputs"


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], *, exactly: bool = False) -> None:
    assert found.keys() == expected.keys()
    largest: dict[str, float] = {}
    for name, x in expected.items():
        network = name.partition(".")[0]
        largest[network] = max(largest.get(network, 0.0), float(x.double().norm()))
    assert sum(name.startswith("gradient") for name in largest) > 8
    for name, x in found.items():
        if exactly or not x.is_floating_point():
            assert torch.equal(x, expected[name]), name
        else:
            error = float((x - expected[name]).double().norm())
            assert error <= 1e-4 * largest[name.partition(".")[0]], f"{name}: {error:.1e}"


@pytest.mark.parametrize(
    ("document", "device", "ranks", "possible"),
    [
        ({}, "cpu", 1, True),
        ({"optim": {"compiled": False}}, "cpu", 1, False),
        ({"model": {"latent_size": 512}}, "cpu", 1, False),
        ({}, "meta", 1, False),
        ({}, "cpu", 2, False),
    ],
)
def test_which_runs_may_have_a_program(
    document: dict[str, Any], device: str, ranks: int, possible: bool
) -> None:
    experiment = make_experiment(document)
    assert CompiledLosses.possible(experiment, torch.device(device), ranks) is possible


def test_a_run_with_a_term_of_its_own_has_no_program() -> None:
    experiment = make_experiment()
    loss = experiment.loss.model_copy(update={"extra": {"somebody.terms:own": 1.0}})
    assert not CompiledLosses.possible(experiment.model_copy(update={"loss": loss}), CPU, 1)


def test_deterministic_runs_have_no_program() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        assert not CompiledLosses.possible(make_experiment(), CPU, 1)
    finally:
        torch.use_deterministic_algorithms(False)


def test_without_a_compiler_one_line_says_so_and_updates_go_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(of_programs, "EARNED", 0.0)
    updates = Updates(make_experiment(BASE))
    batch = batch_of(updates.experiment, 6, 0)
    with caplog.at_level(logging.WARNING, "ezm_pl"):
        for _ in range(2):
            assert updates.by_program(*batch) is None
            with updates.compiled.watched(*batch):
                updates.plain(*batch)
            assert not updates.compiled.wait()
    assert [r.message for r in caplog.records] == ["losses are not compiled: no C++ compiler was found"]


def test_a_damaged_program_is_removed_in_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    updates = Updates(make_experiment(BASE))
    batch = batch_of(updates.experiment, 6, 0)
    path = updates.compiled._of(*batch).spec.path
    path.parent.mkdir(mode=0o700)
    path.write_bytes(b"no library")
    path.chmod(0o600)
    damaged = Updates(make_experiment(BASE))
    with damaged.compiled.watched(*batch):
        damaged.plain(*batch)
    assert not damaged.compiled.wait()
    assert not path.exists()
    (line,) = (record.message for record in caplog.records)
    assert line.startswith("losses are not compiled: ") and path.name in line


def test_a_learner_has_every_tensor_of_the_model_once() -> None:
    updates = Updates(make_experiment(BASE))
    assert isinstance(updates.model, WorldModel)
    assert len(updates.compiled._parameters) == len(list(updates.model.parameters()))
    assert len(updates.compiled._buffers) == len(list(updates.model.buffers())) + 2
