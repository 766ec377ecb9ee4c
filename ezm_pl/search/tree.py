"""Batched Gumbel search with sequential halving, expanded in waves (docs/algorithm.md, "Search").

Sources: Danihelka et al. 2022 (Gumbel MuZero), Hubert et al. 2021 (sampled actions), EfficientZero V2.

Shapes: `B` roots, `R` root candidates, `C` actions of an interior node, `A` action size, `N`
simulations, `W` leaves a root that one wave expands, `D` state size. A tree has `N + 1` nodes: slot
0 is the root, slot `i` the `i`-th node expanded. No shape depends on data: where a path is shorter
than others its last entries are masked, so the host never waits for the device.

At small batches the time goes into the number of tensor operations, whatever their size. So what all
nodes have in common is done for all slots in use at once (`_backup`, `_choices`), not level by level, and
nothing is computed that the plan of waves already says: which waves visit every candidate, whether all
have been visited, how many visits the most visited one has.
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
        num_simulations: nodes expanded per root, `N`.
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

    `logits` of a node's actions and `prior`, their softmax, are kept when first something hangs below it.
    `visits`, `value_sum` and `q` (reward plus discounted mean value, the Q of the edge above) mean
    something in slots in use only, `low` and `span` from the first backup on. The root's slot stands for
    a missing child too: its visits stay 0.
    """

    def __init__(self, state: Tensor, slots: int, interior: int) -> None:
        batch, device = state.shape[0], state.device
        self.state = state.new_empty(batch, slots, state.shape[1])
        self.network_value, self.value_sum, self.reward, self.q = torch.zeros(4, batch, slots, device=device)
        self.visits = torch.ones(batch, slots, device=device)
        self.visits.select(1, 0).zero_()
        self.children = torch.zeros(batch, slots, interior, dtype=torch.long, device=device)
        self.logits = torch.zeros(batch, slots, interior, device=device)
        self.prior = torch.full((batch, slots, interior), 1 / interior, device=device)
        self.low = torch.full((batch, 1), torch.inf, device=device)
        self.high = torch.full((batch, 1), -torch.inf, device=device)
        self.span = self.high
        self.slots = torch.arange(slots, device=device)
        self.row_starts = torch.arange(0, batch * slots, slots, device=device).unsqueeze(1)

    def rows(self, slots: Tensor) -> Tensor:
        """Where slots `[B, W]` are in fields flattened over roots and slots: `[B * W]`."""
        return (slots + self.row_starts).flatten()


@dataclass(frozen=True)
class _Root:
    """The candidates of the roots, all `[B, R]` but `value`.

    Attributes:
        prior: logits.
        fixed: the part of their scores that visits do not change: prior and Gumbel noise.
        children: slots, 0 where there is none yet.
        visits: counts.
        value: `[B]`, the network's.
    """

    prior: Tensor
    fixed: Tensor
    children: Tensor
    visits: Tensor
    value: Tensor

    def completed(self, tree: _Tree, *, all_visited: bool) -> Tensor:
        """Completed Q `[B, R]`."""
        q = tree.q.gather(1, self.children)
        return q if all_visited else _complete(q, self.visits, self.prior.softmax(-1), self.value)


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
    state, value = model.root(observation, task)
    candidates, prior = proposal.root(model, state, task, generator)
    noise = proposal.interior_noise(batch, slots, generator, state.device)
    count, considered = candidates.shape[1], min(settings.max_considered, candidates.shape[1])
    root = _Root(
        prior,
        _gumbel(prior, settings.gumbel_scale, generator) + (prior - prior.amax(1, keepdim=True)),
        torch.zeros(prior.shape, dtype=torch.long, device=state.device),
        torch.zeros_like(prior),
        value.float(),
    )
    tree = _Tree(state, slots, noise.shape[2])
    states, noise, total = tree.state.flatten(0, 1), noise.flatten(0, 1), root.value

    used, most = 1, 0
    for wave in plan_waves(considered, settings.num_simulations, settings.wave):
        if wave.width == count:
            chosen = tree.slots[:count].expand(batch, -1)
        else:
            scores = root.fixed
            if used > 1:
                completed = root.completed(tree, all_visited=considered == count < used)
                scores = scores + _sigma(tree, completed, most, settings)
                scores.masked_fill_(root.visits != wave.visit, -torch.inf)
            chosen = scores.argsort(dim=1, descending=True, stable=True)[:, : wave.width]
        tasks = _repeat(task, wave.width)
        leaves = tree.slots[used : used + wave.width].expand(batch, -1)
        path: list[Tensor] = []
        moved: list[Tensor] = []
        if wave.visit == 0:
            parent_state = _repeat(state, wave.width)
            action = _take(candidates, chosen)
            root.children.scatter_(1, chosen, leaves)
        else:
            # With one visit each nobody has children to choose from yet.
            choices = _choices(tree, used, settings) if wave.visit > 1 else None
            path, moved = _descend(tree, root.children.gather(1, chosen), choices, wave.visit)
            parent = tree.rows(path[-1])
            parent_state = states.index_select(0, parent)
            actions, logits = proposal.interior(model, parent_state, tasks, noise.index_select(0, parent))
            edge = _edge(tree, path[-1], choices, logits)
            action = _take(actions, edge.view(-1, 1))
            _link(tree, path[-1], edge, leaves)
            tree.logits.flatten(0, 1).index_copy_(0, parent, logits)
            tree.prior.flatten(0, 1).index_copy_(0, parent, logits.softmax(-1))
        following, reward, value = model.step(parent_state, action, tasks)
        reward, value = reward.view(batch, -1), value.view(batch, -1)
        _store(tree, used, following, reward, value)
        used, most = used + wave.width, max(most, wave.visit + 1)
        root.visits.scatter_(1, chosen, wave.visit + 1.0)
        total = total + _backup(tree, path, moved, reward, value, used, settings).sum(1)

    # As many visits as any: the last survivors of the halving, best of them by sigma(q).
    completed = root.completed(tree, all_visited=considered == count < used)
    scaled = _sigma(tree, completed, most, settings)
    best = (root.fixed + scaled).masked_fill_(root.visits != most, -torch.inf).argmax(1)
    weights = (prior + proposal.log_ratio(model, state, task, candidates) + scaled).softmax(-1)
    return SearchResult(
        actions=candidates,
        visits=root.visits.long(),
        q=completed,
        weights=weights,
        best=best,
        action=_take(candidates, best.unsqueeze(1)),
        value=total / slots,
        root_value=root.value,
    )


