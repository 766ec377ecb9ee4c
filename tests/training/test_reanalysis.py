"""Targets from a search, with a model and a planner whose every number is known."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from training_helpers import make_batch, make_experiment, make_model, make_sizes

from ezm_pl.search import Planner, SearchResult
from ezm_pl.spec import Experiment
from ezm_pl.training.batch import Batch, Targets
from ezm_pl.training.reanalysis import reanalyse
from ezm_pl.training.value_expansion import expanded_values
from ezm_pl.world_model import InferenceModel, SquashedGaussian

SIZES = make_sizes([1, 1], [2, 1])


class Table:
    """An observation `[x]` is worth `100 x` (+ 1000 for task 1).

    The policy's action is 0.5; it pays `x` and leads to `x + 1`.
    """

    def root(self, observation: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
        return observation, 100 * observation[:, 0] + 1000 * task

    def policy(self, state: Tensor, task: Tensor) -> SquashedGaussian:
        one = torch.ones(len(state), 1)
        return SquashedGaussian(one * 0.5493061, one * -20, one)

    def step(self, state: Tensor, action: Tensor, task: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        following = state + 2 * action
        return following, state[:, 0], self.root(following, task)[1]


@dataclass
class Known:
    """A planner that finds the value `x + 7` and the candidates `(x, 1)` and `(0.5, -1)`, choosing the first.

    `x` may lie beyond 1; `seen` keeps what it was asked to search.
    """

    random_choice: bool = False
    seen: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __call__(
        self, model: Any, observation: Tensor, task: Tensor, generator: torch.Generator, roots: int
    ) -> SearchResult:
        _, root_value = model.root(observation, task)
        self.seen.append((observation[:roots], task[:roots]))
        x = observation[:roots, 0]
        one = torch.ones_like(x)
        actions = torch.stack([torch.stack([x, one], -1), torch.stack([0.5 * one, -one], -1)], 1)
        weights = torch.tensor([0.25, 0.75]).expand(len(x), 2)
        best = torch.zeros(len(x), dtype=torch.long)
        return SearchResult(actions, best, x, weights, best, actions[:, 0], x + 7, root_value)


def known_targets(
    batch: Batch, planner: Known | None = None, updates: int = 0, **targets: Any
) -> tuple[Targets, Experiment]:
    settings = {"unroll_steps": 2, "td_steps": 2, "discount": 0.5, "policy": "best", "max_action": 0.98}
    experiment = make_experiment({"targets": settings | targets})
    found = reanalyse(
        batch,
        Table(),
        planner or Known(),
        experiment,
        updates,
        torch.Generator(),  # type: ignore[arg-type]
    )
    return found, experiment


def two_rows() -> Batch:
    """Row 0 (task 0): x = 0..4, rewards 1, 2, 4, 8. Row 1 (task 1): three steps, then a time limit."""
    return Batch(
        task=torch.tensor([0, 1]),
        observation=torch.tensor([[0.0, 1, 2, 3, 4], [5.0, 6, 7, 8, 8]]).unsqueeze(-1),
        action=torch.zeros(2, 2, 2),
        reward=torch.tensor([[1.0, 2, 4, 8], [1.0, 2, 4, 0]]),
        length=torch.tensor([4, 3]),
        terminated=torch.tensor([False, False]),
        return_scale=torch.tensor([2.0, 4.0]),
        weight=torch.ones(2),
        age=torch.tensor([10, 9]),
        replay_index=torch.zeros(2, dtype=torch.long),
        transition_id=torch.zeros(2, dtype=torch.long),
    )


# Row 0: 1 + 2/2 + 200/4, 2 + 4/2 + 300/4, 4 + 8/2 + 400/4.
# Row 1: 1 + 2/2 + 1700/4, 2 + 4/2 + 1800/4, and one step left of the third: 4 + 1800/2.
TD_VALUES = [[52.0, 79.0, 108.0], [427.0, 454.0, 904.0]]


def test_every_position_is_searched_and_bootstraps_from_n_steps_on() -> None:
    planner = Known()
    targets, _ = known_targets(two_rows(), planner)
    (observation, task), *more = planner.seen
    assert not more
    assert observation[:, 0].tolist() == [0, 1, 2, 5, 6, 7]
    assert task.tolist() == [0, 0, 0, 1, 1, 1]
    assert targets.value.tolist() == TD_VALUES
    assert targets.reward.tolist() == [[1, 2], [1, 2]]
    assert targets.policy_mask.tolist() == [[1, 1, 1], [1, 1, 1]]


def test_a_termination_does_not_bootstrap() -> None:
    """Row 1 ends in a termination: its second and third targets are 2 + 4/2 and 4."""
    batch = two_rows()._replace(terminated=torch.tensor([False, True]))
    assert known_targets(batch)[0].value.tolist() == [TD_VALUES[0], [427.0, 4.0, 4.0]]


def test_search_values_replace_returns_only_late_and_only_of_old_positions() -> None:
    """From update 100 on, for ages of at least 10: row 0 then takes the search's x + 7."""
    late = {"search_value_after": 100, "search_value_age": 10}
    assert known_targets(two_rows(), updates=99, **late)[0].value.tolist() == TD_VALUES
    assert known_targets(two_rows(), updates=100, **late)[0].value.tolist() == [[7, 8, 9], TD_VALUES[1]]


