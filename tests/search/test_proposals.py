"""Candidate actions: how many from where, masks, priors; the planner that the spec configures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from search_models import SmoothModel, TabularModel
from torch import Tensor

from ezm_pl.search import DiscreteProposal, GaussianProposal, Planner
from ezm_pl.spec.experiment import SearchSpec
from ezm_pl.world_model import MAX_ACTION, SquashedGaussian


@dataclass
class FixedPolicy:
    """The same Gaussian in every state; task 1 has one dimension less."""

    mean: tuple[float, ...] = (0.5, -0.2, 0.0)
    log_std: tuple[float, ...] = (-2.0, -3.0, -2.5)

    def policy(self, state: Tensor, task: Tensor) -> SquashedGaussian:
        mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])[task]
        return SquashedGaussian(torch.tensor(self.mean) * mask, torch.tensor(self.log_std) * mask, mask)


def published() -> GaussianProposal:
    return GaussianProposal.mixed(
        action_size=3, root=16, interior=2, policy_share=0.25, exploration_std_scale=3.0
    )


def test_published_scales() -> None:
    proposal = published()
    assert proposal.root_scales == (1.0,) * 4 + (3.0,) * 12
    assert proposal.interior_scales == (1.0, 3.0)
    assert GaussianProposal.mixed(3, 8, 4, 0.5, 2.0).root_scales == (1.0,) * 4 + (2.0,) * 4
    assert GaussianProposal.mixed(3, 8, 4, 0.5, 2.0).interior_scales == (1.0, 2.0, 1.0, 2.0)
    assert GaussianProposal.mixed(3, 8, 1, 1.0, 2.0).root_scales == (1.0,) * 8
    assert GaussianProposal.mixed(3, 8, 1, 0.0, 2.0).root_scales == (2.0,) * 8


def test_statistics_of_root_candidates() -> None:
    """Before tanh: mean mu, std sigma for the first 4 of 16, 3 sigma for the other 12; equal priors."""
    model, batch = FixedPolicy(), 4000
    state, task = torch.zeros(batch, 1), torch.zeros(batch, dtype=torch.long)
    actions, prior = published().root(model, state, task, torch.Generator().manual_seed(0))
    assert actions.shape == (batch, 16, 3)
    assert prior is None
    u = torch.atanh(actions)
    expected = torch.tensor(model.log_std).exp()
    for candidate in range(16):
        scale = 1.0 if candidate < 4 else 3.0
        torch.testing.assert_close(u[:, candidate].std(0), expected * scale, rtol=0.05, atol=0)
        torch.testing.assert_close(u[:, candidate].mean(0), torch.tensor(model.mean), rtol=0, atol=0.03)
    # Candidates are drawn apart from each other, roots too.
    flat = u[..., 0].T
    assert (torch.corrcoef(flat) - torch.eye(16)).abs().max() < 0.08
    assert u[..., 0].unique().numel() > 0.99 * batch * 16


def test_the_mode_is_the_first_root_candidate_where_asked_for() -> None:
    model, state, task = FixedPolicy(), torch.zeros(5, 1), torch.zeros(5, dtype=torch.long)
    for mode in (False, True):
        proposal = GaussianProposal.mixed(3, 8, 2, 0.5, 3.0, mode=mode)
        actions, _ = proposal.root(model, state, task, torch.Generator().manual_seed(0))
        at_mode = (actions == torch.tensor(model.mean).tanh()).all(-1)
        assert at_mode.tolist() == [[mode] + [False] * 7] * 5
        assert len(proposal.root_scales) == 8


def test_statistics_of_interior_candidates() -> None:
    proposal, model, batch = published(), FixedPolicy(), 6000
    noise = proposal.interior_noise(batch, 1, torch.Generator().manual_seed(1), torch.device("cpu"))
    assert noise.shape == (batch, 1, 2, 3)
    task = torch.zeros(batch, dtype=torch.long)
    actions, prior = proposal.interior(model, torch.zeros(batch, 1), task, noise[:, 0])
    assert prior is None
    spread = torch.atanh(actions).std(0)
    expected = torch.tensor(model.log_std).exp()
    torch.testing.assert_close(spread[0], expected, rtol=0.05, atol=0)
    torch.testing.assert_close(spread[1], 3 * expected, rtol=0.05, atol=0)
    again, _ = proposal.interior(model, torch.zeros(batch, 1), task, noise[:, 0])
    assert torch.equal(again, actions)  # the noise alone decides


def test_padded_dimensions_are_zero() -> None:
    proposal, model = published(), FixedPolicy()
    task = torch.tensor([0, 1, 1, 0])
    generator = torch.Generator().manual_seed(0)
    actions, _ = proposal.root(model, torch.zeros(4, 1), task, generator)
    assert (actions[[1, 2], :, 2] == 0).all()
    assert (actions[[1, 2], :, :2] != 0).all() and (actions[[0, 3]] != 0).all()
    noise = proposal.interior_noise(4, 1, generator, torch.device("cpu"))[:, 0]
    below, _ = proposal.interior(model, torch.zeros(4, 1), task, noise)
    assert (below[[1, 2], :, 2] == 0).all() and (below[[0, 3]] != 0).all()


def test_candidates_stay_inside_the_bound() -> None:
    model = FixedPolicy(mean=(5.0, -5.0, 0.0), log_std=(1.0, 1.0, 2.0))
    task = torch.zeros(500, dtype=torch.long)
    actions, _ = published().root(model, torch.zeros(500, 1), task, torch.Generator())
    assert actions.abs().max() == pytest.approx(MAX_ACTION)


def test_discrete_proposal_enumerates_with_the_policy_as_prior() -> None:
    model = TabularModel.random(2, 5, 3, seed=0)
    task, state = torch.tensor([1, 0]), torch.tensor([[2.0], [4.0]])
    actions, prior = DiscreteProposal(3).root(model, state, task, torch.Generator())
    assert torch.equal(actions, torch.eye(3).expand(2, 3, 3))
    assert torch.equal(prior, torch.stack([model.prior[1, 2], model.prior[0, 4]]))


def planned(spec: SearchSpec, seed: int = 0) -> Any:
    planner = Planner(spec, discount=0.97, action_size=3)
    observation = torch.randn(200, 6, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(seed)
    return planner(SmoothModel(), observation, torch.arange(200) % 4, generator)


def test_planner_follows_the_spec() -> None:
    spec = SearchSpec(
        num_simulations=10, num_root_actions=8, num_interior_actions=3,
        policy_share=0.5, exploration_std_scale=2.0,
        c_visit=7.0, c_scale=0.3, range_floor=0.2, gumbel_scale=0.5, wave=3,
    )  # fmt: skip
    planner = Planner(spec, discount=0.9, action_size=3)
    settings = planner.settings
    assert (settings.num_simulations, settings.max_considered, settings.discount) == (10, 8, 0.9)
    assert (settings.c_visit, settings.c_scale, settings.range_floor) == (7.0, 0.3, 0.2)
    assert (settings.gumbel_scale, settings.wave, settings.normalization) == (0.5, 3, "tree")
    assert planner.proposal.root_scales == (1.0,) * 4 + (2.0,) * 4
    assert planner.proposal.interior_scales == (1.0, 2.0, 1.0)
    result = planned(spec)
    assert result.actions.shape == (200, 8, 3)
    assert (result.visits.sum(1) == 10).all()


def test_chosen_candidate_has_most_visits_and_highest_q_of_those() -> None:
    result = planned(SearchSpec())
    rows = torch.arange(200)
    most = result.visits == result.visits.amax(1, keepdim=True)
    assert most[rows, result.best].all()
    best_q = result.q.masked_fill(~most, -torch.inf).amax(1)
    assert torch.equal(result.q[rows, result.best], best_q)
    assert torch.equal(result.action, result.actions[rows, result.best])
    torch.testing.assert_close(result.weights.sum(1), torch.ones(200))


@pytest.mark.parametrize("choice", ["best", "random"])
def test_results_can_take_part_in_a_loss(choice: Any) -> None:
    result = planned(SearchSpec(choice=choice))
    scale = torch.ones((), requires_grad=True)
    loss = sum((scale * tensor.float()).sum() for tensor in vars(result).values())
    assert isinstance(loss, Tensor)
    loss.backward()
    assert scale.grad is not None
    torch.testing.assert_close(scale.grad, loss.detach())


def test_random_choice_is_uniform_over_the_candidates_of_the_same_search() -> None:
    best, choices = planned(SearchSpec()), []
    for seed in range(20):
        result = planned(SearchSpec(choice="random"), seed)
        rows = torch.arange(200)
        assert torch.equal(result.action, result.actions[rows, result.best])
        assert (result.weights[rows, result.best] == 1).all() and (result.weights.sum(1) == 1).all()
        choices.append(result.best)
        if seed == 0:
            assert torch.equal(result.q, best.q) and torch.equal(result.visits, best.visits)
    counts = torch.cat(choices).bincount(minlength=16)
    assert (counts - 250).abs().max() < 75  # 4,000 draws over 16: std 15.3


def test_log_ratio_by_hand() -> None:
    # Two real dimensions, mean 0, std 1, half the candidates at std 2, u = (1, 0): the density of the
    # policy over that of the mixture, in which the factors of 2 pi cancel.
    proposal = GaussianProposal(3, (1.0, 2.0), (1.0,), corrected=True)
    policy = FixedPolicy(mean=(0.0, 0.0, 0.0), log_std=(0.0, 0.0, 0.0))
    actions = torch.tensor([[[math.tanh(1.0), 0.0, 0.0]] * 2])
    ratio = proposal.log_ratio(policy, torch.zeros(1, 1), torch.tensor([1]), actions).exp()
    own, wide = math.exp(-0.5), 0.25 * math.exp(-0.125)
    torch.testing.assert_close(ratio, torch.full((1, 2), own / (0.5 * own + 0.5 * wide)))


def test_corrected_candidates_estimate_the_policy_itself() -> None:
    """Where Q says nothing, weighted candidates have the policy's own mean and std, not the proposal's."""
    proposal = GaussianProposal.mixed(
        3, root=8, interior=2, policy_share=0.5, exploration_std_scale=2.0, corrected=True
    )
    policy = FixedPolicy(mean=(0.2, 0.2, 0.0), log_std=(-1.0, -1.0, -1.0))
    state, task = torch.zeros(20_000, 1), torch.ones(20_000, dtype=torch.long)
    actions, _ = proposal.root(policy, state, task, torch.Generator().manual_seed(0))
    weight = proposal.log_ratio(policy, state, task, actions).exp()
    u = torch.atanh(actions[..., 0])
    assert float(weight.mean()) == pytest.approx(1.0, abs=0.01)
    assert float((weight * u).mean()) == pytest.approx(0.2, abs=0.01)
    assert float((weight * (u - 0.2) ** 2).mean().sqrt()) == pytest.approx(math.exp(-1), rel=0.01)
    assert float((u - 0.2).std()) > 1.4 * math.exp(-1)


def test_evaluation_draws_nearer_to_the_mode() -> None:
    spec = SearchSpec(mode_candidate=True, evaluation_std=0.5)
    training, evaluation = (Planner(spec, 0.97, 3, evaluation=value).proposal for value in (False, True))
    assert training == GaussianProposal.from_spec(spec, 3)
    assert evaluation.root_scales == (0.5,) * 4 + (1.5,) * 12
    assert evaluation.interior_scales == (0.5, 1.5)
    model, state, task = FixedPolicy(), torch.zeros(1, 2), torch.zeros(1, dtype=torch.long)
    wide, quiet = (
        proposal.root(model, state, task, torch.Generator().manual_seed(0))[0][0].atanh()
        for proposal in (training, evaluation)
    )
    mode = torch.tensor(model.mean)
    assert torch.allclose(quiet[0], mode)
    assert torch.allclose(quiet - mode, (wide - mode) / 2, atol=1e-5)


def test_width_in_evaluation_is_that_of_the_built_in_proposal() -> None:
    with pytest.raises(ValueError, match="evaluation_std scales the built-in proposal only"):
        SearchSpec(proposal="ezm_pl.search.proposals:GaussianProposal", evaluation_std=0.5)
