"""The diagnostics: pure parts on cases worked out by hand, the judge on real simulators and a real run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fit_helpers import fit_experiment, run
from PIL import Image
from rich.console import Console
from scipy.stats import spearmanr

from ezm_pl.spec import SpecError
from ezm_pl.tracking.results.diagnose import diagnose_run
from ezm_pl.training.diagnostics import Diagnostics, diagnose
from ezm_pl.training.diagnostics.dynamics import action_effects, compare_effects
from ezm_pl.training.diagnostics.episodes import FOLLOWING, ROWS, Visited, horizon, look_back, play
from ezm_pl.training.diagnostics.predictions import embedding_map, predictions
from ezm_pl.training.diagnostics.simulators import Simulators
from ezm_pl.training.diagnostics.values import monte_carlo_returns, rank_actions, rank_correlation, value_fit


def test_effects_of_a_perfect_a_shrunken_and_a_blind_model() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(6, 8, 16, generator=generator)
    offset = torch.randn(6, 1, 16, generator=generator)
    perfect = compare_effects(real + offset, real)
    assert perfect.correlation == pytest.approx(1, abs=1e-5)
    assert perfect.size == pytest.approx(1, abs=1e-5)
    shrunken = compare_effects(0.1 * real, real)
    assert (shrunken.correlation, shrunken.size) == (pytest.approx(1, abs=1e-5), pytest.approx(0.1, abs=1e-5))
    blind = compare_effects(torch.randn(6, 8, 16, generator=generator), real)
    assert abs(blind.correlation) < 0.15
    assert compare_effects(offset.expand_as(real), real).correlation == 0, "it does not see the action"
    value = real[..., -1:]
    assert compare_effects(-value, value).correlation == pytest.approx(-1), "values: of one number each"


def test_rank_correlation_is_spearmans_over_the_rows_that_have_one() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(2, 5, 7)).round(1)
    second[4] = 3.0
    expected = np.mean([spearmanr(a, b).statistic for a, b in zip(first[:4], second[:4], strict=True)])
    assert rank_correlation(first, second) == pytest.approx(expected)
    assert np.isnan(rank_correlation(first, np.zeros_like(first)))


def test_ranking_of_a_q_that_knows_and_one_that_does_not() -> None:
    generator = np.random.default_rng(1)
    quality = generator.normal(size=(40, 8))
    quiet = rank_actions(quality, quality[..., None] + 0.01 * generator.normal(size=(40, 8, 4)))
    assert quiet.q > 0.98 and quiet.ceiling > 0.98
    assert quiet.spread == pytest.approx(quality.std(-1).mean(), rel=0.05)
    assert rank_actions(-quality, quality[..., None].repeat(4, -1)).q == pytest.approx(-1)
    noise = rank_actions(quality, generator.normal(size=(40, 8, 4)))
    assert abs(noise.q) < 0.15 and abs(noise.ceiling) < 0.15


def test_looking_back_over_episodes() -> None:
    rewards = np.ones((5, 2))
    last = np.array([[0, 0], [1, 0], [0, 0], [0, 0], [1, 1]], bool)
    terminated = np.array([[0, 0], [1, 0], [0, 0], [0, 0], [0, 0]], bool)
    returns, following, complete = look_back(rewards, last, terminated, 0.5, far=3)
    np.testing.assert_array_equal(returns[:, 0], [1.5, 1, 1.75, 1.5, 1])
    np.testing.assert_array_equal(returns[:, 1], [1.9375, 1.875, 1.75, 1.5, 1])
    np.testing.assert_array_equal(following.T, [[1, 0, 2, 1, 0], [4, 3, 2, 1, 0]])
    np.testing.assert_array_equal(complete.T, [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0]])
    assert 0.97 ** horizon(0.97) <= 0.05 < 0.97 ** (horizon(0.97) - 1)


def visited(following: list[int], upright: list[bool]) -> Visited:
    size = len(following)
    return Visited(
        observation=torch.zeros(size, 1),
        action=torch.zeros(size, 1),
        returns=np.zeros(size),
        complete=np.ones(size, bool),
        following=np.array(following),
        upright=np.array(upright),
        states=[],
    )


def test_upright_states_are_picked_that_enough_decisions_follow() -> None:
    generator = np.random.default_rng(0)
    found = visited([9, 9, 4, 9, 9], [True, False, True, True, True])
    assert found.pick(10, generator).tolist() == [0, 3, 4]
    assert len(found.pick(2, generator)) == 2
    assert visited([9, 4, 9], [False, True, False]).pick(10, generator).tolist() == [0, 2], "none is upright"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run of six updates, with its replay beside it."""
    folder = tmp_path_factory.mktemp("mlruns") / "runs" / "trained"
    # A discount that falls within a few decisions keeps episodes and rollouts short.
    run(fit_experiment({"targets": {"discount": 0.6}}), folder)
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def diagnostics(checkpoint: Path) -> Diagnostics:
    return Diagnostics(checkpoint, states=3, actions=3, rollouts=2, seed=0)