def test_search_values_stay_out_of_what_lies_past_the_end() -> None:
    """Row 0 terminates after one step: only its first value is searched, the others are zero."""
    batch = two_rows()
    batch = batch._replace(
        length=torch.tensor([1, 3]),
        terminated=torch.tensor([True, False]),
        reward=torch.tensor([[1.0, 0, 0, 0], [1.0, 2, 4, 0]]),
    )
    late = {"search_value_after": 0, "search_value_age": 10}
    assert known_targets(batch, **late)[0].value.tolist() == [[7, 0, 0], TD_VALUES[1]]


def test_expanded_values_are_the_policy_s_own_whatever_was_taken_and_searched() -> None:
    """Two steps from x: x + (x + 1) / 2 + 100 (x + 2) / 4, for task 1 1000 / 4 more."""
    settings = {"search_value_after": 0, "search_value_age": 0, "expansion_steps": 2}
    expected = [[50.5, 77, 103.5], [433, 459.5, 486]]
    found = known_targets(two_rows(), **settings)[0].value
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-4)
    other = two_rows()
    other = other._replace(reward=other.reward + 1, action=other.action + 1)
    assert torch.equal(known_targets(other, **settings)[0].value, found)
    early = settings | {"search_value_after": 10}
    assert known_targets(two_rows(), updates=9, **early)[0].value.tolist() == TD_VALUES


def test_a_window_that_terminates_keeps_its_returns() -> None:
    batch = two_rows()._replace(terminated=torch.tensor([False, True]))
    found = known_targets(batch, expansion_steps=2, search_value_after=0)[0].value
    assert found[1].tolist() == [427.0, 4.0, 4.0]
    assert found[0, 0].item() == pytest.approx(50.5)


def test_expanded_values_use_the_network_s_policy_rewards_and_value() -> None:
    """With a real network, against its parts one by one."""
    sizes = make_sizes([4, 3], [2, 1])
    experiment = make_experiment({"model": {"min_log_std": -2.0, "max_log_std": 0.0}})
    model = make_model(experiment, sizes).eval()
    target = InferenceModel(experiment.model, sizes.obs_size, torch.as_tensor(sizes.action_mask))
    target.load(model)
    observation, task = make_batch(experiment, sizes, 6).observation[:, 0], torch.tensor([0, 1] * 3)
    found = expanded_values(target, observation, task, 3, 0.9, torch.Generator().manual_seed(3))
    noise, expected = torch.Generator().manual_seed(3), torch.zeros(6)
    with torch.no_grad():
        embedded = model.embed(task)
        latent = model.encode(observation, embedded)
        for step in range(3):
            policy = model.policy(model.features(latent, embedded), task)
            action = policy.action(torch.randn(6, 2, generator=noise))
            reward = model.scalar.decode(model.reward_logits(latent, action, embedded))
            latent = model.next_latent(latent, action, embedded)
            expected += 0.9**step * reward
        logits = model.value_logits(model.features(latent, embedded))[list(target.heads)]
        expected += 0.9**3 * model.scalar.decode(logits).amin(0).clamp(min=0)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert found.std() > 1e-3


def test_return_scaling_divides_rewards_by_their_task_s_scale() -> None:
    """Row 0 by 2, row 1 by 4; the network's values are in scaled units already."""
    targets, _ = known_targets(two_rows(), return_scaling=True)
    assert targets.reward.tolist() == [[0.5, 1], [0.25, 0.5]]
    assert targets.value.tolist() == [[51, 77, 104], [425.5, 451, 901]]


