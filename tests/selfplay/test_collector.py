"""The collector thread: what it plays, what it stores, how it ends."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from ezm_pl.envs import MultiTaskVectorEnv, TaskSizes
from ezm_pl.replay import ReplayBuffer
from ezm_pl.selfplay import Collector, CollectorError, Pacing, WeightStore, collector
from ezm_pl.spec import Experiment, build_experiment
from ezm_pl.spec.presets import merge

TASKS = ["dmc-cartpole-balance", "dmc-reacher-easy"]
SIZES = TaskSizes(np.array([3, 3]), np.array([1, 2]), 3, 2, np.array([[1, 0], [1, 1]], np.float32))


def make_experiment(document: dict[str, Any] | None = None) -> Experiment:
    base: dict[str, Any] = {
        "name": "test",
        "preset": "smoke",
        "tasks": TASKS,
        "env": {"action_repeat": 1, "num_envs": 2, "workers": "sync"},
        "collect": {"env_steps": 2000, "random_steps": 100},
        "optim": {"total_updates": 100},
    }
    return build_experiment(merge(base, document or {}))


class FakeEnvs:
    """`[N]` rows that count; every row's episode ends after `length` decisions, with a fall at `fall_at`.

    The reward of a row's step `t` is `t + 1`; the observation is `[row, episode, t]`.
    """

    made: ClassVar[list[FakeEnvs]] = []
    worker_restarts = 0
    of = classmethod(MultiTaskVectorEnv.of.__func__)  # type: ignore[attr-defined]

    def __init__(self, tasks: tuple[str, ...], *, num_envs: int, **settings: Any) -> None:
        self.settings = settings
        self.task_ids = np.repeat(np.arange(len(tasks)), num_envs)
        self.rows = np.arange(len(self.task_ids))
        self.episode, self.at = np.zeros(len(self.rows), int), np.zeros(len(self.rows), int)
        self.actions: list[NDArray[np.float32]] = []
        self.episode_steps: list[tuple[int, int | None]] = []
        self.closed_by: str | None = None
        self.length, self.fall_at = 15, 7
        self.fail_at: int | None = None
        self.pause = 0.0
        self.building: Callable[[], object] = lambda: None
        FakeEnvs.made.append(self)
        FakeEnvs.customise(self)

    customise: Callable[[FakeEnvs], None] = staticmethod(lambda envs: None)

    def observe(self) -> NDArray[np.float32]:
        return np.stack([self.rows, self.episode, self.at], 1).astype(np.float32)

    def reset(self) -> tuple[NDArray[np.float32], dict[str, Any]]:
        return self.observe(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[Any, ...]:
        if self.fail_at is not None and len(self.actions) == self.fail_at:
            self.fail()
        time.sleep(self.pause)
        self.actions.append(action.copy())
        reward = (self.at + 1).astype(np.float32)
        self.at += 1
        ended = self.at == self.length
        final = self.observe()
        info = {
            "final_obs": final,
            "fell": self.at == self.fall_at,
            "reward_before_fall": reward,
            "diverged": np.zeros(len(self.rows), bool),
            "lost": np.zeros(len(self.rows), bool),
            "steps": np.ones(len(self.rows), np.int64),
        }
        self.episode += ended
        self.at[ended] = 0
        return self.observe(), reward, np.zeros_like(ended), ended, info

    def fail(self) -> None:
        raise ZeroDivisionError("physics broke")

    def set_episode_steps(self, steps: int | None) -> None:
        self.episode_steps.append((len(self.actions), steps))
        self.building()

    def close(self) -> None:
        self.closed_by = threading.current_thread().name


class Deciding:
    """Chooses 0.25 everywhere; counts how often it is asked."""

    calls = 0
    fail = False

    @staticmethod
    def act(model: Any, observation: Tensor, task: Tensor, generator: Any) -> Tensor:
        Deciding.calls += 1
        if Deciding.fail:
            raise FloatingPointError("search broke")
        return torch.full((len(task), 2), 0.25)


class FakeModel:
    """Keeps which weights it was given, and at which of its decisions."""

    def __init__(self) -> None:
        self.versions: list[tuple[int, int]] = []

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.versions.append((Deciding.calls, int(state["version"])))

    def draw_heads(self, generator: torch.Generator) -> None:
        pass


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "real_environments" in request.node.name:
        return
    FakeEnvs.made = []
    FakeEnvs.customise = staticmethod(lambda envs: None)
    Deciding.fail, Deciding.calls = False, 0
    monkeypatch.setattr(collector, "MultiTaskVectorEnv", FakeEnvs)


def make_collector(
    experiment: Experiment, *, sizes: TaskSizes = SIZES, model: Any = None, collected: int = 0
) -> Collector:
    """With replay, weights of version 0 and pacing as the data module makes them."""
    buffer = ReplayBuffer(
        np.repeat(np.arange(len(experiment.tasks)), experiment.env.num_envs),
        experiment.replay,
        experiment.targets,
        observation_size=sizes.obs_size,
        action_size=sizes.action_size,
    )
    collect = experiment.collect
    pacing = Pacing(experiment.optim.total_updates, collect.env_steps - collect.random_steps, 1.0)
    store = WeightStore()
    store.publish(0, {"version": torch.tensor(0)})
    return Collector(
        experiment,
        sizes,
        buffer,
        model or FakeModel(),
        Deciding.act,
        store,
        pacing,
        device=torch.device("cpu"),
        collected=collected,
    )


def until(condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    deadline = time.perf_counter() + seconds
    while not condition():
        assert time.perf_counter() < deadline, f"waited too long: {what}"
        time.sleep(0.002)


def play(found: Collector, enough: Callable[[], bool], what: str = "") -> FakeEnvs:
    """Runs until `enough`, then stops."""
    found.start()
    until(lambda: enough() or found._failure is not None, what)
    found.stop()
    found.check()
    assert FakeEnvs.made[0].closed_by == "ezm-collector"
    return FakeEnvs.made[0]


def test_warm_up_is_uniform_and_then_the_search_decides() -> None:
    """4,000 random steps per task over two rows: 2,000 decisions; padded dimensions stay zero."""
    found = make_collector(
        make_experiment({"collect": {"env_steps": 9000, "random_steps": 4000}, "replay": {"capacity": 9000}})
    )
    found.pacing.updated(50)
    envs = play(found, lambda: Deciding.calls >= 10)
    actions = np.stack(envs.actions)
    random, planned = actions[:2000], actions[2000:]
    assert (planned == 0.25).all() and len(planned) == Deciding.calls
    assert (random[:, :2, 1] == 0).all(), "task 0 has one action dimension"
    real = np.concatenate([random[:, :2, 0].ravel(), random[:, 2:].ravel()])
    assert np.abs(real).max() <= 1
    assert abs(real.mean()) < 0.03 and abs((real**2).mean() - 1 / 3) < 0.02
    counts, _ = np.histogram(real, bins=10, range=(-1, 1))
    expected = len(real) / 10
    assert ((counts - expected) ** 2 / expected).sum() < 33.7, "the 0.01% point of 9 degrees of freedom"


def test_two_seeds_warm_up_differently_and_one_seed_alike() -> None:
    played = []
    for seed in (1, 1, 2):
        FakeEnvs.made = []
        found = make_collector(make_experiment({"seed": seed}))
        envs = play(found, lambda: len(FakeEnvs.made[:1]) == 1 and len(FakeEnvs.made[0].actions) >= 50)
        played.append(np.stack(envs.actions[:50]))
    assert (played[0] == played[1]).all() and (played[0] != played[2]).any()


def test_steps_are_counted_a_task_and_warm_up_is_not_paced() -> None:
    """100 random steps per task are 50 decisions of two rows; then one update lets 19 more steps begin."""
    found = make_collector(make_experiment())
    found.start()
    until(lambda: found.warm and Deciding.calls == 1, "one decision beyond warm-up")
    time.sleep(0.1)
    assert found.control_steps.tolist() == [102, 102], "0 of 1900 is not ahead of 0 updates of 100, 2 is"
    found.pacing.updated(1)
    until(lambda: int(found.control_steps[0]) == 120, "1% of 1,900 and the step that went past it")
    time.sleep(0.1)
    assert found.control_steps.tolist() == [120, 120]
    assert len(found.buffer) == 240
    found.stop()


def test_resuming_counts_on_and_warms_up_no_more() -> None:
    found = make_collector(make_experiment(), collected=500)
    envs = play(found, lambda: Deciding.calls >= 3)
    assert int(found.control_steps[0]) == 500 + 2 * len(envs.actions)
    assert all((action == 0.25).all() for action in envs.actions)


@pytest.mark.parametrize("random_steps", [0, 4])
def test_too_short_a_warm_up_does_not_lock_collector_and_learner(random_steps: int) -> None:
    """Nothing can be sampled before a window is complete, so the collector must not wait for updates."""
    found = make_collector(make_experiment({"collect": {"random_steps": random_steps}}))
    play(found, lambda: found.warm, "enough steps for a window")


def test_resuming_without_replay_does_not_lock_collector_and_learner() -> None:
    """Collection is a little ahead, as it mostly is, and the buffer is empty."""
    found = make_collector(make_experiment(), collected=500)
    found.pacing.updated(21)
    found.pacing.collected(400)
    play(found, lambda: found.warm, "as many new steps as before the first update")
    assert int(found.control_steps[0]) >= 600 and Deciding.calls >= 50


def test_the_actor_takes_the_newest_weights_at_every_step() -> None:
    model = FakeModel()
    found = make_collector(make_experiment({"collect": {"random_steps": 0}}), model=model)
    FakeEnvs.customise = staticmethod(lambda envs: setattr(envs, "pause", 0.002))
    found.pacing.updated(50)
    found.start()
    until(lambda: Deciding.calls >= 5, "five decisions")
    found.store.publish(5, {"version": torch.tensor(5)})
    mark = Deciding.calls
    until(lambda: Deciding.calls >= mark + 5, "five more")
    found.stop()
    found.check()
    assert [version for _, version in model.versions] == [0, 5]
    assert model.versions[0][0] == 0 and model.versions[1][0] <= mark + 1


def test_episodes_report_both_returns() -> None:
    """Rewards 1 to 15, a fall at the seventh: 120 in all, 1 + ... + 7 = 28 before it."""
    found = make_collector(make_experiment())
    play(found, lambda: len(found.episodes) >= 8)
    for episode in list(found.episodes):
        assert (episode.episode_return, episode.control_steps) == (120, 15)
    assert sorted(e.task for e in list(found.episodes)[:4]) == [0, 0, 1, 1]


def test_replay_gets_each_episode_s_own_last_observation() -> None:
    """After 15 steps comes `[row, episode, 15]`, not the next episode's first observation."""
    found = make_collector(make_experiment())
    found.pacing.updated(20)
    play(found, lambda: len(found.buffer) >= 200)
    windows = found.buffer.sample(64)
    for i in range(64):
        row, episode, step = windows.observation[i, 0]
        length = min(10, 15 - step)
        assert windows.length[i] == length and not windows.terminated[i]
        assert windows.observation[i, -1].tolist() == [row, episode, step + length]
        assert windows.reward[i, 0] == step + 1


