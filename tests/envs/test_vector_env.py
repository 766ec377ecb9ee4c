"""Many environments at once: order, padding, autoreset, equal in every mode, clean ends and errors."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import ezm_pl.envs as envs
from ezm_pl.envs import registry
from ezm_pl.envs.stepping import vector
from ezm_pl.envs.stepping import workers as processes
from ezm_pl.envs.stepping.workers import WorkerError

TASKS = ["h1-pole", "dmc-cartpole-balance", "h1-maze"]


def run(mode: vector.Mode, steps: int = 25, workers: int | None = 2) -> list[np.ndarray]:
    env = envs.MultiTaskVectorEnv(
        TASKS, num_envs=3, seed=11, mode=mode, episode_steps=8, workers=workers, action_repeat=3
    )
    try:
        assert env.mode == mode
        rng = np.random.default_rng(0)
        out = [env.reset()[0]]
        for _ in range(steps):
            obs, reward, terminated, truncated, infos = env.step(rng.uniform(-1, 1, (9, 19)))
            out += [obs, reward, terminated, truncated, *(infos[key] for key in sorted(infos))]
        env.set_episode_steps(5)
        out.append(env.reset(seed=4)[0])
        for _ in range(2):
            out.append(env.step(np.zeros((9, 19)))[3])
    finally:
        env.close()
    return out


def test_every_mode_gives_the_same_numbers() -> None:
    threads, children = set(threading.enumerate()), set(multiprocessing.active_children())
    sync = run("sync")
    for mode, workers in (("threads", 2), ("threads", 4), ("async", 2)):
        other = run(mode, workers=workers)  # type: ignore[arg-type]
        for a, b in zip(sync, other, strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype
    assert sync[-1].all() and not sync[-2].any()
    assert set(threading.enumerate()) <= threads
    assert set(multiprocessing.active_children()) <= children


def test_shapes_padding_and_autoreset() -> None:
    env = envs.MultiTaskVectorEnv(TASKS, num_envs=2, seed=0, mode="sync", episode_steps=4)
    assert isinstance(env, gymnasium.vector.VectorEnv)
    assert env.task_ids.tolist() == [0, 0, 1, 1, 2, 2]
    assert env.single_observation_space.shape == (51,) and env.observation_space.shape == (6, 51)
    obs, infos = env.reset()
    assert obs.shape == (6, 51) and obs.dtype == np.float32
    assert (obs[2:4, 5:] == 0).all() and (obs[2:4, :5] != 0).any()
    np.testing.assert_array_equal(infos["final_obs"], obs)
    assert env.action_mask.sum(axis=1).tolist() == [19, 19, 1, 1, 19, 19]
    for step in range(1, 9):
        actions = np.zeros((6, 19), np.float32)
        actions[2:4, 1:] = np.nan  # padding is ignored, whatever it holds
        obs, reward, terminated, truncated, infos = env.step(actions)
        assert reward.shape == (6,) and reward.dtype == np.float32
        assert terminated.dtype == truncated.dtype == infos["fell"].dtype == infos["diverged"].dtype == bool
        assert infos["steps"].tolist() == [1] * 6
        assert (obs[2:4, 5:] == 0).all() and (infos["final_obs"][2:4, 5:] == 0).all()
        ended = step % 4 == 0
        assert (truncated == ended).all() and not terminated.any()
        assert (np.abs(infos["final_obs"] - obs).max(axis=1) > 0).all() == ended
    env.close()


def test_rows_are_single_environments_with_their_own_seeds() -> None:
    env = envs.MultiTaskVectorEnv(["h1-walk"], num_envs=2, seed=0, mode="sync", episode_steps=3)
    obs, _ = env.reset(seed=[5, 6])
    single = envs.make("h1-walk", protocol="ezm", episode_steps=3)
    np.testing.assert_array_equal(obs[1], single.reset(seed=6)[0])
    for _ in range(3):
        obs, reward, _, truncated, infos = env.step(np.zeros((2, 19)))
        alone, alone_reward, *_ = single.step(np.zeros(19))
        assert reward[1] == np.float32(alone_reward)
    np.testing.assert_array_equal(infos["final_obs"][1], alone)
    np.testing.assert_array_equal(obs[1], single.reset()[0])
    assert truncated.all()
    with pytest.raises(ValueError, match="3 seeds for 2 environments"):
        env.reset(seed=[1, 2, 3])
    env.close()


def test_sizes() -> None:
    sizes = envs.sizes(["h1hand-walk", "dmc-walker-walk", "h1-walk"])
    assert sizes.obs_sizes.tolist() == [151, 24, 51] and sizes.action_sizes.tolist() == [61, 6, 19]
    assert (sizes.obs_size, sizes.action_size) == (151, 61)
    assert sizes.action_mask.dtype == np.float32 and sizes.action_mask.shape == (3, 61)
    np.testing.assert_array_equal(sizes.action_mask.sum(axis=1), sizes.action_sizes)
    assert (np.diff(sizes.action_mask, axis=1) <= 0).all()
    with pytest.raises(ValueError, match="no tasks given"):
        envs.sizes([])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("mode", ["sync", "threads", "async"])
def test_an_error_in_a_worker_surfaces_with_its_traceback(mode: vector.Mode) -> None:
    env = envs.MultiTaskVectorEnv(["dmc-cartpole-balance"], num_envs=2, seed=0, mode=mode, workers=2)
    env.reset()
    bad = np.zeros((2, 1))
    bad[1] = np.nan
    with pytest.raises((ValueError, RuntimeError), match="action holds a NaN") as error:
        env.step(bad)
    if mode == "async":
        assert "Traceback" in str(error.value) and "core.py" in str(error.value)
    env.close()
    assert not multiprocessing.active_children()


def worker(env: envs.MultiTaskVectorEnv, n: int) -> int:
    """Process id of a worker."""
    assert env._processes is not None
    pid = env._processes._workers[n].processes[0].pid
    assert pid is not None
    return pid


def test_a_killed_worker_is_one_clear_error_where_none_may_be_restarted() -> None:
    env = envs.MultiTaskVectorEnv(["dmc-cartpole-balance"], num_envs=2, seed=0, mode="async", workers=2)
    env.reset()
    os.kill(worker(env, 0), signal.SIGKILL)
    with pytest.raises(
        WorkerError, match=r"worker 0 \(dmc-cartpole-balance\) was killed by SIGKILL"
    ) as error:
        env.step(np.zeros((2, 1)))
    assert "env.max_worker_restarts" in str(error.value) and "\n" not in str(error.value)
    env.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("fault", "timeout", "says"),
    [(signal.SIGKILL, 300.0, "was killed by SIGKILL"), (signal.SIGSTOP, 2.0, "did not answer")],
)
def test_a_worker_that_dies_or_hangs_is_replaced_and_its_episodes_cut(
    fault: signal.Signals, timeout: float, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    env = envs.MultiTaskVectorEnv(
        ["dmc-cartpole-balance"],
        num_envs=4,
        seed=0,
        mode="async",
        workers=2,
        worker_timeout=timeout,
        max_worker_restarts=1,
    )
    twin = envs.MultiTaskVectorEnv(["dmc-cartpole-balance"], num_envs=4, seed=0, mode="sync")
    try:
        env.set_episode_steps(7)
        env.reset()
        twin.reset()
        before = env.step(np.zeros((4, 1)))[0]
        twin.step(np.zeros((4, 1)))
        os.kill(worker(env, 1), fault)
        obs, reward, terminated, truncated, infos = env.step(np.ones((4, 1)))
        (line,) = [record.getMessage() for record in caplog.records]
        assert re.match(
            rf"environment worker 1 \(dmc-cartpole-balance\) .*{says}: restarted, its episodes cut", line
        )
        expected = twin.step(np.ones((4, 1)))
        np.testing.assert_array_equal(obs[:2], expected[0][:2])
        assert infos["lost"].tolist() == truncated.tolist() == [False, False, True, True]
        assert not terminated.any() and (reward[2:] == 0).all() and (infos["steps"] == [1, 1, 0, 0]).all()
        np.testing.assert_array_equal(infos["final_obs"][2:], before[2:])
        assert (obs[2:] != before[2:]).any(axis=1).all()
        assert env.worker_restarts == 1
        # The limit on an episode's length holds in the new worker, too.
        cut = [env.step(np.zeros((4, 1)))[3] for _ in range(7)]
        assert np.array(cut).sum(axis=0).tolist() == [1, 1, 1, 1] and cut[6][2:].all()
        os.kill(worker(env, 0), signal.SIGKILL)
        with pytest.raises(WorkerError, match="restarted 1 times already, the limit"):
            env.step(np.zeros((4, 1)))
    finally:
        env.close()
    assert not multiprocessing.active_children()


MORTAL = """
import multiprocessing, os, pathlib, signal
import gymnasium
import numpy as np
from gymnasium.spaces import Box