def _gumbel(prior: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """Gumbel noise for the root's prior logits `[B, R]`; zeros without a draw for a scale of 0."""
    if not scale:
        return torch.zeros_like(prior)
    uniform = torch.rand(prior.shape, generator=generator, device=prior.device).clamp(1e-20, 1 - 1e-7)
    return -torch.log(-torch.log(uniform)) * scale


def _repeat(rows: Tensor, times: int) -> Tensor:
    """Each of rows `[B, ...]` so many times: `[B * times, ...]`."""
    return rows.unsqueeze(1).expand(-1, times, *rows.shape[1:]).flatten(0, 1)


def _take(rows: Tensor, index: Tensor) -> Tensor:
    """`rows[b, index[b, w]]` of rows `[B, C, A]` for an index `[B, W]`: `[B * W, A]`."""
    return rows.gather(1, index.unsqueeze(-1).expand(-1, -1, rows.shape[2])).flatten(0, 1)


def _sigma(tree: _Tree, completed: Tensor, most: Tensor | int, settings: SearchSettings) -> Tensor:
    """`sigma(q)` of completed Q `[B, ..., C]`; `most` visits has one of them, `[B, ..., 1]`."""
    if settings.normalization == "node":
        low, high = torch.aminmax(completed, dim=-1, keepdim=True)
        scaled = (completed - low) / (high - low).clamp_(min=settings.range_floor)
    else:
        shape = (-1,) + (1,) * (completed.dim() - 1)
        scaled = ((completed - tree.low.view(shape)) / tree.span.view(shape)).clamp_(0, 1)
    return (settings.c_visit + most) * (settings.c_scale * scaled)


def _complete(q: Tensor, visits: Tensor, prior: Tensor, value: Tensor) -> Tensor:
    """Q of visited actions, `v_mix` for the others (Danihelka et al. 2022, appendix D).

    `q`, `visits`, `prior` probabilities are `[..., C]`, the node's network `value` `[...]`.
    """
    visited = visits > 0
    seen = prior * visited
    mean_q = (seen * q).sum(-1, keepdim=True) / seen.sum(-1, keepdim=True).clamp_(min=1e-12)
    count = visits.sum(-1, keepdim=True)
    mixed = (value.unsqueeze(-1) + count * mean_q) / (count + 1)
    return torch.where(visited, q, mixed)


def _choices(tree: _Tree, used: int, settings: SearchSettings) -> Tensor:
    """The edge `[B, used]` that the interior rule takes below every node, from its priors as known."""
    children = tree.children[:, :used]
    below = children.flatten(1)
    visits = tree.visits.gather(1, below).view_as(children)
    q = tree.q.gather(1, below).view_as(children)
    completed = _complete(q, visits, tree.prior[:, :used], tree.network_value[:, :used])
    scaled = _sigma(tree, completed, visits.amax(-1, keepdim=True), settings)
    improved = tree.logits[:, :used] + scaled
    # A softmax; torch's own takes six times as long over rows of two.
    improved = (improved - improved.amax(-1, keepdim=True)).exp_()
    improved /= improved.sum(-1, keepdim=True)
    return (improved - visits / (1 + visits.sum(-1, keepdim=True))).argmax(-1)


def _descend(
    tree: _Tree, node: Tensor, choices: Tensor | None, visit: int
) -> tuple[list[Tensor], list[Tensor]]:
    """From a root's child `[B, W]` down to a node whose chosen edge has no child yet.

    A subtree with `visit` nodes is at most `visit` deep: so many nodes `[B, W]` come back, and where a path
    ends before, its last node fills the others. The second list says of each but the first whether it is
    another node than the one before.
    """
    path, moved = [node], []
    if choices is not None:
        following = tree.children[:, : choices.shape[1]].gather(2, choices.unsqueeze(-1)).squeeze(-1)
        for _ in range(visit - 1):
            child = following.gather(1, node)
            moved.append(child > 0)
            node = torch.where(moved[-1], child, node)
            path.append(node)
    return path, moved


def _edge(tree: _Tree, parent: Tensor, choices: Tensor | None, logits: Tensor) -> Tensor:
    """The edges `[B, W]` to expand below parents `[B, W]` with prior logits `[B * W, C]`.

    The priors of a node are known only once something is expanded below it, so a parent's first
    choice is made here.
    """
    first = logits.argmax(-1).view_as(parent)
    if choices is None:
        return first
    return torch.where(tree.visits.gather(1, parent) == 1, first, choices.gather(1, parent))


def _link(tree: _Tree, parent: Tensor, edge: Tensor, leaves: Tensor) -> None:
    """Hangs leaves `[B, W]` below edges of parents."""
    tree.children.flatten(1).scatter_(1, parent * tree.children.shape[2] + edge, leaves)


def _store(tree: _Tree, used: int, state: Tensor, reward: Tensor, value: Tensor) -> None:
    """Fills the next free slots with new leaves: states `[B * W, D]`, rewards and values `[B, W]`."""
    batch, width = value.shape
    tree.state.narrow(1, used, width).copy_(state.view(batch, width, -1))
    tree.reward.narrow(1, used, width).copy_(reward)
    tree.network_value.narrow(1, used, width).copy_(value)
    tree.value_sum.narrow(1, used, width).copy_(value)


def _backup(
    tree: _Tree,
    path: list[Tensor],
    moved: list[Tensor],
    reward: Tensor,
    value: Tensor,
    used: int,
    settings: SearchSettings,
) -> Tensor:
    """Adds new leaves' values to every node above them and widens the range of Q.

    Args:
        path, moved: from `_descend`, down to the leaves' parents.
        reward, value: of the leaves, `[B, W]`.
        used: slots in use, the leaves' with them.

    Returns:
        The leaves' returns from the root, `[B, W]`.
    """
    returns = torch.add(reward, value, alpha=settings.discount)
    if path:
        slots = torch.cat(path, 1)
        rewards = tree.reward.gather(1, slots).chunk(len(path), 1)
        at: list[Tensor] = []
        for level in reversed(range(len(path))):
            at.append(returns)
            above = torch.add(rewards[level], returns, alpha=settings.discount)
            returns = torch.where(moved[level - 1], above, returns) if level else above
        # Leaves of one wave lie below different root actions, so no node is met twice.
        live = torch.cat([torch.ones_like(value), *moved], 1)
        tree.value_sum.scatter_add_(1, slots, torch.cat(at[::-1], 1).mul_(live))
        tree.visits.scatter_add_(1, slots, live)
    nodes = slice(1, used)
    mean = tree.value_sum[:, nodes] / tree.visits[:, nodes]
    q = torch.add(tree.reward[:, nodes], mean, alpha=settings.discount, out=tree.q[:, nodes])
    # A node whose Q has not moved was counted when it did.
    low, high = torch.aminmax(q, dim=1, keepdim=True)
    tree.low, tree.high = torch.minimum(tree.low, low), torch.maximum(tree.high, high)
    tree.span = (tree.high - tree.low).clamp_(min=settings.range_floor)
    return returns
