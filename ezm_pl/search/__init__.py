"""Batched Gumbel search over any model with `root` and `step`."""

from ezm_pl.search.halving import Wave, plan_waves
from ezm_pl.search.planner import Act, Planner, policy_alone, policy_draw
from ezm_pl.search.proposals import DiscreteProposal, GaussianProposal, Proposal
from ezm_pl.search.tree import SearchModel, SearchResult, SearchSettings, search

__all__ = [
    "Act",
    "DiscreteProposal",
    "GaussianProposal",
    "Planner",
    "Proposal",
    "SearchModel",
    "SearchResult",
    "SearchSettings",
    "Wave",
    "plan_waves",
    "policy_alone",
    "policy_draw",
    "search",
]