@pytest.mark.parametrize("protocol", ["ezm", "humanoidbench"])
def test_episodes_are_short_for_the_first_share_of_training(protocol: str) -> None:
    """`ezm`: 8 steps until 40% of the updates are done, then full ones. The benchmark's: always full."""
    env = {"protocol": protocol, "short_episode_steps": 8, "short_episode_share": 0.4}
    found = make_collector(make_experiment({"env": env}))
    found.start()
    for updates in (20, 39):
        found.pacing.updated(updates)
        target = 100 + 19 * updates
        until(lambda target=target: int(found.control_steps[0]) >= target, f"{target} steps")
    before = len(FakeEnvs.made[0].actions)
    short = [steps for _, steps in FakeEnvs.made[0].episode_steps]
    assert short == ([8] if protocol == "ezm" else [None])
    found.pacing.updated(40)
    until(lambda: int(found.control_steps[0]) >= 100 + 19 * 40 + 2, "a step after the change")
    found.stop()
    found.check()
    changes = FakeEnvs.made[0].episode_steps
    if protocol == "ezm":
        assert [steps for _, steps in changes] == [8, None]
        assert changes[1][0] >= before
    else:
        assert changes == [(0, None)]


def test_short_episodes_also_end_where_the_learner_gets_there_while_environments_are_built() -> None:
    found = make_collector(make_experiment({"env": {"short_episode_steps": 8, "short_episode_share": 0.4}}))
    FakeEnvs.customise = staticmethod(lambda e: setattr(e, "building", lambda: found.pacing.updated(40)))
    envs = play(found, lambda: found.warm)
    assert [steps for _, steps in envs.episode_steps] == [8, None]


