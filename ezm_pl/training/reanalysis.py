"""Full reanalysis: every position of a batch is searched again with the target network.

Source: MuZero Reanalyse (Schrittwieser et al. 2021); mixed value targets: EfficientZero V2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ezm_pl.search import Planner
from ezm_pl.spec import Experiment
from ezm_pl.spec.experiment import TargetSpec
from ezm_pl.training.batch import Batch, Targets
from ezm_pl.training.targets import Masks, masks, n_step_returns
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
        experiment: unroll, TD steps, discount and when search values replace TD targets.
        updates: done so far.
        generator: of the search's noise.
    """
    spec = experiment.targets
    unroll, td = spec.unroll_steps, spec.td_steps
    positions = unroll + 1
    size = batch.task.shape[0]
    task = batch.task.repeat_interleave(positions)

    _, bootstrap = model.root(batch.observation[:, td : td + positions].flatten(0, 1), task)

    reward = batch.reward / batch.return_scale.unsqueeze(1) if spec.return_scaling else batch.reward
    value = n_step_returns(
        reward, bootstrap.view(size, positions), batch.length, batch.terminated, spec.discount
    )
    real = masks(batch.length, batch.terminated, unroll)
    if not spec.reanalyse:
        taken = batch.action.unsqueeze(2)
        return _targets(spec, reward, value, taken, torch.ones_like(taken[..., 0]), real)
    searched = spec.policy_positions
    seen = batch.observation[:, :positions][:, searched]
    found = planner(model, seen.flatten(0, 1), batch.task.repeat_interleave(seen.shape[1]), generator)
    if updates >= spec.search_value_after:
        old = (batch.age >= spec.search_value_age).unsqueeze(1) & real.policy[:, searched].bool()
        value[:, searched] = torch.where(old, found.value.view(size, -1), value[:, searched])

    if spec.policy == "improved" or planner.random_choice:
        action, weight = found.actions, found.weights
    else:
        action, weight = found.action.unsqueeze(1), torch.ones_like(found.value).unsqueeze(1)
    candidates = action.view(size, -1, *action.shape[1:])
    return _targets(spec, reward, value, candidates, weight.view(size, seen.shape[1], -1), real)


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
