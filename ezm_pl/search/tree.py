"""Batched Gumbel search with sequential halving, expanded in waves (ALGORITHM, section 3).

Sources: Danihelka et al. 2022 (Gumbel MuZero), Hubert et al. 2021 (sampled actions), EfficientZero V2.

Shapes: `B` roots, `R` root candidates, `C` actions of an interior node, `A` action size, `N`
simulations, `W` leaves a root that one wave expands, `D` state size. A tree has `N + 1` nodes: slot
0 is the root, slot `i` the `i`-th node expanded. One further slot takes the writes of paths that
have already ended, so that nothing depends on data and the host never waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from ezm_pl.search.halving import Wave, plan_waves
from ezm_pl.search.proposals import Proposal


class SearchModel(Protocol):
    """What the search needs of a model; states are `[B, D]`, tasks `[B]`."""

    def root(self, observation: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
        """States `[B, D]` and values `[B]` of observations."""

    def step(self, state: Tensor, action: Tensor, task: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Next states `[B, D]`, rewards `[B]` and values `[B]` after actions `[B, A]`."""


@dataclass(frozen=True)
class SearchSettings:
    """How to search.

    Attributes:
        num_simulations: nodes expanded a root, `N`.
        max_considered: root candidates that sequential halving starts with, at most `R`.
        discount: of the rewards along a path.
        c_visit, c_scale: of `sigma(q) = (c_visit + max visits) * c_scale * q`.
        range_floor: smallest range that Q values are divided by.
        gumbel_scale: of the Gumbel noise on the root's logits; 0 for none.
        wave: most leaves a root that one network call expands; None for a whole halving round,
            1 for the strictly sequential search.
        normalization: `tree` scales Q by the extremes of the root's whole tree, `node` by those of
            the node's own completed Q (as mctx does).
    """

    num_simulations: int = 32
    max_considered: int = 16
    discount: float = 0.99
    c_visit: float = 50.0
    c_scale: float = 0.1
    range_floor: float = 0.01
    gumbel_scale: float = 0.0
    wave: int | None = None
    normalization: Literal["tree", "node"] = "tree"


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        actions: `[B, R, A]` root candidates.
        visits: `[B, R]` int64 visit counts.
        q: `[B, R]` completed Q values, in units of return.
        weights: `[B, R]` the improved policy over the candidates: `softmax(prior + sigma(q))`, corrected
            for how the candidates were drawn.
        best: `[B]` index of the chosen candidate.
        action: `[B, A]` the chosen candidate.
        value: `[B]` the search value (mean backed-up value of the root).
        root_value: `[B]` the network's own value of the root.
    """

    actions: Tensor
    visits: Tensor
    q: Tensor
    weights: Tensor
    best: Tensor
    action: Tensor
    value: Tensor
    root_value: Tensor


class _Tree:
    """The arrays of `B` trees. `children` holds slots, 0 where a child has not been expanded."""

    def __init__(self, state: Tensor, value: Tensor, nodes: int, interior: int, action_size: int) -> None:
        batch, device = state.shape[0], state.device
        slots = nodes + 1
        self.trash = nodes
        self.state = state.new_empty(batch, slots, state.shape[1])
        self.network_value = torch.zeros(batch, slots, device=device)
        self.value_sum = torch.zeros(batch, slots, device=device)
        self.visits = torch.zeros(batch, slots, device=device)
        self.reward = torch.zeros(batch, slots, device=device)
        self.parent = torch.zeros(batch, slots, dtype=torch.long, device=device)
        self.children = torch.zeros(batch, slots, interior, dtype=torch.long, device=device)
        self.actions = torch.zeros(batch, slots, interior, action_size, device=device)
        self.logits = torch.zeros(batch, slots, interior, device=device)
        self.low = torch.full((batch,), torch.inf, device=device)
        self.high = torch.full((batch,), -torch.inf, device=device)
        self.state[:, 0] = state
        self.network_value[:, 0] = self.value_sum[:, 0] = value
        self.visits[:, 0].fill_(1)

    def mean_value(self, slots: Tensor) -> Tensor:
        """Mean backed-up value of nodes `[B, ...]`; zero for those without a visit."""
        flat = slots.flatten(1)
        mean = self.value_sum.gather(1, flat) / self.visits.gather(1, flat).clamp(min=1)
        return mean.view_as(slots)

    def pick(self, field: Tensor, slots: Tensor) -> Tensor:
        """`field[b, slots[b, w]]` for slots `[B, W]` and a field `[B, slots, ...]`."""
        rows = torch.arange(slots.shape[0], device=slots.device).unsqueeze(1)
        return field[rows, slots]


@torch.no_grad()
def search(
    model: SearchModel,
    proposal: Proposal,
    observation: Tensor,
    task: Tensor,
    settings: SearchSettings,
    generator: torch.Generator,
) -> SearchResult:
    """Plans from every observation at once.

    Args:
        model: `root` and `step` (see `SearchModel`).
        proposal: gives the candidate actions of roots and interior nodes.
        observation: `[B, O]`.
        task: `[B]` int64.
        settings: see `SearchSettings`.
        generator: of all noise, on the observations' device.
    """
    batch = observation.shape[0]
    root, value = model.root(observation, task)
    candidates, prior = proposal.root(model, root, task, generator)
    considered = min(settings.max_considered, candidates.shape[1])
    waves = plan_waves(considered, settings.num_simulations, settings.wave)
    nodes = settings.num_simulations + 1
    noise = proposal.interior_noise(batch, nodes + 1, generator, root.device)
    interior = noise.shape[2]
    tree = _Tree(root, value.float(), nodes, interior, candidates.shape[2])
    root_children = torch.zeros(batch, candidates.shape[1], dtype=torch.long, device=root.device)
    gumbel = _gumbel(prior, settings.gumbel_scale, generator)

    used = 1
    for wave in waves:
        scores, _ = _root_scores(tree, root_children, prior, gumbel, settings, wave.visit)
        chosen = scores.argsort(dim=1, descending=True, stable=True)[:, : wave.width]
        parent, edge, action, state = _descend(
            model, proposal, tree, root_children, candidates, noise, chosen, task, wave, settings
        )
        used = _expand(model, tree, root_children, parent, edge, chosen, action, state, task, used, wave)
        _backup(tree, torch.arange(used - wave.width, used, device=root.device), wave, settings)

    # As many visits as any: the last survivors of the halving, best of them by sigma(q).
    visits = tree.visits.gather(1, root_children) * (root_children > 0)
    top = visits.amax(1, keepdim=True)
    scores, completed = _root_scores(tree, root_children, prior, gumbel, settings, top)
    best = scores.argmax(1)
    scaled = _sigma(tree, completed, visits, settings)
    weights = (prior + proposal.log_ratio(model, root, task, candidates) + scaled).softmax(-1)
    action = candidates[torch.arange(batch, device=best.device), best]
    mean = tree.value_sum[:, 0] / tree.visits[:, 0]
    return SearchResult(candidates, visits.long(), completed, weights, best, action, mean, value)


def _gumbel(prior: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """Gumbel noise for the root's prior logits `[B, R]`; zeros without a draw for a scale of 0."""
    if not scale:
        return torch.zeros_like(prior)
    uniform = torch.rand(prior.shape, generator=generator, device=prior.device).clamp(1e-20, 1 - 1e-7)
    return -torch.log(-torch.log(uniform)) * scale