def test_best_is_the_chosen_candidate_alone_and_clamped() -> None:
    """x = 0, 1, 2, 5, ...: all but the first lie beyond the largest action, 0.98."""
    targets, _ = known_targets(two_rows())
    assert targets.action.shape == (2, 3, 1, 2)
    torch.testing.assert_close(targets.action[..., 0, 0], torch.tensor([[0.0, 0.98, 0.98], [0.98] * 3]))
    torch.testing.assert_close(targets.action[..., 0, 1], torch.full((2, 3), 0.98))
    assert targets.action_weight.tolist() == [[[1.0]] * 3] * 2


def test_improved_is_all_candidates_with_the_search_s_weights() -> None:
    targets, _ = known_targets(two_rows(), policy="improved", max_action=0.9)
    assert targets.action.shape == (2, 3, 2, 2)
    torch.testing.assert_close(targets.action[0, 1], torch.tensor([[0.9, 0.9], [0.5, -0.9]]))
    assert targets.action_weight[1, 2].tolist() == [0.25, 0.75]


def test_the_random_check_takes_the_planner_s_own_weights() -> None:
    """The planner puts all weight on its random candidate, also under `best`."""
    targets, _ = known_targets(two_rows(), Known(random_choice=True))
    assert targets.action_weight[0, 0].tolist() == [0.25, 0.75]


@pytest.mark.parametrize("policy", ["best", "improved"])
def test_nothing_of_a_reanalysis_has_a_gradient(policy: str) -> None:
    """With a real network and search, under enabled gradients."""
    sizes = make_sizes([4, 3], [2, 1])
    experiment = make_experiment({"targets": {"policy": policy}})
    target = InferenceModel(experiment.model, sizes.obs_size, torch.as_tensor(sizes.action_mask))
    target.load(make_model(experiment, sizes))
    batch = make_batch(experiment, sizes, 6)
    planner = Planner(experiment.search, experiment.targets.discount, sizes.action_size)
    found = reanalyse(batch, target, planner, experiment, 0, torch.Generator().manual_seed(0))
    for name in Targets._fields:
        tensor = getattr(found, name)
        assert not tensor.requires_grad, name
        assert torch.isfinite(tensor).all(), name
    assert not any(p.requires_grad for p in target.parameters())
    torch.testing.assert_close(found.action_weight.sum(-1), torch.ones(6, 6))
    padded = torch.as_tensor(sizes.action_mask)[batch.task].view(6, 1, 1, 2) == 0
    assert (found.action * padded == 0).all(), "padded dimensions hold no action"


def test_only_some_positions_are_searched_where_asked_for() -> None:
    """Every second of three: two searches per window, fresh TD values at all three positions."""
    every, planner = known_targets(two_rows())[0], Known()
    some, _ = known_targets(two_rows(), planner, search_every=2)
    ((observation, task),) = planner.seen
    assert observation.flatten().tolist() == [0, 2, 5, 7] and task.tolist() == [0, 0, 1, 1]
    assert torch.equal(some.action, every.action[:, [0, 2]])
    assert torch.equal(some.action_weight, every.action_weight[:, [0, 2]])
    assert torch.equal(some.value, every.value)


def test_search_values_are_used_where_there_was_a_search() -> None:
    settings = {"search_value_after": 0, "search_value_age": 10}
    every, _ = known_targets(two_rows(), **settings)
    some, _ = known_targets(two_rows(), search_every=2, **settings)
    plain, _ = known_targets(two_rows())
    assert torch.equal(some.value[:, [0, 2]], every.value[:, [0, 2]])
    assert torch.equal(some.value[:, 1], plain.value[:, 1])
    assert not torch.equal(every.value[:, 1], plain.value[:, 1])


def test_without_reanalysis_the_actions_that_were_taken_are_the_targets() -> None:
    """No search at all: values as ever, and a policy target at each position that has an action."""
    planner, taken = Known(), torch.tensor([[[0.1, 0.2], [0.3, 1.0]], [[-0.4, 0.0], [0.5, 0.6]]])
    settings = {"reanalyse": False, "search_value_after": 0, "search_value_age": 0, "search_every": 2}
    targets, experiment = known_targets(two_rows()._replace(action=taken), planner, **settings)
    assert planner.seen == []
    assert targets.value.tolist() == TD_VALUES
    torch.testing.assert_close(targets.action, taken.clamp(max=0.98).unsqueeze(2))
    assert targets.action_weight.tolist() == [[[1.0], [1.0]]] * 2
    assert targets.policy_mask[:, experiment.targets.policy_positions].shape == (2, 2)
