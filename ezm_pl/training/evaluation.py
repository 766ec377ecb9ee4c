"""Evaluation episodes, with both protocols' returns from one rollout."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ezm_pl.envs import MultiTaskVectorEnv
from ezm_pl.search import ActFn
from ezm_pl.selfplay import Actor
from ezm_pl.spec import Experiment, normalized_score, searches
from ezm_pl.spec.fields import EpisodeProtocol
from ezm_pl.spec.seeds import stream_int
from ezm_pl.training.ranks import Ranks


class EvaluationInterrupted(RuntimeError):
    """An evaluation was asked to stop before its episodes had ended."""


@dataclass(frozen=True)
class Evaluation:
    """Returns of evaluation episodes.

    Attributes:
        tasks: `T` names.
        updates: updates of the evaluated weights.
        env_steps: control steps per task that had been collected then (mean over tasks).
        returns_ezm: `[T, episodes]`; falls do not end the episode.
        returns_humanoidbench: `[T, episodes]`; the sum up to the first fall.
        protocol: whose returns are scored.
        searched: whether decisions were planned; otherwise the policy decided alone.
        bounds: of tasks whose scores the spec says itself, the returns that count as 0 and as 1.
    """

    tasks: tuple[str, ...]
    updates: int
    env_steps: int
    returns_ezm: NDArray[np.float64]
    returns_humanoidbench: NDArray[np.float64]
    protocol: EpisodeProtocol = "ezm"
    searched: bool = True
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        updates: int,
        env_steps: int,
        returns: Sequence[NDArray[np.float64]],
        *,
        searched: bool = True,
    ) -> Evaluation:
        """Of an experiment's tasks, from returns under `ezm` and under `humanoidbench`.

        `searched`: whether a search was asked for; not every agent has one.
        """
        protocol, bounds = experiment.env.protocol, experiment.score_bounds
        ezm, humanoidbench = returns
        searched = searches(experiment, search=searched)
        return cls(experiment.tasks, updates, env_steps, ezm, humanoidbench, protocol, searched, bounds)

    def return_of(self, task: str) -> float:
        """A task's mean return under `protocol`."""
        returns = self.returns_ezm if self.protocol == "ezm" else self.returns_humanoidbench
        return float(returns[self.tasks.index(task)].mean())

    def score_of(self, task: str) -> float:
        """Normalised score of a task's mean return: 0 for a random policy, 1 for the success bar.

        NaN for a task without these bounds.
        """
        return normalized_score(task, self.return_of(task), self.bounds.get(task))

    @property
    def score(self) -> float:
        """Mean normalised score over the tasks that have one; NaN if none has."""
        scores = [score for score in map(self.score_of, self.tasks) if not math.isnan(score)]
        return float(np.mean(scores)) if scores else math.nan

    def metrics(self) -> dict[str, float]:
        """Under the names that they are tracked by."""
        named = {"step": float(self.updates), "eval/score": self.score, "env_steps": float(self.env_steps)}
        for row, task in enumerate(self.tasks):
            named[f"eval/{task}/return_ezm"] = float(self.returns_ezm[row].mean())
            named[f"eval/{task}/return_humanoidbench"] = float(self.returns_humanoidbench[row].mean())
            named[f"eval/{task}/score"] = self.score_of(task)
        return {name: value for name, value in named.items() if not math.isnan(value)}


def evaluation_envs(
    experiment: Experiment,
    episodes: int,
    *,
    tasks: Sequence[int] | None = None,
    render_mode: Literal["rgb_array"] | None = None,
) -> MultiTaskVectorEnv:
    """`episodes` rows of each task at full length; falls end none, so one rollout gives both returns.

    Args:
        experiment: whose tasks.
        episodes: rows per task.
        tasks: indices of the tasks to make; None: all.
        render_mode: as in `MultiTaskVectorEnv`.
    """
    names = experiment.tasks if tasks is None else [experiment.tasks[task] for task in tasks]
    # Each rollout resets them with a seed of its own.
    return MultiTaskVectorEnv.of(
        experiment, num_envs=episodes, seed=0, tasks=names, protocol="ezm", render_mode=render_mode
    )


