"""Batched Gumbel search with sequential halving, expanded in waves (ALGORITHM, section 3).

Sources: Danihelka et al. 2022 (Gumbel MuZero), Hubert et al. 2021 (sampled actions), EfficientZero V2.

Shapes: `B` roots, `R` root candidates, `C` actions of an interior node, `A` action size, `N`
simulations, `W` leaves a root that one wave expands, `D` state size. A tree has `N + 1` nodes: slot
0 is the root, slot `i` the `i`-th node expanded. No shape depends on data: where a path is shorter
than others its last entries are masked, so the host never waits for the device.

At small batches the time goes into the number of tensor operations, whatever their size. So what all
nodes have in common is done for all slots in use at once (`_backup`, `_choices`), not level by level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from ezm_pl.search.halving import plan_waves
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
    """The arrays of `B` trees with `slots` nodes each. `children` holds slots, 0 where there is none yet.

    `visits`, `value_sum` and `q` (reward plus discounted mean value, the Q of the edge above) mean
    something in slots in use only.
    """

    def __init__(self, state: Tensor, value: Tensor, slots: int, interior: int) -> None:
        batch, device = state.shape[0], state.device
        self.state = state.new_empty(batch, slots, state.shape[1])
        self.network_value, self.value_sum, self.reward, self.q = torch.zeros(4, batch, slots, device=device)
        self.visits = torch.ones(batch, slots, device=device)
        self.children = torch.zeros(batch, slots, interior, dtype=torch.long, device=device)
        self.logits = torch.zeros(batch, slots, interior, device=device)
        self.low = torch.full((batch, 1), torch.inf, device=device)
        self.high = torch.full((batch, 1), -torch.inf, device=device)
        self.row_starts = torch.arange(0, batch * slots, slots, device=device).unsqueeze(1)
        self.state[:, 0] = state
        self.network_value[:, 0] = self.value_sum[:, 0] = value

    def pick(self, field: Tensor, slots: Tensor) -> Tensor:
        """`field[b, slots[b, w]]` for slots `[B, W]` and a field `[B, slots, ...]`: `[B * W, ...]`."""
        return field.flatten(0, 1).index_select(0, (slots + self.row_starts).flatten())

    def below(self, children: Tensor) -> tuple[Tensor, Tensor]:
        """Visits and Q of children `[B, ...]`; zero visits and any Q where there is none."""
        flat = children.flatten(1)
        visits = self.visits.gather(1, flat) * (flat > 0)
        return visits.view_as(children), self.q.gather(1, flat).view_as(children)


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
    batch, slots = observation.shape[0], settings.num_simulations + 1
    root, value = model.root(observation, task)
    candidates, prior = proposal.root(model, root, task, generator)
    noise = proposal.interior_noise(batch, slots, generator, root.device)
    tree = _Tree(root, value.float(), slots, noise.shape[2])
    root_children = torch.zeros(batch, candidates.shape[1], dtype=torch.long, device=root.device)
    gumbel = _gumbel(prior, settings.gumbel_scale, generator)
    rows = torch.arange(batch, device=root.device)

    used = 1
    considered = min(settings.max_considered, candidates.shape[1])
    for wave in plan_waves(considered, settings.num_simulations, settings.wave):
        scores, _, _ = _root_scores(tree, root_children, prior, gumbel, settings, wave.visit)
        chosen = scores.argsort(dim=1, descending=True, stable=True)[:, : wave.width]
        tasks = task.repeat_interleave(wave.width)
        leaves = torch.arange(used, used + wave.width, device=root.device).expand(batch, -1)
        if wave.visit == 0:
            path: list[Tensor] = []
            parent_state = root.repeat_interleave(wave.width, 0)
            action = candidates[rows.unsqueeze(1), chosen].flatten(0, 1)
            root_children.scatter_(1, chosen, leaves)
        else:
            # With one visit each nobody has children to choose from yet.
            choices = _choices(tree, used, settings) if wave.visit > 1 else None
            path = _descend(tree, root_children.gather(1, chosen), choices, wave.visit)
            parent_state = tree.pick(tree.state, path[-1])
            actions, logits = proposal.interior(model, parent_state, tasks, tree.pick(noise, path[-1]))
            edge = _edge(tree, path[-1], choices, logits)
            action = actions[torch.arange(edge.numel(), device=edge.device), edge.flatten()]
            _link(tree, path[-1], edge, leaves, logits)
        state, reward, value = model.step(parent_state, action, tasks)
        _store(tree, used, state, reward, value)
        used += wave.width
        _backup(tree, [*path, leaves], used, settings)

    # As many visits as any: the last survivors of the halving, best of them by sigma(q).
    visits, _ = tree.below(root_children)
    top = visits.amax(1, keepdim=True)
    scores, completed, scaled = _root_scores(tree, root_children, prior, gumbel, settings, top)
    best = scores.argmax(1)
    weights = (prior + proposal.log_ratio(model, root, task, candidates) + scaled).softmax(-1)
    mean = tree.value_sum[:, 0] / tree.visits[:, 0]
    action = candidates[rows, best]
    return SearchResult(
        candidates, visits.long(), completed, weights, best, action, mean, tree.network_value[:, 0]
    )


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
        # Before the first backup low is inf and high -inf: that scales every Q to 0.
        shape = (-1,) + (1,) * (completed.dim() - 1)
        low, high = tree.low.view(shape), tree.high.view(shape)
    scaled = (completed - low) / (high - low).clamp(min=settings.range_floor)
    if settings.normalization == "tree":
        scaled = scaled.clamp(0, 1)
    return (settings.c_visit + visits.amax(-1, keepdim=True)) * (settings.c_scale * scaled)


def _complete(q: Tensor, visits: Tensor, prior: Tensor, value: Tensor) -> Tensor:
    """Q of visited actions, `v_mix` for the others (Danihelka et al. 2022, appendix D).

    `q`, `visits`, `prior` logits are `[..., C]`, the node's network `value` `[...]`.
    """
    visited = visits > 0
    seen = prior.softmax(-1) * visited
    mean_q = (seen * q).sum(-1, keepdim=True) / seen.sum(-1, keepdim=True).clamp(min=1e-12)
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the candidates `[B, R]`: scores, -inf without exactly `visit` visits; completed Q; its sigma."""
    visits, q = tree.below(root_children)
    completed = _complete(q, visits, prior, tree.network_value[:, 0])
    scaled = _sigma(tree, completed, visits, settings)
    scores = gumbel + (prior - prior.amax(1, keepdim=True)) + scaled
    return scores.masked_fill(visits != visit, -torch.inf), completed, scaled