def _sigma(tree: _Tree, completed: Tensor, visits: Tensor, settings: SearchSettings) -> Tensor:
    """`sigma(q)` of completed Q `[B, ..., C]` with visits `[B, ..., C]`."""
    if settings.normalization == "node":
        low, high = completed.amin(-1, keepdim=True), completed.amax(-1, keepdim=True)
    else:
        shape = (-1,) + (1,) * (completed.dim() - 1)
        # Before the first backup the extremes are empty and all completed Q are equal: any range does.
        low = torch.where(tree.low > tree.high, 0, tree.low).view(shape)
        high = torch.where(tree.low > tree.high, 0, tree.high).view(shape)
    scaled = (completed - low) / (high - low).clamp(min=settings.range_floor)
    if settings.normalization == "tree":
        scaled = scaled.clamp(0, 1)
    return (settings.c_visit + visits.amax(-1, keepdim=True)) * settings.c_scale * scaled


def _complete(q: Tensor, visits: Tensor, prior: Tensor, value: Tensor) -> Tensor:
    """Q of visited actions, `v_mix` for the others (Danihelka et al. 2022, appendix D).

    `q`, `visits`, `prior` logits are `[..., C]`, the node's network `value` `[...]`.
    """
    visited = visits > 0
    probability = prior.softmax(-1)
    seen = (probability * visited).sum(-1, keepdim=True)
    mean_q = (probability * visited * q).sum(-1, keepdim=True) / seen.clamp(min=1e-12)
    count = visits.sum(-1, keepdim=True)
    mixed = (value.unsqueeze(-1) + count * mean_q) / (count + 1)
    return torch.where(visited, q, mixed)


def _root_scores(
    tree: _Tree,
    root_children: Tensor,
    prior: Tensor,
    gumbel: Tensor,
    settings: SearchSettings,
    visit: int | Tensor,
) -> tuple[Tensor, Tensor]:
    """Scores `[B, R]` of the candidates, -inf for those without exactly `visit` visits, and their Q."""
    expanded = root_children > 0
    visits = tree.visits.gather(1, root_children) * expanded
    q = tree.reward.gather(1, root_children) + settings.discount * tree.mean_value(root_children)
    completed = _complete(q, visits, prior, tree.network_value[:, 0])
    scores = gumbel + (prior - prior.amax(1, keepdim=True)) + _sigma(tree, completed, visits, settings)
    return scores.masked_fill(visits != visit, -torch.inf), completed


