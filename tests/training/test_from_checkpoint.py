"""What a checkpoint can do: evaluation episodes, with the search and without, and films."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from fit_helpers import UPDATES, fit_experiment, last, run

from ezm_pl.envs import rendering_available
from ezm_pl.replay import ReplayBuffer
from ezm_pl.spec import SpecError
from ezm_pl.training import FitResult, evaluate
from ezm_pl.training.evaluation import evaluation_envs
from ezm_pl.training.from_checkpoint import FILM_SECONDS, film, load_actor, load_replay


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FitResult]:
    """A finished run: its folder and its result."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, run(fit_experiment(), folder)


def test_evaluation_is_the_same_for_the_same_seed(finished: tuple[Path, FitResult]) -> None:
    path = last(finished[0])
    one, two, other = (evaluate(path, episodes=1, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.returns_ezm, two.returns_ezm)
    np.testing.assert_array_equal(one.returns_humanoidbench, two.returns_humanoidbench)
    assert (one.returns_ezm != other.returns_ezm).any()
    assert one.updates == UPDATES and one.env_steps >= 600


def test_evaluation_with_a_random_choice_of_the_candidates(finished: tuple[Path, FitResult]) -> None:
    path = last(finished[0])
    best, random = (
        evaluate(path, episodes=1, seed=3, settings=[f"search.choice={choice}"])
        for choice in ("best", "random")
    )
    assert (best.returns_ezm != random.returns_ezm).any()
    for setting, line in (
        ("optim.batch_size=8", "--set optim: only search.* can be set here"),
        ("search.depth=3", "--set: search.depth"),
    ):
        with pytest.raises(SpecError, match=re.escape(line)):
            evaluate(path, episodes=1, seed=3, settings=[setting])


def test_evaluation_of_the_policy_alone_is_that_of_its_mode(finished: tuple[Path, FitResult]) -> None:
    """Against one environment per task, stepped here."""
    path = last(finished[0])
    alone = evaluate(path, episodes=1, seed=3, search=False)
    assert not alone.searched
    assert not evaluate(path, episodes=1, seed=3, settings=["search.choice=policy"]).searched
    assert (alone.returns_ezm != evaluate(path, episodes=1, seed=3).returns_ezm).any()
    experiment, actor, *_ = load_actor(path)
    envs = evaluation_envs(experiment, episodes=1)
    try:
        observation, _ = envs.reset(seed=3)
        task = torch.arange(len(experiment.tasks))
        total, running = np.zeros(len(task)), np.ones(len(task), bool)
        while running.any():
            state, _ = actor.root(torch.as_tensor(observation), task)
            action = torch.tanh(actor.policy(state, task).mean)
            observation, reward, terminated, truncated, _ = envs.step(action.numpy())
            total += reward * running
            running &= ~(terminated | truncated)
    finally:
        envs.close()
    np.testing.assert_allclose(alone.returns_ezm[:, 0], total, rtol=1e-6)


@pytest.mark.skipif(not rendering_available()[0], reason=rendering_available()[1])
def test_a_film_shows_every_decision(finished: tuple[Path, FitResult]) -> None:
    path = last(finished[0])
    task = finished[1].evaluations[-1].tasks[1]
    experiment, actor, _, _ = load_actor(path)
    frames, rate = film(experiment, actor, task, 3)
    assert len(frames) == round(FILM_SECONDS * rate)
    assert all(frame.shape == frames[0].shape and frame.dtype == np.uint8 for frame in frames)
    assert (frames[0] != frames[-1]).any()
    again, _ = film(experiment, actor, task, 3)
    assert all((one == other).all() for one, other in zip(frames, again, strict=True))


def test_a_replay_of_nothing_to_sample_is_none(
    finished: tuple[Path, FitResult], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one is that was saved at the beginning of the warm-up."""
    path = last(finished[0])
    assert load_replay(fit_experiment(), path) is not None
    monkeypatch.setattr(ReplayBuffer, "ready", False)
    assert load_replay(fit_experiment(), path) is None
    assert "a task has no complete window" in caplog.text