class Evaluator:
    """Plays the evaluation episodes of one rank; its environments are made on first use.

    Args:
        experiment: whose tasks.
        ranks: this one among the others: each plays every `size`-th task, none where there are too few.

    Attributes:
        on_step: called after every decision with the number made so far, for a progress bar.
    """

    def __init__(self, experiment: Experiment, ranks: Ranks) -> None:
        self.experiment, self.ranks = experiment, ranks
        self.tasks = list(range(ranks.rank, len(experiment.tasks), ranks.size))
        self.on_step: Callable[[int], None] = lambda decisions: None
        self._envs: MultiTaskVectorEnv | None = None

    def play(
        self, actor: Actor, act: ActFn, stopped: Callable[[], bool]
    ) -> tuple[list[int], NDArray[np.float64], NDArray[np.float64]] | None:
        """This rank's tasks `[T']` and their returns `[T', episodes]` under both protocols.

        Args:
            actor: the network that decides.
            act: how it decides.
            stopped: asked between steps whether to give up; None is returned then.
        """
        spec = self.experiment
        if not self.tasks:
            none = np.zeros((0, spec.eval.episodes))
            return self.tasks, none, none
        if self._envs is None:
            self._envs = evaluation_envs(spec, spec.eval.episodes, tasks=self.tasks)
        heads = torch.Generator().manual_seed(stream_int(spec.seed, "evaluation heads", self.ranks.rank))
        try:
            return self.tasks, *play_episodes(
                self._envs,
                actor,
                act,
                seed=stream_int(spec.seed, "evaluation", self.ranks.rank),
                heads=heads,
                tasks=self.tasks,
                stopped=stopped,
                on_step=self.on_step,
            )
        except EvaluationInterrupted:
            return None

    def close(self) -> None:
        """Closes the environments; the next evaluation makes new ones."""
        if self._envs is not None:
            self._envs.close()
            self._envs = None


class Step(NamedTuple):
    """What one decision in each of `N` rows led to.

    Attributes:
        reward: `[N]`. ended: `[N]` bool, whether the episode has; the row is at its next one then.
        info: of the environments.
    """

    reward: NDArray[np.float32]
    ended: NDArray[np.bool_]
    info: dict[str, Any]


def rollout(
    envs: MultiTaskVectorEnv,
    model: Actor,
    act: ActFn,
    *,
    seed: int,
    heads: torch.Generator,
    tasks: Sequence[int] | None = None,
) -> Iterator[Step]:
    """Decides and steps, without end.

    Args:
        envs: `T` tasks; their sizes may be smaller than the model's.
        model: network that decides.
        act: how it decides.
        seed: of the environments and of the search's noise: the same seed, the same episodes.
        heads: CPU generator that draws value heads.
        tasks: `[T]`, which of the model's tasks those of `envs` are; None: the same ones.
    """
    device = next(model.parameters()).device
    ids = np.asarray(envs.task_ids if tasks is None else np.asarray(tasks)[envs.task_ids])
    task = torch.as_tensor(ids, device=device)
    generator = torch.Generator(device).manual_seed(seed)
    padded = torch.zeros(len(ids), model.observation_size, device=device)
    observation, _ = envs.reset(seed=seed)
    while True:
        model.draw_heads(heads)
        padded[:, : envs.sizes.obs_size] = torch.as_tensor(observation, device=device)
        action = act(model, padded, task, generator)[:, : envs.sizes.action_size]
        observation, reward, terminated, truncated, info = envs.step(action.cpu().numpy())
        yield Step(reward, terminated | truncated, info)


def play_episodes(
    envs: MultiTaskVectorEnv,
    model: Actor,
    act: ActFn,
    *,
    seed: int,
    heads: torch.Generator,
    tasks: Sequence[int] | None = None,
    stopped: Callable[[], bool] = lambda: False,
    on_step: Callable[[int], None] = lambda decisions: None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Plays one episode in every row of `envs`, as `rollout`, whose arguments these are.

    Where a worker process was lost on the way, everything is played again: a cut episode has no return.

    Args:
        envs: `T` tasks × `episodes` rows, protocol `ezm`.
        stopped: asked between steps whether to give up.
        on_step: called after every decision with the number made so far.

    Returns:
        Returns `[T, episodes]` under `ezm` and under `humanoidbench`.

    Raises:
        EvaluationInterrupted: `stopped` said so.
    """
    state = heads.get_state()
    running, upright = np.ones(envs.num_envs, bool), np.ones(envs.num_envs, bool)
    total, before_fall = np.zeros(envs.num_envs), np.zeros(envs.num_envs)
    for decisions, step in enumerate(rollout(envs, model, act, seed=seed, heads=heads, tasks=tasks), 1):
        if stopped():
            raise EvaluationInterrupted("evaluation interrupted")
        on_step(decisions)
        if (step.info["lost"] & running).any():
            heads.set_state(state)
            return play_episodes(
                envs, model, act, seed=seed, heads=heads, tasks=tasks, stopped=stopped, on_step=on_step
            )
        total += step.reward * running
        before_fall += np.where(upright, step.info["reward_before_fall"], 0.0) * running
        upright &= ~step.info["fell"]
        running &= ~step.ended
        if not running.any():
            break
    shape = (len(envs.tasks), -1)
    return total.reshape(shape), before_fall.reshape(shape)
