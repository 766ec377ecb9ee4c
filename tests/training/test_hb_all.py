"""All 46 tasks in one batch: padded, masked, collected, trained."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from ezm_pl.envs import MultiTaskVectorEnv
from ezm_pl.spec import build_experiment, resolve_tasks
from ezm_pl.training import evaluation, fit


@pytest.mark.timeout(600)
@pytest.mark.parametrize("updates", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_hb_all_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, updates: int) -> None:
    # Full episodes of 46 tasks would take most of the time, and say nothing about training.
    brief = functools.partialmethod(MultiTaskVectorEnv.__init__, episode_steps=20)
    monkeypatch.setattr(
        evaluation, "MultiTaskVectorEnv", type("Brief", (MultiTaskVectorEnv,), {"__init__": brief})
    )
    document = {
        "name": "hb-all",
        "preset": "smoke",
        "tasks": "hb-all",
        "env": {"num_envs": 1},
        "optim": {"batch_size": 46, "total_updates": updates},
        "replay": {"block_size": 20},
        "collect": {"env_steps": 120 + 40 * updates, "random_steps": 120},
        "eval": {"every": 1000, "episodes": 1},
        "trainer": {"checkpoint_every": 1000},
    }
    experiment = build_experiment(document, source="hb_all.yaml", gpu=False)
    assert experiment.tasks == resolve_tasks("hb-all")
    result = fit(experiment, tmp_path, logger=None)
    assert (result.status, result.updates) == ("finished", updates)
    assert (result.env_steps >= 120).all() and result.env_steps.shape == (46,)
    (last,) = result.evaluations
    assert last.returns_ezm.shape == (46, 1) and np.isfinite(last.returns_ezm).all()


def test_hb_all_is_padded_and_masked() -> None:
    """What a task has no actuator or observation for is 0, and what an action says there does not matter."""
    one, other = (
        MultiTaskVectorEnv(resolve_tasks("hb-all"), num_envs=1, seed=0, mode="sync") for _ in range(2)
    )
    sizes, mask = one.sizes, one.action_mask.astype(bool)
    assert (sizes.obs_size, sizes.action_size) == (308, 61)
    np.testing.assert_array_equal(mask.sum(1), sizes.action_sizes)
    beyond = np.arange(sizes.obs_size) >= sizes.obs_sizes[:, None]
    first, _ = one.reset()
    np.testing.assert_array_equal(other.reset()[0], first)
    rng = np.random.default_rng(0)
    for _ in range(2):
        action = rng.uniform(-1, 1, mask.shape).astype(np.float32)
        got, reward, *_ = one.step(action)
        same, paid, *_ = other.step(np.where(mask, action, -action))
        np.testing.assert_array_equal(got, same)
        np.testing.assert_array_equal(reward, paid)
        assert (got[beyond] == 0).all() and np.isfinite(reward).all()
        assert (got[~beyond] != first[~beyond]).any()
    one.close()
    other.close()
