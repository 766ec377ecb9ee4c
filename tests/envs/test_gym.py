"""Any Gymnasium environment with Box spaces, by `gym:<id>`: sizes, returns, spaces that cannot be, scores."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import ezm_pl.envs as envs
from ezm_pl.cli import main
from ezm_pl.envs import rendering
from ezm_pl.envs.core import ControlEnv
from ezm_pl.spec import SpecError, build_experiment, normalized_score, resolve_tasks
from ezm_pl.spec.facts import spec_facts
from ezm_pl.training import Evaluation

MODULE = '''
import gymnasium
import numpy as np
from gymnasium.spaces import Box


class Box2(gymnasium.Env):
    """Actions of two dimensions and with bounds of their own; ends and cuts itself."""

    observation_space = Box(0, 255, (2, 3), np.uint8)
    action_space = Box(np.array([[-1, 0], [2, 10]], np.float32), np.array([[1, 4], [4, 30]], np.float32))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.full((2, 3), 7, np.uint8), {}

    def step(self, action):
        self.steps += 1
        return np.full((2, 3), self.steps, np.uint8), float(action.sum()), False, self.steps == 4, {}


gymnasium.register("Box2-v0", entry_point=Box2, max_episode_steps=10)
gymnasium.register("Endless-v0", entry_point=Box2)
'''


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "my_gym.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_gym"
    sys.modules.pop("my_gym", None)
    for name in ("Box2-v0", "Endless-v0"):
        gymnasium.registry.pop(name, None)


@pytest.mark.parametrize("name", ["Humanoid-v5", "HalfCheetah-v5", "Pendulum-v1"])
@pytest.mark.parametrize("protocol", ["ezm", "humanoidbench"])
def test_returns_are_gymnasiums_own(name: str, protocol: Any) -> None:
    own, ours = gymnasium.make(name), envs.make(f"gym:{name}", protocol=protocol)
    low, high = own.action_space.low, own.action_space.high  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    for seed in (5, None):
        a, b = own.reset(seed=seed)[0], ours.reset(seed=seed)[0]
        over = False
        while not over:
            np.testing.assert_array_equal(np.asarray(a, np.float32), b)
            action = rng.uniform(-1, 1, low.shape)
            a, reward, ended, cut, _ = own.step((low + 0.5 * (action + 1) * (high - low)).astype(np.float32))
            b, our_reward, our_end, our_cut, info = ours.step(action)
            assert (reward, ended, cut) == (our_reward, our_end, our_cut)
            assert not info["fell"] and not info["diverged"]
            over = ended or cut
    assert ours.metadata["render_fps"] == own.metadata["render_fps"]


def test_gymnasiums_checker_passes() -> None:
    check_env(envs.make("gym:Hopper-v5"), skip_render_check=True)


def test_own_spaces_bounds_and_ends(own_module: str) -> None:
    env = envs.make(f"gym:{own_module}:Box2-v0", action_repeat=3)
    assert isinstance(env, ControlEnv) and env.episode_steps == 10
    assert env.observation_space.shape == (6,) and env.action_space.shape == (4,)
    np.testing.assert_array_equal(env.reset(seed=0)[0], np.full(6, 7, np.float32))
    obs, reward, terminated, truncated, info = env.step(np.array([-1.0, 0.0, 1.0, 9.0]))
    assert reward == 3 * (-1 + 2 + 4 + 30) and info["steps"] == 3 and not (terminated or truncated)
    np.testing.assert_array_equal(obs, np.full(6, 3, np.float32))
    _, _, terminated, truncated, info = env.step(np.zeros(4))
    assert truncated and not terminated and info["steps"] == 1


def test_what_cannot_be_is_one_line(own_module: str) -> None:
    for name, message in (
        ("gym:CartPole-v1", r"its actions Discrete\(2\); only Box spaces can be learned here"),
        ("gym:FrozenLake-v1", r"its observations are Discrete\(16\)"),
        ("gym:Humanod-v5", "gymnasium cannot make it: .*Did you mean: `Humanoid`"),
        ("gym:no_such_module:Env-v0", "gymnasium cannot make it: No module named 'no_such_module'"),
        ("gym:", "gymnasium cannot make it"),
        (f"gym:{own_module}:Endless-v0", "without a time limit"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            envs.make(name)
        assert "\n" not in str(error.value)


def test_what_cannot_be_drawn_can_be_learned(own_module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes no render mode, and one that takes it and has no `render`."""
    monkeypatch.setattr(rendering, "require", lambda: None)
    name = f"gym:{own_module}:Box2-v0"
    envs.make(name).reset(seed=0)
    with pytest.raises(envs.RenderingUnavailable, match=r"Box2-v0' cannot be drawn: .*render_mode") as error:
        envs.make(name, render_mode="rgb_array")
    assert "\n" not in str(error.value)
    monkeypatch.setattr(sys.modules[own_module].Box2, "__init__", lambda self, render_mode=None: None)
    env = envs.make(name, render_mode="rgb_array")
    env.reset(seed=0)
    with pytest.raises(envs.RenderingUnavailable, match="cannot be drawn: NotImplementedError"):
        env.render()


