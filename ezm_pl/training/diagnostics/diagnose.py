"""All diagnostics of a checkpoint, task by task, with the simulator as the judge."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ezm_pl.replay import ReplayBuffer
from ezm_pl.search import proposal_of
from ezm_pl.spec import SpecError
from ezm_pl.training.batch import Batch
from ezm_pl.training.diagnostics.batches import draw, upright_share
from ezm_pl.training.diagnostics.dynamics import action_effects
from ezm_pl.training.diagnostics.episodes import FOLLOWING, Visited, play
from ezm_pl.training.diagnostics.networks import Networks, load_networks
from ezm_pl.training.diagnostics.predictions import Predictions, embedding_map, predictions
from ezm_pl.training.diagnostics.values import monte_carlo_returns, q_values, rank_actions, value_fit
from ezm_pl.training.from_checkpoint import load_replay
from ezm_pl.training.health import effective_sample_share, humanoid_tasks, network_gap, statistics_gap

_BATCHES = 16
"""Batches drawn from replay, for weights and for BatchNorm's statistics."""
_AT_BOUND = 0.9
"""Share of its bound from which a dimension's std counts as being at it."""


@dataclass(frozen=True)
class TaskDiagnosis:
    """What was measured of one task. None: not measured, because there is no replay, humanoid or unit.

    Attributes:
        task: its name. states, actions, rollouts: how many were judged.
        upright_states: whether the judged states are ones in which a humanoid stands.
        effect_1, effect_5: correlation of predicted and real differences between the latents that 1 and
            5 decisions lead to, where the first action differs.
        effect_size_1, effect_size_5: length of the predicted differences over that of the real ones.
        effect_value_1: correlation of the values of predicted and real latents after 1 decision.
        q_ranking: Spearman's correlation of Q and Monte-Carlo returns over the actions of a state.
        q_ceiling: the same of the returns' two halves.
        return_spread: standard deviation of returns over the actions of a state.
        value_correlation, value_correlation_upright: of values and returns of the agent's episodes, over
            all states and over those that stand.
        value_bias: mean value minus mean return. value_states: how many states these are of.
        value: mean value of the training positions, with running statistics.
        gap_statistics: mean distance of values with a batch's own statistics from those with running ones.
        gap_target: mean distance of the learner's values from the target network's.
        std_of_bound: the policy's std over its bound, per action dimension, mean over the judged states.
        std_at_bound: share of the dimensions at 90% of the bound or more.
        effective_samples: effective sample size of the importance weights in a batch, over their number.
        weights_at_floor: share of the weights that are the smallest possible.
        upright_in_replay: share of the stored states in which the humanoid stands.
        predictions: errors along the unroll, the search against returns and policy, clipped values; None
            where no state has a complete return.
    """

    task: str
    states: int
    actions: int
    rollouts: int
    upright_states: bool
    effect_1: float
    effect_5: float
    effect_size_1: float
    effect_size_5: float
    effect_value_1: float
    q_ranking: float
    q_ceiling: float
    return_spread: float
    value_correlation: float
    value_correlation_upright: float
    value_bias: float | None
    value_states: int
    value: float | None
    gap_statistics: float | None
    gap_target: float | None
    std_of_bound: list[float]
    std_at_bound: float
    effective_samples: float | None
    weights_at_floor: float | None
    upright_in_replay: float | None
    predictions: Predictions | None


