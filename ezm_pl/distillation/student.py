"""The student: a light policy for all tasks, which decides without a search.

Shapes: `B` rows, `T` tasks, `O` padded observation, `A` padded action, `E` task embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ezm_pl.spec import SpecError
from ezm_pl.spec.distillation import MAX_PARAMETERS, StudentSpec
from ezm_pl.world_model.layers import RunningNorm


class Student(nn.Module):
    """Observations and tasks to actions: normalisation, task embedding, MLP, tanh, action mask.

    Args:
        spec: sizes.
        observation_size: `O`.
        action_mask: `[T, A]`, 1 for a task's real action dimensions.

    Raises:
        SpecError: it would have more than `MAX_PARAMETERS` parameters.
    """

    action_mask: Tensor

    def __init__(self, spec: StudentSpec, observation_size: int, action_mask: Tensor) -> None:
        super().__init__()
        tasks, actions = action_mask.shape
        count = _parameters(spec, observation_size, tasks, actions)
        if count > MAX_PARAMETERS:
            raise SpecError(
                f"student: {count:,} parameters for observations of {observation_size} numbers, at most "
                f"{MAX_PARAMETERS:,} expected; make student.width or student.layers smaller"
            )
        self.register_buffer("action_mask", action_mask.float())
        self.normalizer = RunningNorm(observation_size)
        self.task_embedding = nn.Embedding(tasks, spec.task_embedding_size)
        layers: list[nn.Module] = []
        width = observation_size + spec.task_embedding_size
        for _ in range(spec.layers):
            layers += [nn.Linear(width, spec.width), nn.LayerNorm(spec.width), nn.SiLU()]
            width = spec.width
        self.network = nn.Sequential(*layers, nn.Linear(width, actions))

    @property
    def parameter_count(self) -> int:
        """How many parameters it has; the normaliser's statistics are none."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, observation: Tensor, task: Tensor) -> Tensor:
        """Actions `[B, A]` in [-1, 1] for observations `[B, O]` of tasks `[B]`; zero where padded."""
        inputs = torch.cat([self.normalizer(observation), self.task_embedding(task)], -1)
        return torch.tanh(self.network(inputs)) * self.action_mask[task]

    def imitation_loss(self, observation: Tensor, task: Tensor, action: Tensor) -> Tensor:
        """Mean squared error `[]` to the planner's actions `[B, A]`, over the tasks' real dimensions."""
        mask = self.action_mask[task]
        error = (self(observation, task) - action).square() * mask
        return (error.sum(-1) / mask.sum(-1)).mean()


def _parameters(spec: StudentSpec, observation_size: int, tasks: int, actions: int) -> int:
    """How many parameters a student of these sizes would have."""
    width = spec.width
    inputs = [observation_size + spec.task_embedding_size, *[width] * (spec.layers - 1)]
    hidden = sum(before * width + 3 * width for before in inputs)
    return tasks * spec.task_embedding_size + hidden + width * actions + actions