def test_simulators_go_back_to_a_state_and_on_from_it_alike(diagnostics: Diagnostics) -> None:
    networks = diagnostics.networks
    action = torch.full((2, networks.sizes.action_size), 0.5)
    with Simulators(networks, 1, 2, protocol="ezm", seed=3) as simulators:
        for row in range(2):
            simulators.reset(row)
        assert not torch.equal(*simulators.observation()), "two episodes"
        state = simulators.state(0)
        simulators.restore([state, state])
        before = simulators.observation()
        assert torch.equal(*before)
        # 25 control steps per decision: the 1,000 of the time limit are used up by each round.
        for _ in range(2):
            paid = [simulators.step(action) for _ in range(40)]
            assert paid[-1][2].all() and not paid[-2][2].any(), "the time limit begins anew"
            assert np.array_equal(*np.array([reward for reward, _, _ in paid]).T)
            assert simulators.step(action)[0].tolist() == [0, 0], "what has ended stands still"
            simulators.restore([state, state])
            assert torch.equal(simulators.observation(), before)


def test_equal_candidates_have_equal_effects_and_returns(diagnostics: Diagnostics) -> None:
    networks = diagnostics.networks
    played = play(networks, 0, seed=1, decisions=10)
    assert len(played.states) == len(played.returns) == len(played.action)
    assert len(played.states) % ROWS == 0
    assert played.upright.all(), "dm_control has no humanoid here"
    picked = played.pick(2, np.random.default_rng(0))
    assert (played.following[picked] >= FOLLOWING).all()
    actions = torch.zeros(2, 3, networks.sizes.action_size)
    actions[:, 2, 0] = 0.9
    returns = monte_carlo_returns(networks, 0, played, picked, actions, rollouts=2, seed=0)
    assert returns.shape == (2, 3, 2)
    np.testing.assert_array_equal(returns[:, 0], returns[:, 1])
    assert (returns[:, 0] != returns[:, 2]).all()
    assert (returns[..., 0] != returns[..., 1]).all(), "rollouts differ by their noise"
    same = action_effects(networks, 0, played, picked, actions[:, :2], seed=0)
    assert same[1].latent.correlation == pytest.approx(0, abs=0.05)
    for effects in action_effects(networks, 0, played, picked, actions, seed=0).values():
        assert -1 <= effects.latent.correlation <= 1 and effects.latent.size > 0
        assert -1 <= effects.value.correlation <= 1


def test_value_fit_of_an_actor_that_knows_the_returns(diagnostics: Diagnostics) -> None:
    networks = diagnostics.networks
    played = play(networks, 0, seed=2, decisions=10)
    returns = played.returns[played.complete]

    class Knows:
        def root(self, observation: torch.Tensor, task: torch.Tensor) -> Any:
            return observation, torch.as_tensor(0.5 * returns + 1)

    fit = value_fit(dataclasses.replace(networks, actor=Knows()), 0, played, scale=2.0)  # type: ignore[arg-type]
    assert fit.states == len(returns) > 20
    assert fit.correlation == pytest.approx(1)
    assert fit.bias == pytest.approx(2)
    assert value_fit(networks, 0, played, scale=None).bias is None


