"""A task of one's own: one short module, known everywhere by `<module>:<name>`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

import ezm_pl.envs as envs
from ezm_pl.envs import catalogue
from ezm_pl.envs.robots.humanoid import Task
from ezm_pl.spec import SpecError, build_experiment, normalized_score, resolve_tasks
from ezm_pl.spec.tasks import REGISTERED

NAME = "my_tasks:h1-bell"


@pytest.fixture(autouse=True)
def _as_if_new(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The module can be imported, and is not yet; afterwards nothing of it is left."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    yield
    for name in [name for name in REGISTERED if name.startswith("my_tasks:")]:
        del REGISTERED[name], catalogue.CATALOGUE[name]
    sys.modules.pop("my_tasks", None)


def test_a_task_takes_less_than_40_lines() -> None:
    env = envs.make(NAME, seed=0)
    lines = inspect.getsource(sys.modules["my_tasks"]).splitlines()
    assert len([line for line in lines if line.strip()]) < 40
    obs, _ = env.reset()
    assert obs.shape == (51,)
    _, reward, terminated, truncated, info = env.step(np.zeros(19))
    assert set(info["reward_terms"]) == {"near", "upright", "per_timestep_reward"}
    assert 0 < reward < 1 and not terminated and not truncated
    env.close()


def test_specs_scores_and_vectors_know_it() -> None:
    assert resolve_tasks([NAME, "h1-walk"]) == (NAME, "h1-walk")
    assert normalized_score(NAME, 350.0) == 0.5
    assert catalogue.description(NAME) == "Stand upright and bring the right hand to a bell."
    document = yaml.safe_load(f"{{name: own, preset: smoke, tasks: ['{NAME}', h1-walk]}}")
    assert build_experiment(document, source="own.yaml", gpu=False).tasks == (NAME, "h1-walk")
    assert envs.sizes([NAME, "h1hand-walk"]).obs_sizes.tolist() == [51, 151]
    env = envs.MultiTaskVectorEnv([NAME, "h1-walk"], num_envs=1, seed=0, mode="sync")
    env.reset()
    assert np.isfinite(env.step(np.zeros((2, 19)))[1]).all()
    env.close()


def test_what_cannot_be_is_one_clear_line() -> None:
    for name, message in (
        (
            "my_tasks:h1-bel",
            "'my_tasks' registers no task 'my_tasks:h1-bel'; did you mean 'my_tasks:h1-bell'",
        ),
        ("no_such_module:h1-bell", "module 'no_such_module' does not import: ModuleNotFoundError"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            envs.make(name)
        assert "\n" not in str(error.value)
        with pytest.raises(SpecError, match=message):
            document = {"name": "own", "preset": "smoke", "tasks": [name]}
            build_experiment(document, source="own.yaml", gpu=False)
    for name, robot, message in (
        ("h1-bell", "h2", "unknown robot 'h2', not one of h1, h1hand"),
        ("a:b", "h1", "must not be empty or hold a colon"),
    ):
        with pytest.raises(ValueError, match=message):
            envs.register(name, robot, Task, success_score=1)
    with pytest.raises(ValueError, match="success_score and random_score must differ, both are 0"):
        envs.register("h1-penalties", "h1", Task, success_score=0)
