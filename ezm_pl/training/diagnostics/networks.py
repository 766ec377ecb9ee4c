"""The networks of a checkpoint, as the diagnostics need them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ezm_pl.envs import TaskSizes
from ezm_pl.search import ActFn, Planner
from ezm_pl.spec import Experiment
from ezm_pl.training.fault_tolerance.checkpoint import CheckpointError
from ezm_pl.training.from_checkpoint import load_module
from ezm_pl.training.module import EZMModule
from ezm_pl.world_model import InferenceModel, WorldModel


@dataclass(frozen=True)
class Networks:
    """What a checkpoint holds.

    Attributes:
        experiment, sizes: its spec and the padded sizes of its tasks.
        model: the learner, in training form.
        learner: an inference copy of the learner.
        actor: an inference copy of what acts: the average of the weights where the spec keeps one.
        target: the network whose values are bootstrapped.
        planner: how the actor searches.
        act: how it decides in self-play.
        updates, env_steps: done by then; control steps per task.
    """

    experiment: Experiment
    sizes: TaskSizes
    model: WorldModel
    learner: InferenceModel
    actor: InferenceModel
    target: InferenceModel
    planner: Planner
    act: ActFn
    updates: int
    env_steps: int

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def latent_size(self) -> int:
        return self.experiment.model.latent_size


def load_networks(checkpoint: Path) -> Networks:
    """Loads them on the best device.

    Raises:
        CheckpointError: see `checkpoint_experiment`; or the agent has no world model to judge.
    """
    experiment, module, updates, env_steps = load_module(checkpoint)
    if not isinstance(module, EZMModule):
        raise CheckpointError(
            f"{checkpoint}: agent {experiment.agent} has no world model, which `ezm diagnose` needs"
        )
    learner = module.new_actor()
    learner.load(module.model)
    return Networks(
        experiment=experiment,
        sizes=module.sizes,
        model=module.model.eval(),
        learner=learner,
        actor=module.trained_actor(),
        target=module.target,
        planner=module.planner,
        act=module.act,
        updates=updates,
        env_steps=env_steps,
    )