class Diagnostics:
    """Diagnoses a checkpoint.

    The states that are judged come from episodes that the agent plays here, and not from replay, which
    keeps observations: the simulator cannot be put into one. Upright states are taken, since those decide
    whether a humanoid stays up; of other tasks any. Training batches come from the replay beside the
    checkpoint.

    Args:
        checkpoint: to load.
        states: judged per task, at most. actions: candidates per state. rollouts: per candidate, of the
            Monte-Carlo returns; at least two.
        seed: of everything drawn.

    Raises:
        CheckpointError: no checkpoint, or one that cannot be read.
    """

    def __init__(self, checkpoint: Path, *, states: int, actions: int, rollouts: int, seed: int) -> None:
        self.networks: Networks = load_networks(checkpoint)
        self.states, self.actions, self.rollouts, self.seed = states, actions, rollouts, seed
        self.buffer: ReplayBuffer | None = load_replay(self.networks.experiment, checkpoint)
        self.batches = [] if self.buffer is None else draw(self.networks, self.buffer, _BATCHES)
        steps = self.networks.experiment.targets.unroll_steps
        self._statistics_gaps = [statistics_gap(self.networks.model, each, steps) for each in self.batches]

    def tasks(self) -> Iterator[TaskDiagnosis]:
        """One diagnosis per task, each once it is made.

        Raises:
            SpecError: the agent's episodes of a task are too short to judge.
        """
        for task in range(len(self.networks.experiment.tasks)):
            yield self._task(task)

    def embeddings(self) -> tuple[np.ndarray, float]:
        """The map of the task embeddings (see `embedding_map`)."""
        return embedding_map(self.networks)

    def _task(self, task: int) -> TaskDiagnosis:
        networks, experiment = self.networks, self.networks.experiment
        visited = play(networks, task, seed=self.seed)
        picked = visited.pick(self.states, np.random.default_rng(self.seed))
        if not len(picked):
            name, needed = experiment.tasks[task], FOLLOWING + 1
            raise SpecError(f"{name}: no episode lasts {needed} decisions, so there is nothing to judge")
        actions = self._candidates(task, visited, picked)
        judged = (networks, task, visited, picked, actions)
        effects = action_effects(*judged, seed=self.seed)
        returns = monte_carlo_returns(*judged, rollouts=self.rollouts, seed=self.seed)
        ranking = rank_actions(q_values(networks, task, visited.observation[picked], actions), returns)
        fit = value_fit(networks, task, visited, self._scale(task))
        std = self._std_of_bound(task, visited, picked)
        weights = [batch.weight[batch.task == task] for batch in self.batches]
        humanoid = humanoid_tasks([experiment.tasks[task]]) is not None
        return TaskDiagnosis(
            task=experiment.tasks[task],
            states=len(picked),
            actions=self.actions,
            rollouts=self.rollouts,
            upright_states=humanoid and bool(visited.upright[picked].all()),
            effect_1=effects[1].latent.correlation,
            effect_5=effects[FOLLOWING].latent.correlation,
            effect_size_1=effects[1].latent.size,
            effect_size_5=effects[FOLLOWING].latent.size,
            effect_value_1=effects[1].value.correlation,
            q_ranking=ranking.q,
            q_ceiling=ranking.ceiling,
            return_spread=ranking.spread,
            value_correlation=fit.correlation,
            value_correlation_upright=fit.upright_correlation,
            value_bias=fit.bias,
            value_states=fit.states,
            **self._gaps(task),
            std_of_bound=std,
            std_at_bound=float(np.mean(np.array(std) >= _AT_BOUND)),
            effective_samples=_mean([float(effective_sample_share(w)) for w in weights if len(w)]),
            weights_at_floor=_mean(
                [float((w <= experiment.replay.min_importance).float().mean()) for w in weights if len(w)]
            ),
            upright_in_replay=(
                upright_share(self.buffer, task) if self.buffer is not None and humanoid else None
            ),
            predictions=self._predictions(task, visited),
        )

    def _predictions(self, task: int, visited: Visited) -> Predictions | None:
        units = self._scale(task)
        scale = None if self.buffer is None else float(self.buffer.returns.scale[task])
        if units is None:
            return None
        return predictions(self.networks, task, visited, units=units, scale=scale, seed=self.seed)

    def _candidates(self, task: int, visited: Visited, picked: np.ndarray) -> torch.Tensor:
        """`[N, C, A]`: what a search with so many root candidates would consider in the picked states."""
        networks, search = self.networks, self.networks.experiment.search
        considered = search.model_copy(update={"num_root_actions": self.actions})
        proposal = proposal_of(considered, networks.sizes.action_size)
        tasks = torch.full((len(picked),), task, device=networks.device)
        state, _ = networks.actor.root(visited.observation[picked], tasks)
        generator = torch.Generator(networks.device).manual_seed(self.seed)
        return proposal.root(networks.actor, state, tasks, generator)[0].float()

    def _std_of_bound(self, task: int, visited: Visited, picked: np.ndarray) -> list[float]:
        networks = self.networks
        tasks = torch.full((len(picked),), task, device=networks.device)
        state, _ = networks.actor.root(visited.observation[picked], tasks)
        std = networks.actor.policy(state, tasks).log_std.exp().mean(0)
        real = int(networks.sizes.action_sizes[task])
        return [float(each) for each in std[:real] / math.exp(networks.experiment.model.max_log_std)]

    def _scale(self, task: int) -> float | None:
        """What the task's rewards are divided by in training; None: not known without the replay."""
        if not self.networks.experiment.targets.return_scaling:
            return 1.0
        return None if self.buffer is None else float(self.buffer.returns.scale[task])

    def _gaps(self, task: int) -> dict[str, float | None]:
        """Of a task's positions in batches of all tasks, which BatchNorm sees together."""
        networks = self.networks
        found: dict[str, list[float]] = {"value": [], "gap_statistics": [], "gap_target": []}
        for batch, statistics in zip(self.batches, self._statistics_gaps, strict=True):
            rows = batch.task == task
            if not rows.any():
                continue
            mine = Batch(*(part[rows] for part in batch))
            seen = mine.observation[:, 0]
            found["gap_statistics"].append(float(statistics[rows][:, 0].abs().mean()))
            ahead = network_gap(networks.learner, networks.target, seen, mine.task)
            found["gap_target"].append(float(ahead.abs().mean()))
            found["value"].append(float(networks.learner.root(seen, mine.task)[1].mean()))
        return {name: _mean(values) for name, values in found.items()}


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
