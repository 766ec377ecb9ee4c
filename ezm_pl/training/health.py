"""Signs that learning is going wrong, from what an update has computed anyway.

Shapes: `B` positions, `U` unroll steps, `O` observation, `T` tasks. Nothing here reads a value back from
the device. `ezm diagnose` measures what these cannot: with the simulator as the judge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from ezm_pl.spec import Experiment
from ezm_pl.spec.tasks import task_facts
from ezm_pl.training.batch import Batch
from ezm_pl.training.losses import Losses, imagine
from ezm_pl.world_model import InferenceModel, WorldModel

UPRIGHT_HEIGHT = 0.7
"""Height of the pelvis, m, from which a humanoid counts as upright (the H1 stands at 0.98)."""
UPRIGHT_COSINE = 0.8
"""Cosine of the angle between the pelvis's axis and the vertical from which it does (37 degrees)."""


def humanoid_tasks(tasks: Sequence[str]) -> Tensor | None:
    """`[T]` bool: the tasks whose observation begins with a humanoid's `qpos`, as dm_control's do not.

    None where there is no such task.
    """
    humanoid = torch.tensor([task_facts(task) is not None for task in tasks])
    return humanoid if humanoid.any() else None


def upright(observation: Tensor) -> Tensor:
    """`[..., O]` observations of humanoids to `[...]` bool: the pelvis is high and its axis vertical.

    The observation begins with `qpos`: position, then orientation as a quaternion (w, x, y, z).
    """
    tilt_x, tilt_y = observation[..., 4], observation[..., 5]
    cosine = 1 - 2 * (tilt_x.square() + tilt_y.square())
    return (observation[..., 2] >= UPRIGHT_HEIGHT) & (cosine >= UPRIGHT_COSINE)


def effective_sample_share(weight: Tensor) -> Tensor:
    """Kish's effective sample size of weights `[B]`, over `B`: 1 where all are equal, `1 / B` for one."""
    return weight.sum().square() / (weight.square().sum() * len(weight))


def batch_health(
    windows: Batch, losses: Losses, experiment: Experiment, humanoid: Tensor | None
) -> dict[str, Tensor]:
    """Metrics of a batch, under the names that they are logged by; each a scalar.

    Weights correct the sampling only where few of them lie at the floor: an effective sample size of 1
    may also mean that all are at it.

    Args:
        windows: the batch.
        losses: of the batch.
        experiment: its bounds of the policy's std and of the weights.
        humanoid: `[T]` on the batch's device, see `humanoid_tasks`; None leaves `upright` out.
    """
    weight = windows.weight
    named = {
        "train/health/std_of_bound": losses.diagnostics["policy/std"]
        / math.exp(experiment.model.max_log_std),
        "train/health/effective_samples": effective_sample_share(weight),
        "train/health/weights_at_floor": (weight <= experiment.replay.min_importance).float().mean(),
    }
    if humanoid is not None:
        rows = humanoid[windows.task]
        stand = upright(windows.observation[:, 0]) & rows
        named["train/health/upright"] = stand.sum() / rows.sum().clamp(min=1)
    return named


@torch.no_grad()
def statistics_gap(model: WorldModel, windows: Batch, steps: int) -> Tensor:
    """What BatchNorm's statistics change in the value: `[B, U + 1]`, with the batch's minus with the running.

    Values (the mean over heads) are fitted with a batch's own statistics, and bootstrapped and searched
    with the running ones. The running ones stay as they are.

    Args:
        model: the learner.
        windows: a training batch, from which `steps` are unrolled as in the losses.
        steps: `U`.
    """
    heads, mode = model.value_heads, model.value_heads.training
    latents = imagine(model, windows)
    task = windows.task.repeat_interleave(steps + 1)
    features = model.features(latents.flatten(0, 1), task)
    values = []
    for training in (True, False):
        heads.train(training)
        buffers = {name: buffer.clone() for name, buffer in heads.named_buffers()}
        logits = functional_call(heads, buffers, (features,))
        values.append(model.scalar.decode(logits).mean(0))
    heads.train(mode)
    return (values[0] - values[1]).unflatten(0, (-1, steps + 1))


def network_gap(learner: InferenceModel, target: InferenceModel, observation: Tensor, task: Tensor) -> Tensor:
    """How far the learner's value is ahead of the target network's: `[B]`, learner minus target.

    Args:
        learner: an inference copy of the learning network.
        target: the network whose values are bootstrapped.
        observation: `[B, O]`. task: `[B]`.
    """
    values = []
    for network in (learner, target):
        state, _ = network.root(observation, task)
        heads = range(network.model.spec.value_heads)
        values.append(torch.stack([network.value(state, (head,)) for head in heads]).mean(0))
    return values[0] - values[1]