class Oracle:
    """Knows of every state what the episode pays from there on, and `wrong` more of each reward."""

    def __init__(self, played: Visited, discount: float, wrong: float) -> None:
        self.played, self.discount, self.wrong = played, discount, wrong

    def root(self, observation: torch.Tensor, task: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        same = (observation.unsqueeze(1) == self.played.observation).all(-1)
        at = same.float().argmax(1)
        return at.unsqueeze(1), torch.as_tensor(self.played.returns)[at]

    def step(self, state: torch.Tensor, action: torch.Tensor, task: torch.Tensor) -> tuple[torch.Tensor, ...]:
        at, returns = state[:, 0], torch.as_tensor(self.played.returns)
        assert torch.equal(action, self.played.action[at]), "the actions that were taken"
        paid = returns[at] - self.discount * returns[at + 1]
        return state + 1, paid + self.wrong, returns[at + 1]

    def policy(self, state: torch.Tensor, task: torch.Tensor) -> Any:
        return SimpleNamespace(mode=torch.zeros(len(state), 2))


def planner(choice: int, value: torch.Tensor) -> Any:
    """Candidates at distances 0, 1 and 2 from the mode; the search chooses one and finds `value`."""

    def plan(model: Any, seen: torch.Tensor, tasks: torch.Tensor, generator: torch.Generator) -> Any:
        actions = torch.tensor([[0.0, 0.0], [0.0, 1.0], [2.0, 0.0]]).expand(len(seen), 3, 2)
        return SimpleNamespace(actions=actions, action=actions[:, choice], value=value.expand(len(seen)))

    return plan


def test_predictions_of_a_model_that_knows_what_is_paid(diagnostics: Diagnostics) -> None:
    """Errors of 0 and of the 0.5 that it adds to rewards, in the task's units; the search as it was made."""
    networks = diagnostics.networks
    played = play(networks, 0, seed=4, decisions=15)
    oracle = Oracle(played, networks.experiment.targets.discount, wrong=0.5)
    known = dataclasses.replace(networks, actor=oracle, planner=planner(0, torch.tensor(3.0)))  # type: ignore[arg-type]
    found = predictions(known, 0, played, units=1.0, scale=None, seed=0)
    assert found is not None and 20 < len(found.returns) <= 256
    np.testing.assert_allclose(found.reward_error, [0.5] * FOLLOWING, atol=1e-5)
    np.testing.assert_allclose(found.value_error, [0] * (FOLLOWING + 1), atol=1e-5)
    assert found.values == pytest.approx(found.returns)
    assert (found.choice_distance, found.mode_chosen) == (0, 1)
    assert found.search_bias == pytest.approx(3 - np.mean(found.returns))
    assert (found.beyond_support, found.beyond_scaled, found.at_floor) == (0, None, 0)
    far = dataclasses.replace(known, planner=planner(2, torch.tensor(3.0)))  # type: ignore[arg-type]
    other = predictions(far, 0, played, units=2.0, scale=1e-4, seed=0)
    assert other is not None and other.beyond_scaled == 1
    assert (other.choice_distance, other.mode_chosen) == (pytest.approx(2.0), 0)
    assert other.search_bias == pytest.approx(6 - np.mean(other.returns)), "in units of the task's rewards"
    none = dataclasses.replace(played, complete=np.zeros(len(played.complete), bool))
    assert predictions(known, 0, none, units=1.0, scale=None, seed=0) is None


def test_the_map_of_embeddings_keeps_their_distances(diagnostics: Diagnostics) -> None:
    """Two tasks lie on one component: their distance there is that of their embeddings."""
    at, share = embedding_map(diagnostics.networks)
    table = diagnostics.networks.model.capped_embedding().detach()
    assert at.shape == (2, 2) and share == pytest.approx(1)
    assert np.linalg.norm(at[0] - at[1]) == pytest.approx(float((table[0] - table[1]).norm()), rel=1e-5)


def test_a_run_is_diagnosed(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "diagnosis.json"
    console = Console(record=True, width=140, quiet=True)
    figure = tmp_path / "figure.png"
    diagnose_run(
        str(checkpoint),
        states=3,
        actions=3,
        rollouts=2,
        seed=0,
        output=output,
        figure=figure,
        console=console,
    )
    with Image.open(figure) as drawn:
        assert drawn.width > 1000
    document = json.loads(output.read_text())
    assert document["updates"] == 6
    experiment = fit_experiment()
    assert [task["task"] for task in document["tasks"]] == list(experiment.tasks)
    for task, actions in zip(document["tasks"], (1, 2), strict=True):
        assert (task["states"], task["actions"], task["rollouts"]) == (3, 3, 2)
        assert len(task["std_of_bound"]) == actions
        assert all(0 < share < 1 for share in task["std_of_bound"])
        assert 0 < task["effective_samples"] < 1.001
        assert task["gap_statistics"] is not None and task["gap_target"] is not None
        assert not task["upright_states"] and task["upright_in_replay"] is None


def test_without_replay_what_needs_one_is_left_out(checkpoint: Path, tmp_path: Path) -> None:
    alone = tmp_path / "checkpoints" / "best.ckpt"
    alone.parent.mkdir()
    alone.write_bytes(checkpoint.read_bytes())
    found = Diagnostics(alone, states=2, actions=2, rollouts=2, seed=0)
    assert found.buffer is None
    diagnosis = next(found.tasks())
    assert diagnosis.effective_samples is None and diagnosis.gap_statistics is None
    assert np.isfinite(diagnosis.effect_1)


def test_episodes_that_are_too_short_are_one_line(
    diagnostics: Diagnostics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnose, "play", lambda *_, **__: visited([FOLLOWING - 1] * 2, [True, True]))
    with pytest.raises(SpecError, match=f"dmc-.*: no episode lasts {FOLLOWING + 1} decisions"):
        next(diagnostics.tasks())
