"""How much of an action's real effect the dynamics predict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ezm_pl.training.diagnostics.episodes import FOLLOWING, Visited
from ezm_pl.training.diagnostics.networks import Networks
from ezm_pl.training.diagnostics.simulators import Simulators

_ROUNDING = 1e-5
"""Share of a latent's length (or of a value) below which a difference may be float32's rounding."""


@dataclass(frozen=True)
class ActionEffect:
    """Predicted against real differences between what follows different actions.

    Attributes:
        correlation: mean over states, 1 where the model sees exactly what an action changes.
        size: length of the predicted differences over that of the real ones, over all states.
    """

    correlation: float
    size: float


class Effects(NamedTuple):
    """What an action changes in the latents, and in their values."""

    latent: ActionEffect
    value: ActionEffect


def action_effects(
    networks: Networks, task: int, visited: Visited, picked: NDArray[np.int64], actions: Tensor, *, seed: int
) -> dict[int, Effects]:
    """Steps ahead (1 and `FOLLOWING`) to how well the dynamics tell actions apart.

    From each picked state the simulator takes each of the state's candidate actions, then the actions that
    the agent took after that state. So does the model from the encoded observation. Falls end nothing.

    Args:
        networks, task: what is diagnosed.
        visited: episodes; picked: indices `[N]` of states in them.
        actions: `[N, C, A]` candidates.
    """
    candidates, width = actions.shape[1], networks.latent_size
    found: dict[int, list[tuple[Tensor, ...]]] = {1: [], FOLLOWING: []}
    actor = networks.actor
    with Simulators(networks, task, candidates, protocol="ezm", seed=seed) as simulators:
        tasks = simulators.task_ids
        for index, own in zip(picked, actions, strict=True):
            simulators.restore([visited.states[index]] * candidates)
            state, _ = actor.root(simulators.observation(), tasks)
            for step in range(FOLLOWING):
                action = own if step == 0 else visited.action[index + step].expand_as(own)
                state, _, value = actor.step(state, action, tasks)
                simulators.step(action)
                if step + 1 in found:
                    seen, seen_value = actor.root(simulators.observation(), tasks)
                    latents = state[:, :width], seen[:, :width]
                    found[step + 1].append((*latents, value.unsqueeze(1), seen_value.unsqueeze(1)))
    effects = {}
    for steps, parts in found.items():
        latent, seen, value, seen_value = (torch.stack(part).float() for part in zip(*parts, strict=True))
        effects[steps] = Effects(compare_effects(latent, seen), compare_effects(value, seen_value))
    return effects


def compare_effects(imagined: Tensor, real: Tensor) -> ActionEffect:
    """Latents or values `[N, C, *]` after `C` actions from each of `N` states: what differs between actions.

    Where either does not differ beyond rounding, there is nothing to correlate: that state counts as 0.
    """
    between = [latents - latents.mean(1, keepdim=True) for latents in (imagined, real)]
    squares = [difference.square().sum((1, 2)) for difference in between]
    differ = [
        square > _ROUNDING**2 * latents.square().sum((1, 2))
        for square, latents in zip(squares, (imagined, real), strict=True)
    ]
    cosine = (between[0] * between[1]).sum((1, 2)) / (squares[0] * squares[1]).sqrt().clamp(min=1e-30)
    correlation = torch.where(differ[0] & differ[1], cosine, 0.0).mean()
    size = (squares[0].sum() / squares[1].sum().clamp(min=1e-30)).sqrt()
    return ActionEffect(float(correlation), float(size))
