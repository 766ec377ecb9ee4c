"""The background thread that plays: environments, decisions, replay."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ezm_pl.envs import MultiTaskVectorEnv, TaskSizes
from ezm_pl.replay import ReplayBuffer
from ezm_pl.search import ActFn
from ezm_pl.selfplay.actor import Actor
from ezm_pl.selfplay.background import BackgroundError, BackgroundThread
from ezm_pl.selfplay.held_actions import HeldActions
from ezm_pl.selfplay.pacing import Pacing
from ezm_pl.selfplay.phase_timer import PhaseTimer
from ezm_pl.selfplay.weights import WeightStore
from ezm_pl.spec import Experiment
from ezm_pl.spec.seeds import stream, stream_int


class CollectorError(BackgroundError):
    """The collector thread failed; its own exception is the cause."""


@dataclass(frozen=True)
class Episode:
    """A finished self-play episode.

    Attributes:
        task: index of the task.
        episode_return: sum of rewards.
        control_steps: length in control steps.
    """

    task: int
    episode_return: float
    control_steps: int


class Collector(BackgroundThread):
    """Plays all tasks at once in a thread of its own and fills the replay buffer.

    Actions are uniform-random in the warm-up, then the agent's, with the newest weights. In some
    environments (`collect.hold_share`) bursts of held random actions replace either.

    Args:
        experiment: tasks, environments and budget.
        sizes: padded sizes and masks of the tasks.
        buffer: where transitions go; its rows are this collector's environments.
        actor: the collector's own network; weights come from `store`.
        act: how it decides.
        store: newest weights.
        pacing: when to wait.
        device: of the actor.
        rank: of this process; ranks play with disjoint seeds.
        collected: control steps per task that an earlier run had collected, warm-up included.
    """

    def __init__(
        self,
        experiment: Experiment,
        sizes: TaskSizes,
        buffer: ReplayBuffer,
        actor: Actor,
        act: ActFn,
        store: WeightStore,
        pacing: Pacing,
        *,
        device: torch.device,
        rank: int = 0,
        collected: int = 0,
    ) -> None:
        super().__init__(pacing, name="ezm-collector", failed="self-play failed", error=CollectorError)
        self.experiment, self.sizes, self.buffer = experiment, sizes, buffer
        self.actor, self.act = actor, act
        self.store, self.device = store, device
        self.control_steps = np.full(len(experiment.tasks), collected, np.int64)
        self.episodes: deque[Episode] = deque(maxlen=10_000)
        self.timer = PhaseTimer()
        self.diverged = 0
        self.worker_restarts = 0
        self._rank = rank
        self._resumed_at = collected
        # An empty replay fills up as much as at first, though not by random actions.
        self._warm_at = experiment.collect.random_steps + (0 if len(buffer) else collected)

    @property
    def warm(self) -> bool:
        """Whether there is enough to begin with, and every task has something to sample."""
        return int(self.control_steps.min()) >= self._warm_at and self.buffer.ready

    def _work(self) -> None:
        experiment = self.experiment
        seed = stream_int(experiment.seed, f"environments from step {self._resumed_at}", self._rank)
        envs = MultiTaskVectorEnv.of(experiment, num_envs=experiment.env.num_envs, seed=seed)
        try:
            self._loop(envs)
        finally:
            envs.close()

    def _episode_steps(self) -> int | None:
        env = self.experiment.env
        short = env.protocol == "ezm" and self.pacing.progress < env.short_episode_share
        return env.short_episode_steps if short else None

    def _loop(self, envs: MultiTaskVectorEnv) -> None:
        experiment = self.experiment
        sequence = stream(experiment.seed, f"actions from step {self._resumed_at}", self._rank)
        random = np.random.default_rng(sequence)
        noise_seed, head_seed = (int(s) for s in sequence.generate_state(2, np.uint32))
        generator = torch.Generator(self.device).manual_seed(noise_seed)
        heads = torch.Generator().manual_seed(head_seed)
        task_ids = np.asarray(envs.task_ids)
        tasks = torch.as_tensor(task_ids, device=self.device)
        mask = self.sizes.action_mask[task_ids]
        played = np.zeros((2, len(task_ids)))  # return, control steps
        held = HeldActions(experiment, mask, random)
        version, episode_steps = -1, self._episode_steps()
        envs.set_episode_steps(episode_steps)  # worker processes build their environments in it
        observation, _ = envs.reset()
        while not self._stop.is_set():
            warm_up = int(self.control_steps.min()) < experiment.collect.random_steps
            # Until there is something to sample the learner waits for us, so we must not wait for it.
            with self.timer("waiting"):
                if self.warm and not self.pacing.wait_to_collect():
                    break
            with self.timer("search"):
                newest = self.store.newer_than(version)
                if newest is not None:
                    version = newest[0]
                    self.actor.load_state_dict(newest[1])
                if warm_up or version < 0:
                    action = random.uniform(-1, 1, mask.shape).astype(np.float32) * mask
                else:
                    self.actor.draw_heads(heads)
                    padded = torch.as_tensor(observation, device=self.device)
                    action = self.act(self.actor, padded, tasks, generator).cpu().numpy()
                action = held(action, self.pacing.progress)
            with self.timer("physics"):
                following, reward, terminated, truncated, info = envs.step(action)
            with self.timer("storing"):
                self.buffer.add(observation, action, reward, terminated, truncated, info["final_obs"])
            observation = following
            played += np.stack([reward, info["steps"]])
            self._finish(terminated | truncated, info["lost"], task_ids, played)
            self.worker_restarts = envs.worker_restarts
            self.diverged += int(np.count_nonzero(info["diverged"]))
            self.control_steps += np.bincount(task_ids, info["steps"], len(self.control_steps)).astype(
                np.int64
            )
            warmed = int(self.control_steps.min()) - experiment.collect.random_steps
            self.pacing.collected(max(0, warmed))
            if self._episode_steps() != episode_steps:
                episode_steps = self._episode_steps()
                envs.set_episode_steps(episode_steps)

    def _finish(
        self,
        ended: NDArray[np.bool_],
        lost: NDArray[np.bool_],
        task_ids: NDArray[np.int64],
        played: NDArray,
    ) -> None:
        for row in np.flatnonzero(ended & ~lost):  # the return of half an episode is none
            total, steps = played[:, row]
            self.episodes.append(Episode(int(task_ids[row]), float(total), int(steps)))
        played[:, ended] = 0
