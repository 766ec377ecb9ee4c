"""The adapter to the original package: against the real one where it is importable."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import ezm_pl.envs as envs
from ezm_pl.envs import original
from ezm_pl.spec.tasks import HUMANOID_BENCH

try:
    original._registry()
    REASON = ""
except envs.HumanoidBenchUnavailable as unavailable:
    REASON = str(unavailable)
real = pytest.mark.skipif(bool(REASON), reason=REASON or "it is here")

OTHERS = ["h1hand-cube", "h1touch-bookshelf_hard", "h1strong-highbar_hard", "h1hand-package"]
"""Tasks and robots that are not built in."""


def made(task: str, **settings: Any) -> gymnasium.Env[Any, Any]:
    """The task; skips where the installation lacks some of the package's files (its textures are large)."""
    try:
        return envs.make(task, backend="humanoid_bench", **settings)
    except envs.HumanoidBenchUnavailable as error:
        if "Error opening file" in str(error):
            pytest.skip(str(error))
        raise


@real
@pytest.mark.parametrize("task", ["h1-walk", "h1hand-reach", "h1hand-insert_small", *OTHERS])
def test_a_task_runs_and_a_seed_gives_the_same_episodes(task: str) -> None:
    env = made(task, protocol="ezm", episode_steps=4)
    if task in HUMANOID_BENCH:
        facts = HUMANOID_BENCH[task]
        assert env.observation_space.shape == (facts.obs_size,)
        assert env.action_space.shape == (facts.action_size,)

    def episodes() -> list[Any]:
        seen: list[Any] = []
        for seed in (7, None):
            obs, _ = env.reset(seed=seed)
            seen.append(obs)
            truncated = False
            while not truncated:
                obs, reward, _, truncated, info = env.step(np.full(env.action_space.shape or (), 0.1))
                assert obs.dtype == np.float32 and obs.shape == env.observation_space.shape
                assert info["reward_terms"]["per_timestep_reward"] == pytest.approx(reward)
                seen += [obs, reward]
        return seen

    state = np.array(np.random.get_state()[1])  # type: ignore[index]  # noqa: NPY002
    for a, b in zip(episodes(), episodes(), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # type: ignore[index]  # noqa: NPY002
    env.close()


@real
def test_it_agrees_with_the_built_in_task() -> None:
    theirs, ours = made("h1-walk", seed=0), envs.make("h1-walk", backend="builtin", seed=0)
    theirs.reset()
    ours.reset()
    inner, simulation = theirs.unwrapped._env, ours.unwrapped  # type: ignore[attr-defined]
    simulation.restore_recorded(inner.data.qpos, inner.data.qvel, inner.data.qacc_warmstart)  # type: ignore[attr-defined]
    for _ in range(2):
        a, b = theirs.step(np.full(19, 0.2)), ours.step(np.full(19, 0.2))
        np.testing.assert_allclose(a[0][:26], b[0][:26], atol=0.02)  # the positions
        assert a[1] == pytest.approx(b[1], abs=5e-3)
    theirs.close()


@real
def test_what_it_cannot_do_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for task, message in (
        ("h1-wlak", "humanoid_bench has no task 'h1-wlak'; did you mean 'h1-walk'"),
        ("h1-spoon", "humanoid_bench has no model for 'h1-spoon'"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            envs.make(task, backend="humanoid_bench")
        assert "\n" not in str(error.value)
    monkeypatch.setattr(original, "_robots_here", {"h1"})
    with pytest.raises(ValueError, match="cannot have 'g1-walk' in one process with tasks of h1"):
        envs.make("g1-walk", backend="humanoid_bench")


def pretend(monkeypatch: pytest.MonkeyPatch, failure: Exception | None) -> None:
    """A stand-in for the package: it fails on import with `failure`, or its tasks fail when made."""
    package = types.ModuleType(original.PACKAGE)
    sizes = types.ModuleType(f"{original.PACKAGE}.dmc_deps.dmc_sizes")
    sizes.array_sizes = {"mjmodel": {"qpos0": (), "long_gone": ()}, "mjdata": {}}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, original.PACKAGE, package)
    monkeypatch.setitem(sys.modules, sizes.__name__, sizes)
    monkeypatch.setattr(original, "available", lambda: True)
    monkeypatch.setattr(original, "_robots_here", set())

    def find(name: str) -> Any:
        if failure is not None:
            raise failure
        return sys.modules[name]

    monkeypatch.setattr(original.importlib, "import_module", find)


def test_a_package_that_does_not_start_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, AttributeError("module 'mujoco' has no attribute\n'x'"))
    with pytest.raises(
        envs.HumanoidBenchUnavailable, match="does not start: AttributeError: module"
    ) as error:
        envs.make("h1-walk", backend="humanoid_bench")
    assert "\n" not in str(error.value)


def test_a_task_that_does_not_start_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, None)
    spec = gymnasium.envs.registration.EnvSpec("h1-odd-v0", entry_point="humanoid_bench.env:HumanoidEnv")
    monkeypatch.setitem(gymnasium.registry, "h1-odd-v0", spec)
    tried = []

    def make(_: str, render_mode: str | None) -> None:
        tried.append(render_mode)
        raise (OSError if len(tried) > 2 else AttributeError)(f"h1_pos_odd.xml does not exist\n{render_mode}")

    monkeypatch.setattr(gymnasium, "make", make)
    with pytest.raises(
        envs.HumanoidBenchUnavailable, match="does not start 'h1-odd': AttributeError"
    ) as error:
        envs.make("h1-odd", backend="humanoid_bench")
    assert "\n" not in str(error.value) and tried == [None, "rgb_array"]
    with pytest.raises(ValueError, match="humanoid_bench has no model for 'h1-odd'"):
        envs.make("h1-odd", backend="humanoid_bench")
    tables = sys.modules[f"{original.PACKAGE}.dmc_deps.dmc_sizes"].array_sizes
    assert tables["mjmodel"] == {"qpos0": ()}


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(original, "available", lambda: False)
    with pytest.raises(
        envs.HumanoidBenchUnavailable, match="humanoid_bench, which is not installed"
    ) as error:
        envs.make("h1-walk", backend="humanoid_bench")
    assert "\n" not in str(error.value)