@pytest.mark.parametrize("where", ["environment", "building", "search", "set-up"])
def test_a_failure_surfaces_in_the_main_thread_with_its_cause(where: str) -> None:
    def customise(envs: FakeEnvs) -> None:
        if where == "environment":
            envs.fail_at = 60
        if where == "building":
            envs.building = envs.fail
        if where == "set-up":
            raise ImportError("no such robot")

    FakeEnvs.customise = staticmethod(customise)
    Deciding.fail = where == "search"
    found = make_collector(make_experiment())
    found.pacing.updated(50)
    found.check()
    found.start()
    found._thread.join(20)
    assert not found._thread.is_alive()
    kind = {"search": FloatingPointError, "set-up": ImportError}.get(where, ZeroDivisionError)
    with pytest.raises(CollectorError, match=r"self-play failed: .*(broke|no such robot)") as caught:
        found.check()
    assert isinstance(caught.value.__cause__, kind)
    assert caught.value.__cause__.__traceback__ is not None
    if where != "set-up":
        assert FakeEnvs.made[0].closed_by == "ezm-collector", "environments are closed all the same"
    start = time.perf_counter()
    found.pacing.wait_to_learn(30)  # nobody is left to wait for
    assert time.perf_counter() - start < 5
    found.stop()


def test_stopping_ends_a_waiting_collector_at_once() -> None:
    threads = set(threading.enumerate())
    found = make_collector(make_experiment())
    found.start()
    until(lambda: found.warm and Deciding.calls == 1, "the collector waits for the learner")
    start = time.perf_counter()
    found.stop()
    assert time.perf_counter() - start < 2
    assert set(threading.enumerate()) == threads
    assert FakeEnvs.made[0].closed_by == "ezm-collector"
    found.stop()  # a second time does no harm


def test_stopping_before_starting() -> None:
    make_collector(make_experiment()).stop()


@pytest.mark.parametrize("mode", ["sync", "threads", "async"])
def test_real_environments_leave_no_thread_and_no_process(mode: str) -> None:
    """With dm_control and a network that is never asked (warm-up only)."""
    from ezm_pl.envs import sizes

    threads, children = set(threading.enumerate()), multiprocessing.active_children()
    experiment = make_experiment(
        {"env": {"workers": mode}, "collect": {"env_steps": 90_000, "random_steps": 80_000}}
    )
    found = make_collector(experiment, sizes=sizes(experiment.tasks))
    found.start()
    until(lambda: int(found.control_steps.min()) >= 40 or found._failure is not None, "some steps", 120)
    during = psutil.Process().children(recursive=True)
    found.stop()
    found.check()
    assert found.buffer.ready
    assert set(threading.enumerate()) == threads
    assert multiprocessing.active_children() == children
    if mode == "async":
        left = [p for p in psutil.Process().children(recursive=True) if p.status() != "zombie"]
        assert len(left) < len(during), "the workers are gone; multiprocessing's own server stays"
