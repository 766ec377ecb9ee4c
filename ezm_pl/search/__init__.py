"""Batched Gumbel search over any model with `root` and `step`."""

from ezm_pl.search.halving import Wave, plan_waves
from ezm_pl.search.planner import ActFn, Planner, act_greedy, policy_draw, proposal_of
from ezm_pl.search.proposals import DiscreteProposal, GaussianProposal, Proposal
from ezm_pl.search.tree import SearchModel, SearchResult, SearchSettings, search

__all__ = [
    "ActFn",
    "DiscreteProposal",
    "GaussianProposal",
    "Planner",
    "Proposal",
    "SearchModel",
    "SearchResult",
    "SearchSettings",
    "Wave",
    "act_greedy",
    "plan_waves",
    "policy_draw",
    "proposal_of",
    "search",
]
