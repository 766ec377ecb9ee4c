"""What becomes of self-play where a worker process dies, and where physics diverges: real environments."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ezm_pl.envs import MultiTaskVectorEnv, sizes
from ezm_pl.envs.robots.humanoid import HumanoidEnv
from ezm_pl.replay import ReplayBuffer
from ezm_pl.search import act_greedy
from ezm_pl.selfplay import Collector, CollectorError, Pacing, WeightStore, collector
from ezm_pl.spec import Experiment, build_experiment
from ezm_pl.spec.presets import merge


def make_collector(tasks: list[str], document: dict[str, Any]) -> Collector:
    """One that only warms up, so that no network is asked."""
    base: dict[str, Any] = {
        "name": "test",
        "preset": "smoke",
        "tasks": tasks,
        "env": {"action_repeat": 1, "num_envs": 2},
        "collect": {"env_steps": 900_000, "random_steps": 800_000},
    }
    experiment: Experiment = build_experiment(merge(base, document))
    shapes = sizes(experiment.tasks)
    buffer = ReplayBuffer(
        np.repeat(np.arange(len(tasks)), 2),
        experiment.replay.model_copy(update={"capacity": 4000, "block_size": 25}),
        experiment.targets,
        observation_size=shapes.obs_size,
        action_size=shapes.action_size,
    )
    pacing = Pacing(100, 100_000, 1.0)
    return Collector(
        experiment,
        shapes,
        buffer,
        torch.nn.Linear(1, 1),  # type: ignore[arg-type]
        act_greedy,
        WeightStore(),
        pacing,
        device=torch.device("cpu"),
    )


def until(condition: Callable[[], bool], what: str, seconds: float = 150) -> None:
    deadline = time.perf_counter() + seconds
    while not condition():
        assert time.perf_counter() < deadline, f"waited too long: {what}"
        time.sleep(0.005)


def check_blocks(buffer: ReplayBuffer) -> None:
    """Every stored number is finite, and every position that can be sampled has a positive priority."""
    sampled = buffer.sample(64)
    assert np.isfinite(sampled.observation).all() and np.isfinite(sampled.reward).all()
    assert (np.asarray(sampled.weight) > 0).all()
    blocks = buffer.blocks
    written = blocks.transition_id >= 0
    assert np.isfinite(blocks.observation[:, :, : blocks.block_size][written]).all()
    assert np.isfinite(blocks.reward[:, :, : blocks.block_size][written]).all()


def workers() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid is not None]


def test_killed_workers_are_replaced_while_the_collector_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    found = make_collector(
        ["dmc-cartpole-balance", "dmc-reacher-easy"],
        {"env": {"workers": "async", "max_worker_restarts": 3}},
    )
    found.start()
    for kill in range(1, 4):
        until(lambda kill=kill: found.control_steps.min() >= 60 * kill, "some steps")  # type: ignore[misc]
        until(lambda: len(workers()) > 0, "a worker")
        os.kill(workers()[kill % len(workers())], signal.SIGKILL)  # on one core there is one
        until(lambda kill=kill: found.worker_restarts == kill, "the restart")  # type: ignore[misc]
    steps = int(found.control_steps.min())
    until(lambda: found.control_steps.min() >= steps + 60, "play goes on")
    check_blocks(found.buffer)
    os.kill(workers()[0], signal.SIGKILL)
    until(lambda: found._failure is not None, "the limit")
    found.stop()
    assert sum("was killed by SIGKILL: restarted" in record.getMessage() for record in caplog.records) == 3
    with pytest.raises(CollectorError, match="restarted 3 times already, the limit") as error:
        found.check()
    assert "\n" not in str(error.value)
    check_blocks(found.buffer)
    # A cut episode has no return: whatever is reported has run its full length.
    assert all(episode.control_steps in (100, 1000) for episode in found.episodes)
    assert multiprocessing.active_children() == []


def test_physics_that_diverges_cuts_the_episode_in_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    class Exploding(MultiTaskVectorEnv):
        """Row 1's state is blown up before its 31st step."""

        count = 0

        def step(self, actions: NDArray[Any]) -> Any:
            self.count += 1
            if self.count == 31:
                env = self._groups[0]._envs[1].unwrapped
                assert isinstance(env, HumanoidEnv)
                env.data.qvel[8] = 1e12
            with np.errstate(all="ignore"):
                return super().step(actions)

    monkeypatch.setattr(collector, "MultiTaskVectorEnv", Exploding)
    found = make_collector(["h1-walk"], {"env": {"workers": "sync"}})
    found.start()
    until(lambda: found.control_steps.min() >= 140 or found._failure is not None, "some steps")
    found.stop()
    found.check()
    assert found.diverged == 1
    assert [episode.control_steps for episode in found.episodes] == [31]
    check_blocks(found.buffer)
    # The episode ends at position 5 of its second block; the next one starts behind its last observation.
    lengths = found.buffer.blocks.length[0].tolist()
    assert any(block[:8] == [6, 5, 4, 3, 2, 1, 0, 10] for block in lengths)
