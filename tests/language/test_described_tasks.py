"""Embeddings from sentence vectors: which description is drawn, the cap, the copies that act, transfer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ezm_pl.envs import sizes
from ezm_pl.spec import Experiment, SpecError, build_experiment, dump_experiment
from ezm_pl.training.fault_tolerance.checkpoint import FORMAT, write_checkpoint
from ezm_pl.training.module import EZMModule
from ezm_pl.training.transfer import carry_over, plan_transfer
from ezm_pl.world_model.language import SENTENCE_SIZE, DescribedTasks

TASKS = ["dmc-cartpole-balance", "dmc-pendulum-swingup"]


def vectors(*counts: int, seed: int = 0) -> list[Tensor]:
    """As many random sentence vectors for each task."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(count, SENTENCE_SIZE, generator=generator) for count in counts]
    return [torch.nn.functional.normalize(each, dim=-1) for each in drawn]


def experiment_of(tasks: list[str], conditioning: str = "text", **model: Any) -> Experiment:
    return build_experiment(
        {
            "name": "words",
            "preset": "smoke",
            "tasks": tasks,
            "model": {"task_conditioning": conditioning, "head_norm": "layer", **model},
            "search": {"dtype": "float32"},
            "optim": {"averaging": 0.5},
        }
    )


def module_of(experiment: Experiment, training: list[Tensor], held_out: list[Tensor]) -> EZMModule:
    module = EZMModule(experiment, sizes(experiment.tasks))
    module.describe(training, held_out)
    return module


def saved(module: EZMModule, folder: Path) -> Path:
    contents = dict.fromkeys(
        ("optimizer_states", "lr_schedulers", "loops", "callbacks", "generators", "SelfPlayDataModule"), 0
    )
    contents |= {"pytorch-lightning_version": "", "global_step": 7, "format": FORMAT}
    contents |= {"experiment": dump_experiment(module.experiment), "state_dict": module.state_dict()}
    write_checkpoint(contents, folder / "last.ckpt")
    return folder / "last.ckpt"


def test_each_row_has_a_description_of_its_own_task_and_all_are_drawn() -> None:
    described = DescribedTasks(2, 4)
    described.describe(vectors(3, 5), vectors(1, 1, seed=1))
    task = torch.arange(2).repeat(200)
    drawn = described(task, torch.Generator().manual_seed(0))
    for index, count in enumerate((3, 5)):
        mine = described.embed(described.training_vectors[index, :count])
        distance = torch.cdist(drawn[task == index], mine)
        assert distance.min(1).values.max() < 1e-3
        assert set(distance.argmin(1).tolist()) == set(range(count))
    again = described(task, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again), "the run's generator decides, nothing else"


def test_norms_are_capped_and_what_sentences_share_counts_for_nothing() -> None:
    described = DescribedTasks(2, 4)
    training, shift = vectors(3, 5), torch.randn(SENTENCE_SIZE)
    described.describe(training, vectors(1, 1, seed=1))
    before = described.table()
    described.describe([3 * each + shift for each in training], vectors(1, 1, seed=1))
    torch.testing.assert_close(described.table(), before, atol=1e-4, rtol=1e-3)
    with torch.no_grad():
        described.projection.mul_(100)
    torch.testing.assert_close(described.table().norm(dim=1), torch.ones(2))


def test_held_out_tables() -> None:
    described = DescribedTasks(2, 4)
    held_out = vectors(1, 3, seed=1)
    described.describe(vectors(2, 2), held_out)
    tables = described.tables("held-out")
    assert len(tables) == 3 and len(described.tables("training")) == 2
    for index, table in enumerate(tables):
        torch.testing.assert_close(table[0], described.embed(held_out[0][0]))
        torch.testing.assert_close(table[1], described.embed(held_out[1][index]))
    described.describe(vectors(2, 2), [held_out[0], held_out[1][:0]])
    assert described.tables("held-out") == []


def test_all_copies_act_by_the_first_description() -> None:
    module = module_of(experiment_of(TASKS), vectors(2, 3), vectors(1, 1, seed=1))
    model = module.model.eval()
    observation, task = torch.randn(4, module.sizes.obs_size), torch.tensor([0, 1, 0, 1])
    assert model.described is not None
    first = model.described.embed(model.described.training_vectors[task, 0])
    torch.testing.assert_close(model.embed(task), first)
    expected = model.encode(observation, first)
    size = module.experiment.model.latent_size
    for actor in (module.actor_weights, module.target, module.trained_actor()):
        torch.testing.assert_close(actor.root(observation, task)[0][:, :size], expected, atol=1e-4, rtol=1e-3)
    other = module.trained_actor(model.described.tables("held-out")[0])
    assert (other.root(observation, task)[0][:, :size] - expected).abs().max() > 1e-3


def test_a_checkpoint_brings_its_own_number_of_descriptions() -> None:
    experiment = experiment_of(TASKS)
    module = module_of(experiment, vectors(2, 3), vectors(1, 2, seed=1))
    other = EZMModule(experiment, module.sizes)
    other.load_state_dict(module.state_dict())
    assert other.model.described is not None and module.model.described is not None
    torch.testing.assert_close(other.model.capped_embedding(), module.model.capped_embedding())
    for mine, theirs in zip(
        other.model.described.tables("held-out"), module.model.described.tables("held-out"), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_transfer_carries_the_projection_and_describes_new_tasks(tmp_path: Path) -> None:
    """What a sentence means stays as it was learned: a new task is known by its sentences alone."""
    old = module_of(experiment_of(TASKS), vectors(2, 3), vectors(1, 1, seed=1))
    checkpoint = saved(old, tmp_path)
    experiment = experiment_of(["dmc-cartpole-swingup"])
    module = module_of(experiment, vectors(4, seed=2), vectors(2, seed=3))
    carry_over(plan_transfer(checkpoint, experiment), module)
    before, now = old.smoothed.described, module.smoothed.described
    assert before is not None and now is not None
    assert torch.equal(now.projection, before.projection) and torch.equal(now.centre, before.centre)
    assert now.training_vectors.shape == (1, 4, SENTENCE_SIZE)
    torch.testing.assert_close(module.target.model.task_embedding, before.embed(vectors(4, seed=2)[0][:1]))
    with pytest.raises(SpecError, match=r"model\.task_conditioning: text there, id here"):
        plan_transfer(checkpoint, experiment_of(["dmc-cartpole-swingup"], "id"))
