"""Reanalysis: positions of a batch (`targets.search_every`) are searched again with the target network.

Source: MuZero Reanalyse (Schrittwieser et al. 2021); mixed value targets: EfficientZero V2.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ezm_pl.search import Planner
from ezm_pl.spec import Experiment
from ezm_pl.spec.experiment import TargetSpec
from ezm_pl.training.batch import Batch, Targets
from ezm_pl.training.targets import Masks, discounted_sums, ends
from ezm_pl.training.value_expansion import expanded_values
from ezm_pl.world_model import InferenceModel


@torch.no_grad()
def reanalyse(
    batch: Batch,
    model: InferenceModel,
    planner: Planner,
    experiment: Experiment,
    updates: int,
    generator: torch.Generator,
) -> Targets:
    """Fresh targets for a batch; without `targets.reanalyse` its values only, and no search.

    Args:
        batch: on the model's device.
        model: the lagged target network.
        planner: how to search.
        experiment: unroll, TD steps, discount, and what takes the place of TD targets when.
        updates: done so far.
        generator: of the search's noise.
    """
    spec = experiment.targets
    unroll, td = spec.unroll_steps, spec.td_steps
    positions = unroll + 1
    late = updates >= spec.search_value_after
    size = batch.task.shape[0]
    searched = range(positions)[spec.policy_positions] if spec.reanalyse else ()
    rows = _rows(size, tuple(searched), range(td, td + positions), unroll + td + 1, batch.task.device)
    observation = batch.observation.flatten(0, 1).index_select(0, rows.observation)
    task = batch.task.index_select(0, rows.window)

    reward = batch.reward / batch.return_scale.unsqueeze(1) if spec.return_scaling else batch.reward
    discounts, real = ends(batch.length, batch.terminated, unroll, td, spec.discount)

    def value_targets(network_value: Tensor) -> Tensor:
        bootstrap = network_value.index_select(0, rows.bootstrap).view(size, positions)
        taken = discounted_sums(reward, bootstrap, discounts, spec.discount)
        if not (late and spec.expansion_steps):
            return taken
        seen, whose = batch.observation[:, :positions].flatten(0, 1), batch.task.repeat_interleave(positions)
        imagined = expanded_values(model, seen, whose, spec.expansion_steps, spec.discount, generator)
        # The model does not predict terminations.
        return torch.where(batch.terminated.unsqueeze(1), taken, imagined.view(size, positions))

    if not spec.reanalyse:
        value = value_targets(model.root(observation, task)[1])
        taken = batch.action.unsqueeze(2)
        return _targets(spec, reward, value, taken, torch.ones_like(taken[..., 0]), real)
    found = planner(model, observation, task, generator, roots=size * len(searched))
    value = value_targets(found.root_value)
    if late and not spec.expansion_steps:
        of_search = value[:, spec.policy_positions]
        old = real.policy[:, spec.policy_positions] * (batch.age >= spec.search_value_age).unsqueeze(1)
        of_search.lerp_(found.value.view(size, -1), old)

    if spec.policy == "improved" or planner.random_choice:
        action, weight = found.actions, found.weights
    else:
        action, weight = found.action.unsqueeze(1), torch.ones_like(found.value).unsqueeze(1)
    candidates = action.view(size, -1, *action.shape[1:])
    return _targets(spec, reward, value, candidates, weight.view(size, len(searched), -1), real)


class _Rows(NamedTuple):
    """Which observations of a batch the network sees, each once: first those that are searched.

    Attributes:
        observation: `[N]`, among all `B * (U + n + 1)`. window: `[N]`, whose they are.
        bootstrap: `[B * (U + 1)]`, where among the `N` those are whose values are bootstrapped.
    """

    observation: Tensor
    window: Tensor
    bootstrap: Tensor


@lru_cache
def _rows(
    windows: int, searched: tuple[int, ...], bootstrap: range, length: int, device: torch.device
) -> _Rows:
    """Of windows with `length` observations, at positions in them."""
    others = [position for position in bootstrap if position not in searched]
    seen = [
        (window, position) for part in (searched, others) for window in range(windows) for position in part
    ]
    places = {place: row for row, place in enumerate(seen)}
    return _Rows(
        torch.tensor([window * length + position for window, position in seen], device=device),
        torch.tensor([window for window, _ in seen], device=device),
        torch.tensor([places[w, p] for w in range(windows) for p in bootstrap], device=device),
    )


def _targets(
    spec: TargetSpec, reward: Tensor, value: Tensor, action: Tensor, weight: Tensor, real: Masks
) -> Targets:
    return Targets(
        reward=reward[:, : spec.unroll_steps],
        value=value,
        action=action.clamp(-spec.max_action, spec.max_action),
        action_weight=weight,
        reward_mask=real.reward,
        value_mask=real.value,
        policy_mask=real.policy,
        latent_mask=real.latent,
    )