DEATHS = pathlib.Path(__file__).with_name("deaths")


class Mortal(gymnasium.Env):
    observation_space = action_space = Box(-1, 1, (1,), np.float32)

    def __init__(self):
        if multiprocessing.parent_process() is not None and DEATHS.stat().st_size < 2:
            DEATHS.write_text(DEATHS.read_text() + ".")
            os.kill(os.getpid(), signal.SIGKILL)

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 0.0, False, False, {}


gymnasium.register("Mortal-v0", entry_point=Mortal, max_episode_steps=10)
"""


def test_a_worker_that_dies_as_it_builds_its_environments_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Building needs the most memory, and the collector's first request is what builds; two die in it."""
    (tmp_path / "my_mortal.py").write_text(MORTAL)
    (tmp_path / "deaths").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    env = envs.MultiTaskVectorEnv(
        ["gym:my_mortal:Mortal-v0"], num_envs=2, seed=0, mode="async", workers=1, max_worker_restarts=2
    )
    try:
        env.set_episode_steps(3)
        env.reset()
        assert env.worker_restarts == 2
        assert ["was killed by SIGKILL: restarted" in line for line in caplog.messages] == [True, True]
        cut = [env.step(np.zeros((2, 1)))[3].tolist() for _ in range(3)]
        assert cut == [[False, False], [False, False], [True, True]]
    finally:
        env.close()
        sys.modules.pop("my_mortal", None)
        gymnasium.registry.pop("Mortal-v0", None)