def _choices(tree: _Tree, used: int, settings: SearchSettings) -> Tensor:
    """The edge `[B, used]` that the interior rule takes below every node, from its priors as known."""
    prior = tree.logits[:, :used]
    visits, q = tree.below(tree.children[:, :used])
    completed = _complete(q, visits, prior, tree.network_value[:, :used])
    improved = (prior + _sigma(tree, completed, visits, settings)).softmax(-1)
    return (improved - visits / (1 + visits.sum(-1, keepdim=True))).argmax(-1)


def _descend(tree: _Tree, node: Tensor, choices: Tensor | None, visit: int) -> list[Tensor]:
    """The nodes `[B, W]` from a root's child down to one whose chosen edge has no child yet.

    A subtree with `visit` nodes is at most `visit` deep: so many entries come back, and where a path
    ends before, its last node fills the others.
    """
    path = [node]
    if choices is not None:
        following = tree.children[:, : choices.shape[1]].gather(2, choices.unsqueeze(-1)).squeeze(-1)
        for _ in range(visit - 1):
            child = following.gather(1, node)
            node = torch.where(child > 0, child, node)
            path.append(node)
    return path


def _edge(tree: _Tree, parent: Tensor, choices: Tensor | None, logits: Tensor) -> Tensor:
    """The edges `[B, W]` to expand below parents `[B, W]` with prior logits `[B * W, C]`.

    The priors of a node are known only once something is expanded below it, so a parent's first
    choice is made here.
    """
    first = logits.argmax(-1).view_as(parent)
    if choices is None:
        return first
    return torch.where(tree.visits.gather(1, parent) == 1, first, choices.gather(1, parent))


def _link(tree: _Tree, parent: Tensor, edge: Tensor, leaves: Tensor, logits: Tensor) -> None:
    """Hangs leaves `[B, W]` below edges of parents, and keeps the parents' prior logits `[B * W, C]`."""
    interior = tree.children.shape[2]
    tree.children.flatten(1).scatter_(1, parent * interior + edge, leaves)
    wide = parent.unsqueeze(-1).expand(-1, -1, interior)
    tree.logits.scatter_(1, wide, logits.view(*parent.shape, interior))


def _store(tree: _Tree, used: int, state: Tensor, reward: Tensor, value: Tensor) -> None:
    """Fills the next free slots with `W` new leaves a root: `[B * W, ...]`."""
    batch = tree.state.shape[0]
    end = used + state.shape[0] // batch
    tree.state[:, used:end] = state.view(batch, end - used, -1)
    tree.reward[:, used:end] = reward.view(batch, -1)
    tree.network_value[:, used:end] = tree.value_sum[:, used:end] = value.view(batch, -1)


def _backup(tree: _Tree, path: list[Tensor], used: int, settings: SearchSettings) -> None:
    """Adds the new leaves' values to every node above them and widens the range of Q.

    `path` holds slots `[B, W]`, from a child of the root to the leaf; an entry equal to the one before
    it stands for nothing.
    """
    value, reward = (field.gather(1, path[-1]) for field in (tree.network_value, tree.reward))
    width = path[0].shape[1]
    if len(path) > 1:
        slots = torch.stack(path[:-1])
        live = torch.ones_like(slots, dtype=torch.bool)
        live[1:] = slots[1:] != slots[:-1]
        rewards = tree.reward.expand(len(slots), -1, -1).gather(2, slots)
        returns = torch.zeros_like(rewards)
        for level in reversed(range(len(slots))):
            above = torch.add(reward, value, alpha=settings.discount)
            value = torch.where(live[level], above, value)
            reward = torch.where(live[level], rewards[level], reward)
            returns[level] = value
        # Leaves of one wave lie below different root actions, so live slots never coincide.
        flat = slots.transpose(0, 1).flatten(1)
        mask = live.transpose(0, 1).flatten(1).float()
        tree.value_sum.scatter_add_(1, flat, returns.transpose(0, 1).flatten(1) * mask)
        tree.visits.scatter_add_(1, flat, mask)
    tree.value_sum[:, 0] += torch.add(reward, value, alpha=settings.discount).sum(1)
    tree.visits[:, 0] += width
    nodes = slice(1, used)
    q = tree.reward[:, nodes] + settings.discount * (tree.value_sum[:, nodes] / tree.visits[:, nodes])
    tree.q[:, nodes] = q
    # A node whose Q has not moved was counted when it did.
    tree.low = torch.minimum(tree.low, q.amin(1, keepdim=True))
    tree.high = torch.maximum(tree.high, q.amax(1, keepdim=True))
