"""From a spec to decisions: by the search, as self-play and reanalysis make them, or by the policy alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ezm_pl.search.compiled import CompiledSearch
from ezm_pl.search.graphs import GraphedSearch
from ezm_pl.search.halving import plan_waves
from ezm_pl.search.proposals import GaussianProposal, Proposal
from ezm_pl.search.tree import SearchModel, SearchResult, SearchSettings, search
from ezm_pl.spec.experiment import SearchSpec
from ezm_pl.spec.extension import load_extension


class ActFn(Protocol):
    """How to decide."""

    def __call__(
        self, model: Any, observation: Tensor, task: Tensor, generator: torch.Generator, /
    ) -> Tensor:
        """Actions `[B, A]` for observations `[B, O]` of tasks `[B]`; `generator` lives on their device."""


@torch.inference_mode()
def act_greedy(model: Any, observation: Tensor, task: Tensor, generator: torch.Generator) -> Tensor:
    """Decides without a search: the policy's mode.

    Args and result as for `ActFn`.
    """
    action: Tensor = model.policy_of(observation, task).mode
    return action


@torch.inference_mode()
def policy_draw(model: Any, observation: Tensor, task: Tensor, generator: torch.Generator) -> Tensor:
    """Decides without a search: a draw from the policy, which explores.

    Args and result as for `ActFn`.
    """
    policy = model.policy_of(observation, task)
    noise = torch.randn(policy.mean.shape, generator=generator, device=policy.mean.device)
    action: Tensor = policy.action(noise)
    return action


def proposal_of(spec: SearchSpec, action_size: int) -> Proposal:
    """What proposes a search's candidates, for the padded action size `A`."""
    kind: Any = load_extension(spec.proposal) if spec.proposal else GaussianProposal
    proposal: Proposal = kind.from_spec(spec, action_size)
    return proposal


class Planner:
    """Searches with sampled continuous actions as an experiment's spec says.

    Args:
        spec: the search's sizes and constants.
        discount: of one decision.
        action_size: padded `A`.
        evaluation: whether candidates are drawn as in evaluation (`search.evaluation_std`).

    Attributes:
        compiled: searches by C++ programs on a CPU; None where the spec wants none.
    """

    def __init__(
        self, spec: SearchSpec, discount: float, action_size: int, *, evaluation: bool = False
    ) -> None:
        self.settings = SearchSettings(
            num_simulations=spec.num_simulations,
            max_considered=spec.num_root_actions,
            discount=discount,
            c_visit=spec.c_visit,
            c_scale=spec.c_scale,
            range_floor=spec.range_floor,
            gumbel_scale=spec.gumbel_scale,
            wave=spec.wave,
        )
        self.proposal = proposal_of(spec, action_size)
        if evaluation and isinstance(self.proposal, GaussianProposal):
            self.proposal = self.proposal.scaled(spec.evaluation_std)
        self.random_choice = spec.choice == "random"
        self.without_search = spec.choice == "policy"
        self._graphed = GraphedSearch(self._search)
        plan = plan_waves(spec.num_root_actions, spec.num_simulations, spec.wave)
        width = max(wave.width for wave in plan)
        # Without a scale of its own, evaluation runs the program of self-play.
        scaled = evaluation and spec.evaluation_std != 1
        self.compiled = (
            CompiledSearch(self._graphed, spec, discount, scaled, width) if spec.compiled else None
        )

    def __call__(
        self,
        model: SearchModel,
        observation: Tensor,
        task: Tensor,
        generator: torch.Generator,
        roots: int | None = None,
    ) -> SearchResult:
        """Plans for observations `[B, O]` of tasks `[B]`; `generator` lives on their device.

        With `roots`, it plans for the first so many of them and only values the others (`root_value`).
        """
        plan = self._graphed if self.compiled is None else self.compiled
        with torch.no_grad():
            result = plan(model, observation, task, generator, roots or len(observation))
        if not self.random_choice:
            return result
        batch, candidates = result.visits.shape
        best = torch.randint(candidates, (batch,), generator=generator, device=observation.device)
        return replace(
            result,
            best=best,
            action=result.actions[torch.arange(batch, device=best.device), best],
            weights=F.one_hot(best, candidates).float(),
        )

    def _search(
        self, model: SearchModel, observation: Tensor, task: Tensor, generator: torch.Generator, roots: int
    ) -> SearchResult:
        return search(model, self.proposal, observation, task, self.settings, generator, roots)

    def act(
        self, model: SearchModel, observation: Tensor, task: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The chosen actions `[B, A]` of a search, or the policy's mode where the spec asks for that."""
        if self.without_search:
            return act_greedy(model, observation, task, generator)
        with torch.inference_mode():  # 6% faster than no_grad at one root
            action = self(model, observation, task, generator).action
        return action.clone()  # one that may take part in a loss
