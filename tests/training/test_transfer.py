"""Weights carried over to other tasks: by name, to every copy, and refused where they do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_helpers import make_experiment, make_model

from ezm_pl.envs import sizes
from ezm_pl.envs.signals import task_signals
from ezm_pl.spec import Experiment, SpecError, dump_experiment
from ezm_pl.training.fault_tolerance.checkpoint import FORMAT, write_checkpoint
from ezm_pl.training.module import EZMModule
from ezm_pl.training.transfer import carry_over, plan_transfer
from ezm_pl.world_model import WorldModel


def experiment_of(*tasks: str, **more: object) -> Experiment:
    return make_experiment({"tasks": list(tasks), "model": {"head_norm": "layer"}, **more})


def saved(tmp_path: Path, experiment: Experiment) -> tuple[Path, WorldModel]:
    """A checkpoint of a world model none of whose outputs are constant, and that model."""
    module = EZMModule(experiment, sizes(experiment.tasks))
    model = make_model(experiment, module.sizes)
    model.normalizer.mean.normal_()
    model.normalizer.count.fill_(1e6)
    module.model.load_state_dict(model.state_dict())
    contents = dict.fromkeys(
        ("optimizer_states", "lr_schedulers", "loops", "callbacks", "generators", "SelfPlayDataModule"), 0
    )
    contents |= {"pytorch-lightning_version": "", "global_step": 7, "format": FORMAT}
    contents |= {"experiment": dump_experiment(experiment), "state_dict": module.state_dict()}
    write_checkpoint(contents, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt", model.eval()


def transferred(checkpoint: Path, experiment: Experiment) -> EZMModule:
    module = EZMModule(experiment, sizes(experiment.tasks))
    carry_over(plan_transfer(checkpoint, experiment), module)
    return module.eval()


def test_a_task_that_both_have_behaves_as_before(tmp_path: Path) -> None:
    """Also where the other tasks make observations and actions wider, and the task has another id."""
    checkpoint, old = saved(tmp_path, experiment_of("h1-stand", "h1-walk"))
    module = transferred(checkpoint, experiment_of("h1-reach", "h1-walk"))
    generator = torch.Generator().manual_seed(0)
    observation, action = torch.randn(6, 51, generator=generator), torch.rand(6, 19, generator=generator)
    wider = torch.cat([observation, torch.zeros(6, 6)], 1)
    ids = torch.ones(6, dtype=torch.long)
    latent, expected = module.model.encode(wider, ids), old.encode(observation, ids)
    assert torch.allclose(latent, expected, atol=1e-5)
    following = module.model.next_latent(latent, action, ids), old.next_latent(expected, action, ids)
    assert torch.allclose(*following, atol=1e-5)
    policies = [each.policy(each.features(latent, ids), ids).mean for each in (module.model, old)]
    assert torch.allclose(*policies, atol=1e-5) and policies[0].abs().max() > 0
    state, _ = module.actor_weights.root(wider, ids)
    assert torch.allclose(state[:, : latent.shape[1]], latent, atol=1e-4), (
        "what acts is what was carried over"
    )


def test_columns_follow_their_names(tmp_path: Path) -> None:
    """With hands the velocities come after other positions: no column stays where it was, each name does."""
    checkpoint, old = saved(tmp_path, experiment_of("h1-walk"))
    model = transferred(checkpoint, experiment_of("h1hand-walk")).model
    was = [each.name for each in task_signals("h1-walk").observation]
    now = [each.name for each in task_signals("h1hand-walk").observation]
    for name in ("left_knee", "left_knee velocity", "right_elbow velocity"):
        column, before = now.index(name), was.index(name)
        assert torch.equal(model.encoder[0].weight[:, column], old.encoder[0].weight[:, before])
        assert model.normalizer.mean[column] == old.normalizer.mean[before]
    actuators = [[each.name for each in task_signals(task).action] for task in ("h1hand-walk", "h1-walk")]
    at, before = (names.index("right_knee") for names in actuators)
    assert torch.equal(model.policy_head.weights[2][0, at], old.policy_head.weights[2][0, before])
    assert torch.equal(model.policy_head.biases[2][0, 61 + at], old.policy_head.biases[2][0, 19 + before])


def test_what_is_new_is_said_and_starts_quietly(tmp_path: Path) -> None:
    checkpoint, old = saved(tmp_path, experiment_of("h1-stand", "h1-walk"))
    experiment = experiment_of("h1-reach")
    plan = plan_transfer(checkpoint, experiment)
    assert str(plan).startswith(
        f"first weights from {checkpoint}: 51 of 57 observations (new: h1-reach task2[0], "
    )
    assert str(plan).endswith("19 of 19 actuators, 0 of 1 tasks (new: h1-reach)")
    model = transferred(checkpoint, experiment).model
    assert (model.encoder[0].weight[:, 51:57] == 0).all()
    assert torch.allclose(model.task_embedding[0], old.capped_embedding().mean(0))
    assert model.normalizer.count == 10_000, "so that it gets to know the new observations"


def test_numbers_without_a_name_match_within_their_task_only(tmp_path: Path) -> None:
    checkpoint, _ = saved(tmp_path, experiment_of("gym:HalfCheetah-v5"))
    assert "17 of 17 observations" in str(plan_transfer(checkpoint, experiment_of("gym:HalfCheetah-v5")))
    with pytest.raises(SpecError, match="it observes nothing that these tasks observe"):
        plan_transfer(checkpoint, experiment_of("gym:Walker2d-v5"))


@pytest.mark.parametrize(
    ("tasks", "more", "line"),
    [
        (
            ["h1-walk"],
            {"model": {"head_norm": "layer", "latent_size": 64}},
            "model.latent_size: 32 there, 64 here",
        ),
        (["h1-walk"], {"model": {"head_norm": "batch"}}, "model.head_norm: layer there, batch here"),
        (["h1-walk"], {"loss": {"observation": 1.0}}, "without a decoder there, with one here"),
        (["gym:Pendulum-v1"], {}, "it observes nothing that these tasks observe"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, tasks: list[str], more: dict[str, object], line: str
) -> None:
    checkpoint, _ = saved(tmp_path, experiment_of("h1-stand"))
    with pytest.raises(SpecError, match=line):
        plan_transfer(checkpoint, experiment_of(*tasks, **more))
