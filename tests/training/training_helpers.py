"""Small experiments, batches and models for the training tests.

Shapes: `B` positions, `U` unroll steps, `n` TD steps, `O` observation, `A` action, `R` candidates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ezm_pl.envs import TaskSizes
from ezm_pl.spec import Experiment, build_experiment
from ezm_pl.spec.presets import merge
from ezm_pl.training.batch import Batch, Targets
from ezm_pl.training.targets import masks
from ezm_pl.world_model import WorldModel

TASKS = ["dmc-cartpole-balance", "dmc-reacher-easy"]


def make_experiment(document: dict[str, Any] | None = None) -> Experiment:
    """The smoke preset on two dm_control tasks, in float32, with something laid over it."""
    base: dict[str, Any] = {
        "name": "test",
        "preset": "smoke",
        "tasks": TASKS,
        "env": {"workers": "sync"},
        "search": {"dtype": "float32"},
        "trainer": {"precision": "32-true", "accelerator": "cpu", "devices": 1},
    }
    return build_experiment(merge(base, document or {}))


def make_sizes(obs_sizes: list[int], action_sizes: list[int]) -> TaskSizes:
    """Sizes of made-up tasks."""
    width = max(action_sizes)
    mask = (np.arange(width)[None] < np.array(action_sizes)[:, None]).astype(np.float32)
    return TaskSizes(np.array(obs_sizes), np.array(action_sizes), max(obs_sizes), width, mask)


def make_model(experiment: Experiment, sizes: TaskSizes, seed: int = 0) -> WorldModel:
    """A world model none of whose outputs are constant (their last layers start at zero)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = WorldModel(experiment.model, sizes.obs_size, torch.as_tensor(sizes.action_mask))
        for head in (model.reward_head, model.policy_head):
            torch.nn.init.normal_(head.weights[2], std=0.1)
    return model


def make_batch(
    experiment: Experiment,
    sizes: TaskSizes,
    size: int = 8,
    seed: int = 0,
    *,
    length: list[int] | None = None,
    terminated: list[bool] | None = None,
) -> Batch:
    """A random batch as replay would give it: padded, repeated and zeroed past the end."""
    generator = torch.Generator().manual_seed(seed)
    unroll, td = experiment.targets.unroll_steps, experiment.targets.td_steps
    task = torch.arange(size) % len(sizes.obs_sizes)
    steps = torch.tensor(length if length is not None else [unroll + td] * size)
    observation = torch.randn(size, unroll + td + 1, sizes.obs_size, generator=generator)
    observation *= torch.arange(sizes.obs_size) < torch.as_tensor(sizes.obs_sizes)[task].view(-1, 1, 1)
    at = torch.minimum(torch.arange(unroll + td + 1), steps.unsqueeze(1))
    observation = observation[torch.arange(size).unsqueeze(1), at]
    action = torch.rand(size, unroll, sizes.action_size, generator=generator) * 2 - 1
    action = action * torch.as_tensor(sizes.action_mask)[task].unsqueeze(1)
    action = action * (torch.arange(unroll) < steps.unsqueeze(1)).unsqueeze(-1)
    reward = torch.rand(size, unroll + td, generator=generator)
    return Batch(
        task=task,
        observation=observation,
        action=action,
        reward=reward * (torch.arange(unroll + td) < steps.unsqueeze(1)),
        length=steps,
        terminated=torch.tensor(terminated if terminated is not None else [False] * size),
        return_scale=torch.ones(size),
        weight=torch.ones(size),
        age=torch.zeros(size, dtype=torch.long),
        replay_index=torch.arange(size),
        transition_id=torch.arange(size),
    )


def make_targets(
    experiment: Experiment, sizes: TaskSizes, batch: Batch, seed: int = 1, candidates: int = 3
) -> Targets:
    """Random targets with the masks of the batch."""
    generator = torch.Generator().manual_seed(seed)
    size, unroll = len(batch.task), experiment.targets.unroll_steps
    mask = torch.as_tensor(sizes.action_mask)[batch.task].view(size, 1, 1, -1)
    action = torch.rand(size, unroll + 1, candidates, sizes.action_size, generator=generator) * 1.8 - 0.9
    real = masks(batch.length, batch.terminated, unroll)
    return Targets(
        reward=batch.reward[:, :unroll],
        value=torch.rand(size, unroll + 1, generator=generator) * 5,
        action=action * mask,
        action_weight=torch.rand(size, unroll + 1, candidates, generator=generator).softmax(-1),
        reward_mask=real.reward,
        value_mask=real.value,
        policy_mask=real.policy,
        latent_mask=real.latent,
    )


def gradients(model: WorldModel) -> dict[str, Tensor]:
    """The non-zero gradients by parameter name."""
    return {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
    }
