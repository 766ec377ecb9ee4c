"""The teacher: a trained agent whose planner says what it would do."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from ezm_pl.distillation.rows import Rows
from ezm_pl.distillation.student import Student
from ezm_pl.envs import MultiTaskVectorEnv, TaskSizes, sizes
from ezm_pl.spec import SpecError
from ezm_pl.spec.distillation import Distillation
from ezm_pl.spec.seeds import stream_int
from ezm_pl.training.agents import how_to_act
from ezm_pl.training.fault_tolerance.checkpoint import checkpoint_run_id
from ezm_pl.training.from_checkpoint import load_actor, load_replay


class Teacher:
    """A checkpoint's planner.

    Args:
        checkpoint: of an ordinary run.
        seed: of the search's candidates.

    Attributes:
        experiment: its spec: tasks, environments, search.
        model: labels rows, in one thread.
        judged: a second copy, which evaluations use in another.
        act: how it decides: by its search, where the agent has one.
        run_id: of its MLflow run; None where the checkpoint does not say.
        updates: how many have made it.

    Raises:
        CheckpointError: the checkpoint cannot be read.
    """

    def __init__(self, checkpoint: Path, seed: int) -> None:
        self.checkpoint = checkpoint
        self.experiment, self.model, self.updates, self.env_steps = load_actor(checkpoint)
        self.judged = copy.deepcopy(self.model)
        self.run_id = checkpoint_run_id(checkpoint)
        self.sizes: TaskSizes = sizes(self.experiment.tasks)
        self.device = next(self.model.parameters()).device
        self.act = how_to_act(self.experiment, search=True)
        self._generator = torch.Generator(self.device).manual_seed(seed)
        self._heads = torch.Generator().manual_seed(seed)

    def check(self, spec: Distillation) -> None:
        """Raises `SpecError` where a student would not be light, or its rows would not fit into memory."""
        self.new_student(spec)
        needed, free = Rows.estimate_bytes(self.sizes, spec.rows), psutil.virtual_memory().available
        if needed > free:
            raise SpecError(
                f"replay_rows + visited_rows: {spec.rows:,} rows of {len(self.sizes.obs_sizes)} tasks take "
                f"{needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free"
            )

    def new_student(self, spec: Distillation) -> Student:
        """A student for the teacher's tasks; the same seed, the same weights.

        Raises:
            SpecError: it would not be light.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_int(spec.seed, "student"))
            return Student(spec.student, self.sizes.obs_size, torch.as_tensor(self.sizes.action_mask))

    def label(self, observation: NDArray[np.float32], task: NDArray[np.int64]) -> NDArray[np.float32]:
        """The planner's actions `[B, A]` for observations `[B, O]` of tasks `[B]`: one search per row."""
        self.model.draw_heads(self._heads)
        rows = torch.as_tensor(observation, device=self.device), torch.as_tensor(task, device=self.device)
        return self.act(self.model, *rows, self._generator).float().cpu().numpy()

    def environments(self, num_envs: int, seed: int) -> MultiTaskVectorEnv:
        """`num_envs` training environments per task, at full episode length."""
        return MultiTaskVectorEnv.of(self.experiment, num_envs=num_envs, seed=seed)

    def replay(self, count: int) -> list[NDArray[np.float32]] | None:
        """The newest observations of each task in the replay beside the checkpoint, `[at most count, O]`.

        None where there is no replay. The newest are nearest to what the agent visits now.
        """
        buffer = load_replay(self.experiment, self.checkpoint)
        if buffer is None:
            return None
        found = [buffer.newest_observations(task, count) for task in range(len(self.experiment.tasks))]
        return found if all(len(each) for each in found) else None