def _descend(
    model: SearchModel,
    proposal: Proposal,
    tree: _Tree,
    root_children: Tensor,
    candidates: Tensor,
    noise: Tensor,
    chosen: Tensor,
    task: Tensor,
    wave: Wave,
    settings: SearchSettings,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Follows the chosen root actions `[B, W]` down to unexpanded edges.

    Returns the parents `[B, W]`, the edges below them `[B, W]`, their actions `[B, W, A]` and the
    parents' states `[B * W, D]`.
    """
    if wave.visit == 0:
        state = tree.state[:, :1].expand(-1, wave.width, -1).flatten(0, 1)
        return torch.zeros_like(chosen), chosen, tree.pick(candidates, chosen), state
    node = root_children.gather(1, chosen)
    edge = torch.zeros_like(node)
    # A subtree with `visit` nodes is at most `visit` deep, so this many moves always reach a leaf.
    for _ in range(wave.visit):
        children = tree.pick(tree.children, node)
        visits = tree.visits.gather(1, children.flatten(1)).view_as(children) * (children > 0)
        q = tree.reward.gather(1, children.flatten(1)).view_as(children)
        q = q + settings.discount * tree.mean_value(children)
        prior = tree.pick(tree.logits, node)
        completed = _complete(q, visits, prior, tree.network_value.gather(1, node))
        improved = (prior + _sigma(tree, completed, visits, settings)).softmax(-1)
        edge = (improved - visits / (1 + visits.sum(-1, keepdim=True))).argmax(-1)
        child = children.gather(2, edge.unsqueeze(-1)).squeeze(-1)
        node = torch.where(child > 0, child, node)
        # A node that was entered just now has its own choice still to make: the next round makes it.
        # Where no child exists the same node makes the same choice again.
    # The policy of a node is asked for only here, when something is expanded below it. The noise is
    # drawn once a node, so asking a second time gives the same actions.
    flat = node.flatten()
    state = tree.pick(tree.state, node).flatten(0, 1)
    actions, logits = proposal.interior(
        model, state, task.repeat_interleave(wave.width), tree.pick(noise, node).flatten(0, 1)
    )
    rows = torch.arange(node.shape[0], device=node.device).repeat_interleave(wave.width)
    first = (tree.children[rows, flat] > 0).any(-1).logical_not()
    # Discrete priors are known only now: the first choice below a node must be made with them.
    prior = torch.where(first.unsqueeze(-1), logits, tree.logits[rows, flat])
    edge = torch.where(first, prior.argmax(-1), edge.flatten())
    tree.actions[rows, flat] = torch.where(first.view(-1, 1, 1), actions, tree.actions[rows, flat])
    tree.logits[rows, flat] = prior
    action = tree.actions[rows, flat, edge]
    return node, edge.view_as(node), action.view(*node.shape, -1), state


def _expand(
    model: SearchModel,
    tree: _Tree,
    root_children: Tensor,
    parent: Tensor,
    edge: Tensor,
    chosen: Tensor,
    action: Tensor,
    state: Tensor,
    task: Tensor,
    used: int,
    wave: Wave,
) -> int:
    """Evaluates `W` new leaves a root in one call and links them; returns the next free slot."""
    batch, width = parent.shape
    state, reward, value = model.step(state, action.flatten(0, 1), task.repeat_interleave(width))
    end = used + width
    tree.state[:, used:end] = state.view(batch, width, -1)
    tree.reward[:, used:end] = reward.view(batch, width).float()
    tree.network_value[:, used:end] = value.view(batch, width).float()
    tree.parent[:, used:end] = parent
    slots = torch.arange(used, end, device=parent.device).expand(batch, width)
    if wave.visit == 0:
        root_children.scatter_(1, chosen, slots)
    else:
        rows = torch.arange(batch, device=parent.device).unsqueeze(1)
        tree.children[rows, parent, edge] = slots
    return end


def _backup(tree: _Tree, leaves: Tensor, wave: Wave, settings: SearchSettings) -> None:
    """Adds the new leaves' values to every node above them and widens the range of Q."""
    batch = tree.reward.shape[0]
    node = leaves.expand(batch, -1).contiguous()
    value = tree.network_value.gather(1, node)
    live = torch.ones_like(node, dtype=torch.bool)
    paths = []
    for _ in range(wave.visit + 1):
        slot = torch.where(live, node, tree.trash)
        # Leaves of one wave lie below different root actions, so live slots never coincide.
        tree.value_sum.scatter_add_(1, slot, value)
        tree.visits.scatter_add_(1, slot, torch.ones_like(value))
        paths.append((slot, live))
        reward = tree.reward.gather(1, node)
        value = torch.where(live, reward + settings.discount * value, value)
        node = tree.parent.gather(1, node)
        live = live & (node > 0)
    tree.value_sum[:, 0] += value.sum(1)
    tree.visits[:, 0] += node.shape[1]
    for slot, live in paths:
        q = tree.reward.gather(1, slot) + settings.discount * tree.mean_value(slot)
        tree.low = torch.minimum(tree.low, q.masked_fill(~live, torch.inf).amin(1))
        tree.high = torch.maximum(tree.high, q.masked_fill(~live, -torch.inf).amax(1))
