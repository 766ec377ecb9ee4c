"""A trained agent in Python: load it, let it act, look at what it plans (docs/agent.md)."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ezm_pl.envs import make, sizes
from ezm_pl.search import Planner
from ezm_pl.selfplay import Actor
from ezm_pl.spec import Experiment, searches
from ezm_pl.spec.errors import nearest
from ezm_pl.tracking.runs.run_lookup import find_checkpoint
from ezm_pl.training import newest_valid
from ezm_pl.training.agents import how_to_act
from ezm_pl.training.from_checkpoint import load_actor
from ezm_pl.world_model import InferenceModel

if TYPE_CHECKING:
    import gymnasium

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What one search found.

    Attributes:
        actions: [R, A] root candidates, in [-1, 1].
        visits: [R] visit counts.
        q: [R] completed Q values in units of return, of a run with `targets.return_scaling` of scaled return.
        weights: [R] the improved policy over the candidates; they sum to 1.
        best: index of the chosen candidate.
        value: of the root, averaged over the search.
        root_value: of the root, by the network alone.
    """

    actions: NDArray[np.float32]
    visits: NDArray[np.int64]
    q: NDArray[np.float32]
    weights: NDArray[np.float32]
    best: int
    value: float
    root_value: float

    @property
    def action(self) -> NDArray[np.float32]:
        """[A] the chosen candidate."""
        return self.actions[self.best]


class Agent:
    """A checkpoint's network, its search and its tasks.

    Args:
        experiment: the spec that it was trained with.
        model: the network, on the device that decides.
        updates: how many have made it.
        checkpoint: where it came from.
        seed: of the candidates and value heads that searches draw.
    """

    def __init__(
        self, experiment: Experiment, model: Actor, *, updates: int, checkpoint: Path, seed: int = 0
    ) -> None:
        self.experiment, self.model, self.updates, self.checkpoint = experiment, model, updates, checkpoint
        self.sizes = sizes(experiment.tasks)
        self.device = next(model.parameters()).device
        self._planner = Planner(
            experiment.search, experiment.targets.discount, self.sizes.action_size, evaluation=True
        )
        self._act_without_search = how_to_act(experiment, search=False)
        self._generator = torch.Generator(self.device).manual_seed(seed)
        self._heads = torch.Generator().manual_seed(seed)

    @classmethod
    def load(cls, reference: str | Path = "last", *, seed: int = 0) -> Agent:
        """The agent of a saved run, on a GPU where there is one.

        Args:
            reference: `last`, a run id (or its beginning), a run folder or a checkpoint file. Where its
                last.ckpt is damaged, the log says so and previous.ckpt is loaded.
            seed: of the candidates and value heads that searches draw.

        Raises:
            SpecError: there is no such run.
            CheckpointError: the checkpoint cannot be read.
        """
        checkpoint = Path(reference)
        if not checkpoint.is_file():
            checkpoint = find_checkpoint(str(reference), option="agent").checkpoint
        checkpoint, note = newest_valid(checkpoint, replay=False)
        if note:
            log.warning(note)
        experiment, model, updates, _ = load_actor(checkpoint)
        return cls(experiment, model, updates=updates, checkpoint=checkpoint, seed=seed)

    @property
    def tasks(self) -> tuple[str, ...]:
        """What it was trained on."""
        return self.experiment.tasks

    def make_env(self, task: str | None = None, **settings: Any) -> gymnasium.Env[Any, Any]:
        """A task's environment as in training: the same action repeat, backend and quirks.

        Args:
            task: one of `tasks`; None where there is only one.
            settings: further arguments of `ezm_pl.envs.make`, such as `render_mode`.
        """
        name = self.tasks[self._index(task)]
        env, quirks = self.experiment.env, name not in self.experiment.without_quirks
        settings = {"backend": env.backend, "action_repeat": env.action_repeat, "quirks": quirks, **settings}
        return make(name, **settings)

    def act(
        self, observation: ArrayLike, task: str | None = None, *, plan: bool = True
    ) -> NDArray[np.float32]:
        """An action [A] in [-1, 1] for an observation [O] of a task.

        Args:
            observation: as the task's environment gives it, unpadded.
            task: one of `tasks`; None where there is only one.
            plan: search; otherwise the policy's mode, which is many times faster. An agent of
                `agent: sac`, or of `search.choice: policy`, always acts by its policy's mode.

        Raises:
            ValueError: another task, or an observation of another size.
        """
        if searches(self.experiment, search=plan):
            return self.plan(observation, task).action
        index = self._index(task)
        batch = self._batch(observation, index)
        return self._cut(self._act_without_search(self.model, *batch, self._generator)[0], index)

    def plan(self, observation: ArrayLike, task: str | None = None) -> Plan:
        """What a search from an observation [O] finds. Arguments and errors as `act`.

        Raises:
            ValueError: as `act`; also where the agent has no search.
        """
        if self.experiment.agent != "ezm":
            raise ValueError(f"{self.checkpoint}: is of agent {self.experiment.agent}, which has no search")
        assert isinstance(self.model, InferenceModel)
        index = self._index(task)
        batch = self._batch(observation, index)
        self.model.draw_heads(self._heads)
        with torch.inference_mode():
            found = self._planner(self.model, *batch, self._generator)
        return Plan(
            actions=self._cut(found.actions[0], index),
            visits=found.visits[0].cpu().numpy(),
            q=found.q[0].float().cpu().numpy(),
            weights=found.weights[0].float().cpu().numpy(),
            best=int(found.best[0]),
            value=float(found.value[0]),
            root_value=float(found.root_value[0]),
        )

    def _index(self, task: str | None) -> int:
        if task is None and len(self.tasks) == 1:
            return 0
        if task not in self.tasks:
            hint = nearest(str(task), self.tasks)
            raise ValueError(f"task {task!r}: the agent was trained on {', '.join(self.tasks)}{hint}")
        return self.tasks.index(task)

    def _batch(self, observation: ArrayLike, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One padded observation `[1, O]` and its task `[1]`."""
        given, size = np.asarray(observation, np.float32), int(self.sizes.obs_sizes[index])
        if given.shape != (size,):
            raise ValueError(
                f"an observation of {self.tasks[index]} has shape ({size},), but {given.shape} was given"
            )
        padded = torch.zeros(1, self.sizes.obs_size, device=self.device)
        padded[0, :size] = torch.as_tensor(given, device=self.device)
        return padded, torch.tensor([index], device=self.device)

    def _cut(self, actions: torch.Tensor, index: int) -> NDArray[np.float32]:
        """Padded actions `[..., A]` without what the task has no actuators for."""
        return actions[..., : int(self.sizes.action_sizes[index])].float().cpu().numpy()
