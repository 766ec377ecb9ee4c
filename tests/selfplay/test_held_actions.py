"""Bursts of held random actions, by their statistics; and who plays them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ezm_pl.selfplay.held_actions import HeldActions
from ezm_pl.spec import Experiment, SpecError, build_experiment
from ezm_pl.spec.presets import merge

BASE: dict[str, Any] = {
    "name": "test",
    "preset": "smoke",
    "tasks": ["dmc-cartpole-swingup", "dmc-hopper-stand"],
    "env": {"num_envs": 4, "action_repeat": 2},
}
MASK = np.array([[1, 0, 0, 0]] * 4 + [[1, 1, 1, 1]] * 4, np.float32)
CHOSEN = np.float32(0.25) * MASK


def experiment(**collect: Any) -> Experiment:
    return build_experiment(merge(BASE, {"collect": collect}))


def played(decisions: int, seed: int = 0, progress: float = 0.0, **collect: Any) -> NDArray[np.float32]:
    """Taken actions `[decisions, 8, 4]` of an agent that always chooses 0.25."""
    held = HeldActions(experiment(**collect), MASK, np.random.default_rng(seed))
    return np.stack([held(CHOSEN, progress) for _ in range(decisions)])


def runs(values: NDArray[np.float32]) -> list[tuple[float, int]]:
    """Values with how often each comes in a row."""
    edges = np.flatnonzero(np.diff(values)) + 1
    return [(float(part[0]), len(part)) for part in np.split(values, edges)]


def test_without_a_share_the_agent_s_actions_are_taken_and_nothing_is_drawn() -> None:
    random = np.random.default_rng(0)
    held = HeldActions(experiment(), MASK, random)
    assert held(CHOSEN, 0.0) is CHOSEN
    assert random.random() == np.random.default_rng(0).random()


def test_the_last_environments_of_each_task_explore() -> None:
    taken = played(2000, hold_share=0.5)
    explores = (taken != CHOSEN).any((0, 2))
    assert explores.tolist() == [False, False, True, True] * 2
    assert (taken[:, :4, 1:] == 0).all(), "padded actuators stay at zero"


@pytest.mark.parametrize(
    ("progress", "exploring"), [(0.0, 4), (0.3, 3), (0.5, 2), (0.8, 1), (0.9, 0), (1.0, 0)]
)
def test_fewer_environments_explore_as_training_goes_on(progress: float, exploring: int) -> None:
    taken = played(2000, progress=progress, hold_share=1.0)
    assert (taken != CHOSEN).any((0, 2)).reshape(2, 4).sum(1).tolist() == [exploring] * 2


def test_actions_are_extreme_and_held_and_the_agent_decides_in_between() -> None:
    """hold_steps 15 at an action repeat of 2: 5 to 10 decisions; pauses of 10 decisions on average."""
    taken = played(40_000, hold_share=0.25)[:, 7]
    assert set(np.unique(np.abs(taken)).tolist()) == {0.25, 1.0}
    agent = (taken == 0.25).all(1)
    assert ((np.abs(taken) > 0.9).all(1) != agent).all(), "all actuators or none"
    pauses = [length for chosen, length in runs(agent.astype(np.float32)) if chosen]
    assert np.mean(pauses) == pytest.approx(10, abs=0.6)  # 1 / 0.1, of those that have any decision
    bursts = [length for chosen, length in runs(agent.astype(np.float32)) if not chosen]
    assert np.mean(bursts) == pytest.approx(7 * 7.5 / 0.9, abs=3)  # one in ten follows another at once
    assert min(bursts[:-1]) >= 4 * 5
    keys = (np.sign(taken) @ [1, 2, 4, 8]) * ~agent
    changes = [(a, b) for (a, _), (b, _) in zip(runs(keys), runs(keys)[1:], strict=False) if a and b]
    # The others are of bursts that follow another at once.
    assert np.mean([a == -b for a, b in changes]) > 0.96
    assert len({abs(a) for a, _ in changes}) == 8, "every pair of opposites"


def test_the_same_seed_plays_the_same() -> None:
    first, second, other = (played(300, seed, hold_share=0.5) for seed in (1, 1, 2))
    assert (first == second).all() and (first != other).any()


def test_a_share_of_no_environment_is_refused() -> None:
    with pytest.raises(SpecError, match=r"hold_share 0.1 of env.num_envs 4 rounds to no environment"):
        experiment(hold_share=0.1)