def one_worker(**settings: Any) -> envs.MultiTaskVectorEnv:
    return envs.MultiTaskVectorEnv(
        ["dmc-cartpole-balance"], num_envs=1, seed=0, mode="async", workers=1, **settings
    )


def test_an_answer_that_comes_late_is_not_taken_for_the_next_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    env = one_worker(worker_timeout=0.1, max_worker_restarts=1)
    try:
        env.reset()
        assert env._processes is not None
        pid, (pipe,) = worker(env, 0), env._processes._workers[0].parent_pipes
        os.kill(pid, signal.SIGSTOP)
        with monkeypatch.context() as impatient:
            impatient.setattr(processes, "START_SECONDS", 0.1)
            env.set_episode_steps(3)
        os.kill(pid, signal.SIGCONT)
        assert pipe.poll(120), "the late answer"
        env.reset()
        (line,) = caplog.messages
        assert "did not answer: restarted" in line and worker(env, 0) != pid
    finally:
        env.close()


def test_what_became_of_a_replacement_is_told_of_the_replacement(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    env = one_worker(max_worker_restarts=2)
    start, starts = processes._start, iter([True, False])

    def dies_once(arguments: tuple[Any, ...]) -> Any:
        if next(starts):
            raise RuntimeError("died at once")
        return start(arguments)

    try:
        env.reset()
        monkeypatch.setattr(processes, "_start", dies_once)
        os.kill(worker(env, 0), signal.SIGKILL)
        assert env.step(np.zeros((1, 1)))[4]["lost"].all()
        first, second = caplog.messages
        assert "was killed by SIGKILL: restarted" in first and "died as it started: restarted" in second
    finally:
        env.close()


def test_ctrl_c_does_not_reach_workers() -> None:
    """It goes to the whole process group; the parent decides what to do."""
    env = envs.MultiTaskVectorEnv(["dmc-cartpole-balance"], num_envs=2, seed=0, mode="async", workers=2)
    for n in range(2):
        status = Path(f"/proc/{worker(env, n)}/status").read_text()
        blocked = next(line.split()[1] for line in status.splitlines() if line.startswith("SigBlk"))
        assert int(blocked, 16) & 1 << (signal.SIGINT - 1)
    env.close()


def test_closing_ends_a_worker_that_does_not_answer() -> None:
    env = envs.MultiTaskVectorEnv(["dmc-cartpole-balance"], num_envs=2, seed=0, mode="async", workers=2)
    env.reset()
    os.kill(worker(env, 1), signal.SIGSTOP)
    env.close()
    assert not multiprocessing.active_children()


def test_bad_settings_are_one_clear_line() -> None:
    def build(**changes: Any) -> envs.MultiTaskVectorEnv:
        settings: dict[str, Any] = {"num_envs": 1, "seed": 0, "mode": "sync", **changes}
        return envs.MultiTaskVectorEnv(settings.pop("tasks", ["h1-walk"]), **settings)

    for changes, message in (
        ({"tasks": ["h1-wlak"]}, "did you mean 'h1-walk'"),
        ({"tasks": []}, "no tasks given"),
        ({"num_envs": 0}, "num_envs must be"),
        ({"workers": 0}, "workers must be"),
        ({"mode": "fork"}, "mode must be one of"),
        ({"seed": -1}, "seed must be"),
    ):
        with pytest.raises(ValueError, match=message):
            build(**changes)
    env = build()
    with pytest.raises(ValueError, match=r"actions have shape \(1, 3\), expected \(1, 19\)"):
        env.step(np.zeros((1, 3)))
    env.close()


def test_auto_picks_by_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(cores: int, num_envs: int = 2) -> str:
        monkeypatch.setattr(vector, "available_cores", lambda: cores)
        env = envs.MultiTaskVectorEnv(["dmc-cartpole-balance"], num_envs=num_envs, seed=0)
        env.close()
        return env.mode

    assert chosen(1) == chosen(8, num_envs=1) == "sync"
    assert chosen(2) == "threads"
    assert chosen(64) == "async"


def test_sizes_agree_with_the_environments() -> None:
    for task in ("h1-walk", "dmc-cartpole-swingup"):
        env = registry.make(task)
        assert registry._size(task) == (env.observation_space.shape[0], env.action_space.shape[0])  # type: ignore[index]
