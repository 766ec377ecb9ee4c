"""Rules and quirks of package, powerlift, room, kitchen and the high bars, worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ezm_pl.envs as envs
from ezm_pl.envs.robots.humanoid import HumanoidEnv

HIGH_BARS = ("h1-highbar_simple", "h1strong-highbar_hard")
DESTINATION = slice(151, 154)
LITTLE_FINGER = [69, 70]


def made(task: str, **settings: Any) -> HumanoidEnv:
    env = envs.make(task, seed=0, **settings).unwrapped
    assert isinstance(env, HumanoidEnv)
    env.reset()
    return env


def rested(env: HumanoidEnv, **places: float) -> np.ndarray:
    """The initial qpos [nq], with entries of what the task adds changed: `at3=0.5` is the fourth."""
    qpos = env.initial_qpos.copy()
    for name, value in places.items():
        qpos[env.sim.robot_nq + int(name.removeprefix("at"))] = value
    return qpos


def step(env: HumanoidEnv, qpos: np.ndarray, **internal: Any) -> tuple[float, bool, dict[str, float]]:
    env.restore_recorded(qpos, np.zeros(env.model.nv), internal=internal)
    _, reward, terminated, _, info = env.step(np.zeros(env.model.nu))
    return reward, terminated, info["reward_terms"]


def test_package_pays_1000_at_its_destination_and_ends() -> None:
    env = made("h1hand-package")
    for offset, arrived in ((0.15, False), (0.05, True)):
        goal = [1.5 + offset, 1.0, 0.35]
        reward, terminated, terms = step(env, rested(env, at0=1.5, at1=1.0), destination=goal)
        assert terms["dist_package_destination"] == pytest.approx(offset, abs=5e-3)
        assert terminated is arrived and (reward > 900) is arrived
        hands = terms["dist_hand_package_left"] + terms["dist_hand_package_right"]
        parts = terms["stand_reward"] * terms["small_control"] - 3 * terms["dist_package_destination"]
        expected = parts - 0.1 * hands + terms["package_height"] + 1000 * arrived
        assert reward == pytest.approx(expected)
    assert step(env, rested(env, at2=3.0))[2]["package_height"] == 1.0


def test_package_shows_the_destination_late_unless_quirks_are_off() -> None:
    for quirks in (True, False):
        env = envs.make("h1hand-package", quirks=quirks)
        before = [0.0, 0.0, 0.35]
        for seed in (5, None, None):
            shown = env.reset(seed=seed)[0][DESTINATION]
            present = env.step(np.zeros(61))[0][DESTINATION]
            np.testing.assert_array_equal(shown, np.float32(before if quirks else present))
            assert (np.abs(present[:2]) <= 2).all()
            assert bool((present != shown).any()) is quirks
            before = present
        np.testing.assert_array_equal(env.reset(seed=5)[0], env.reset(seed=5)[0])


def test_powerlift_pays_for_a_barbell_at_two_metres() -> None:
    env = made("h1hand-powerlift")
    lifted = [step(env, rested(env, at2=height))[2]["reward_dumbbell_lifted"] for height in (0.2, 1.5, 2.0)]
    assert lifted == sorted(lifted) and lifted[2] == 1.0
    assert lifted[0] == pytest.approx(0.1 ** ((1.7 / 2) ** 2), abs=5e-3)
    assert env.model.body("dumbbell").mass[0] == pytest.approx(103.96566816304312)


def test_room_pays_for_things_that_stand_close_together() -> None:
    env = made("h1hand-room")
    organized = []
    for spread in (0.3, 0.1):
        places = {f"at{7 * i}": 1 + spread * i for i in range(6)} | {f"at{7 * i + 1}": 2.0 for i in range(6)}
        qpos = rested(env, **places, **{f"at{7 * i + 2}": 0.3 * i for i in range(6)})
        organized.append(step(env, qpos)[2]["room_object_organized"])
        variance = spread**2 * np.arange(6).var()
        assert organized[-1] == pytest.approx(0.1 ** ((variance / 3) ** 2), abs=2e-3)
    assert organized[1] > organized[0]


@pytest.mark.parametrize("quirks", [True, False])
def test_room_starts_with_a_bent_finger_unless_quirks_are_off(quirks: bool) -> None:
    env = made("h1hand-room", quirks=quirks)
    for seed in range(5):
        obs = env.reset(seed=seed)[0]
        x, y = obs[LITTLE_FINGER]
        if quirks:
            assert -3.5 <= x <= -2.5 and 1.2 <= abs(y) <= 3.5
        else:
            assert abs(x) <= 0.01 and abs(y) <= 0.01
        for i in range(6):
            x, y = obs[76 + 7 * i : 78 + 7 * i]
            assert i - 2.5 <= x <= i - 1.5 and 1.2 <= abs(y) <= 3.5


def test_kitchen_pays_in_order() -> None:
    env = made("h1hand-kitchen")
    microwave, kettle = {"at13": -0.72}, {"at14": -0.23, "at15": 0.75, "at16": 1.0}
    burner, light = {"at2": -0.88, "at3": -0.0051}, {"at8": -0.69, "at9": -0.0493}
    cases: list[tuple[dict[str, float], list[int], float, list[int]]] = [
        (microwave, [0, 1, 2, 3], 1, [1, 2, 3]),
        (burner, [0, 1, 2, 3], 0, [0, 1, 2, 3]),
        (microwave | kettle | burner, [0, 1, 2, 3], 3, [3]),
        (burner, [2, 3], 1, [3]),
        (light, [3], 1, []),
        ({}, [], 0, []),
    ]
    for places, before, paid, after in cases:
        reward, terminated, terms = step(env, rested(env, **places), tasks_to_complete=before)
        assert reward == paid and env.task.open == after  # type: ignore[attr-defined]
        assert terminated is (not after) and terms["success_subtasks"] == 4 - len(after)
    env.reset()
    assert env.task.open == [0, 1, 2, 3]  # type: ignore[attr-defined]


def test_kitchen_turns_the_robot_away_unless_quirks_are_off() -> None:
    for quirks, angle in ((True, 2 * np.arctan(1.57)), (False, np.pi / 2)):
        env = made("h1hand-kitchen", quirks=quirks)
        obs = env.reset()[0]
        assert obs.shape == (97,)
        assert 2 * np.arctan2(obs[6], obs[3]) == pytest.approx(angle, abs=1e-6)


@pytest.mark.parametrize("task", HIGH_BARS)
def test_high_bars_start_noisy_once_unless_quirks_are_off(task: str) -> None:
    for quirks in (True, False):
        env = made(task, quirks=quirks)
        for seed, first in ((3, True), (None, False), (None, False), (3, True)):
            off = np.abs(env.reset(seed=seed)[0][: env.model.nq] - env.initial_qpos).max()
            assert bool(off > 1e-3) is (first or not quirks)
            assert off <= 0.0101


@pytest.mark.parametrize("task", HIGH_BARS)
def test_high_bars_pay_upside_down_above_the_bar_and_end_low(task: str) -> None:
    env = made(task)
    hanging = env.initial_qpos.copy()
    assert step(env, hanging)[0] < 1e-3
    above = hanging.copy()
    above[2:7] = 4.2, 0, 1, 0, 0
    reward, terminated, terms = step(env, above)
    assert terms["upright_reward"] == 1.0 and terms["feet_reward"] == 1.0
    assert reward == pytest.approx(terms["small_control"]) and not terminated
    low = hanging.copy()
    low[2] = 1.0
    assert step(env, low)[1]


def test_quirks_are_the_originals() -> None:
    with pytest.raises(ValueError, match="quirks must be true"):
        envs.make("h1hand-room", backend="humanoid_bench", quirks=False)
