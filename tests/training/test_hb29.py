"""All 29 tasks in one batch: padded, masked, collected, trained."""

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
def test_hb29_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, updates: int) -> None:
    # Full episodes of 29 tasks would take most of the time, and say nothing about training.
    brief = functools.partial(MultiTaskVectorEnv, episode_steps=20)
    monkeypatch.setattr(evaluation, "MultiTaskVectorEnv", brief)
    document = {
        "name": "hb29",
        "preset": "smoke",
        "tasks": "hb-29",
        "env": {"num_envs": 1},
        "optim": {"batch_size": 29, "total_updates": updates},
        "replay": {"block_size": 20},
        "collect": {"env_steps": 120 + 40 * updates, "random_steps": 120},
        "eval": {"every": 1000, "episodes": 1},
        "trainer": {"checkpoint_every": 1000},
    }
    experiment = build_experiment(document, source="hb29.yaml", gpu=False)
    assert experiment.tasks == resolve_tasks("hb-29")
    result = fit(experiment, tmp_path, logger=None)
    assert (result.status, result.updates) == ("finished", updates)
    assert (result.env_steps >= 120).all() and result.env_steps.shape == (29,)
    (last,) = result.evaluations
    assert last.returns_ezm.shape == (29, 1) and np.isfinite(last.returns_ezm).all()