def test_they_mix_with_built_in_tasks() -> None:
    tasks = resolve_tasks(["h1-stand", "gym:Humanoid-v5", "gym:HalfCheetah-v5"])
    sizes = envs.sizes(tasks)
    assert sizes.obs_sizes.tolist() == [51, 348, 17] and sizes.action_sizes.tolist() == [19, 17, 6]
    env = envs.MultiTaskVectorEnv(tasks, num_envs=2, seed=0, mode="sync")
    obs, _ = env.reset()
    assert obs.shape == (6, 348) and not obs[4:, 17:].any()
    for _ in range(30):
        obs, reward, *_ = env.step(np.zeros((6, 19)))
    assert np.isfinite(obs).all() and np.isfinite(reward).all()
    env.close()


DOCUMENT: dict[str, Any] = {"name": "mixed", "preset": "smoke", "tasks": ["gym:Hopper-v5", "h1-stand"]}


def test_scores_come_from_the_spec_or_are_left_out() -> None:
    assert math.isnan(normalized_score("gym:Hopper-v5", 3.0))
    returns = np.array([[60.0], [800.0]])
    for meta, score, mean in (({}, None, 1.0), ({"random_score": 20, "success_score": 120}, 0.4, 0.7)):
        experiment = build_experiment({**DOCUMENT, "tasks_meta": {"gym:Hopper-v5": meta}})
        evaluation = Evaluation(experiment.tasks, 1, 1, returns, returns, bounds=experiment.score_bounds)
        metrics = evaluation.metrics()
        assert metrics.get("eval/gym:Hopper-v5/score") == score
        assert metrics["eval/score"] == pytest.approx(mean)
    alone = Evaluation(("gym:Hopper-v5",), 1, 1, returns[:1], returns[:1])
    assert "eval/score" not in alone.metrics() and alone.metrics()["eval/gym:Hopper-v5/return_ezm"] == 60


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"gym:Hoper-v5": {}}, "'gym:Hoper-v5' is not one of the tasks; did you mean 'gym:Hopper-v5'?"),
        ({"gym:Hopper-v5": {"random_score": 3}}, "random_score and success_score go together"),
        ({"gym:Hopper-v5": {"random_score": 3, "success_score": 3}}, "must differ"),
        ({"gym:Hopper-v5": {"quirks": False}}, "has no quirks that could be left out"),
        ({"gym:Hopper-v5": {"quirk": False}}, "unknown key"),
    ],
)
def test_wrong_task_settings_are_one_line(meta: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match="tasks_meta.*" + message.replace("?", r"\?")):
        build_experiment({**DOCUMENT, "tasks_meta": meta}, source="s.yaml")


def test_a_spec_says_that_values_are_clipped_below_zero() -> None:
    def notes(**changes: Any) -> list[str]:
        facts = spec_facts(build_experiment({**DOCUMENT, "tasks_meta": {}, **changes}))
        return [line for line in facts if line.startswith("note: ")]

    (note,) = notes(tasks=["gym:Hopper-v5", "h1-stand", "h1-reach", "h1hand-push"])
    assert "model.value_floor" in note and note.endswith("may be: gym:Hopper-v5, h1-reach, h1hand-push")
    assert not notes(model={"value_floor": None}) and not notes(tasks=["h1-stand"])


def test_a_spec_says_that_values_are_clipped_at_the_support() -> None:
    """Two control steps per decision: 2 / (1 - 0.99) = 200."""

    def notes(**changes: Any) -> list[str]:
        document = {"name": "s", "preset": "laptop", "tasks": ["h1-stand"], "env": {"action_repeat": 2}}
        facts = spec_facts(build_experiment({**document, **changes}))
        return [line for line in facts if line.startswith("note: ")]

    (note,) = notes(targets={"discount": 0.99})
    assert "returns of up to 200" in note and "model.support 149" in note
    assert not notes(targets={"discount": 0.985})
    assert not notes(targets={"discount": 0.99}, model={"support": 299})
    assert not notes(targets={"discount": 0.99, "return_scaling": True})


def test_a_spec_says_that_a_single_task_has_no_gradient_conflict() -> None:
    def facts(*tasks: str) -> str:
        document = {"name": "s", "preset": "laptop", "trainer": {"gradient_conflict_every": 10}}
        return "\n".join(spec_facts(build_experiment({**document, "tasks": list(tasks)})))

    assert "note: trainer.gradient_conflict_every: a single task" in facts("h1-stand")
    assert "gradient_conflict_every" not in facts("h1-stand", "h1-walk")


def test_without_quirks_reaches_the_environments() -> None:
    experiment = build_experiment({**DOCUMENT, "tasks_meta": {"h1-stand": {"quirks": False}}})
    assert experiment.without_quirks == ("h1-stand",)
    env = envs.MultiTaskVectorEnv(
        ["h1-stand", "h1-walk"], num_envs=1, seed=0, mode="sync", without_quirks=experiment.without_quirks
    )
    (group,) = env._groups
    assert [env.unwrapped.task.quirks for env in group._envs] == [False, True]  # type: ignore[attr-defined]
    env.close()


@pytest.mark.parametrize(
    "command", [["validate", "s.yaml"], ["train", "s.yaml"], ["envs", "show", "gym:CartPole-v1"]]
)
def test_other_spaces_are_refused_before_anything_starts(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text("{name: r, preset: smoke, tasks: ['gym:CartPole-v1', h1-walk]}")
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ezm: ") and "only Box spaces can be learned here" in line
    assert not Path("mlruns").exists()
