"""Batched Gumbel search with sequential halving, expanded in waves (docs/algorithm.md, "Search").

Sources: Danihelka et al. 2022 (Gumbel MuZero), Hubert et al. 2021 (sampled actions), EfficientZero V2.

Shapes: `B` roots, `R` root candidates, `C` actions of an interior node, `A` action size, `N`
simulations, `W` leaves per root that one wave expands, `D` state size. A tree has `N + 1` nodes: slot
0 is the root, slot `i` the `i`-th node expanded.

A search is one static program: its operations and their shapes follow from the plan of waves, the number of
roots and the settings. No value is read back from the device, and nothing is computed that the plan already
says. At small batches the time goes into the number of operations, whatever their size, so each is done for
all nodes at once, and a tree keeps all that a leaf needs of its ancestors in its parent's row (`_Tree`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ezm_pl.search.halving import plan_waves
from ezm_pl.search.proposals import Proposal
from ezm_pl.search.roots import Root, fixed_scores, mixed_value, take


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
        wave: most leaves per root that one network call expands; None for a whole halving round,
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
        root_value: `[B]` the network's own value of the root; behind them those of observations that were
            not searched.
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
    """The nodes of `B` trees; `slots` with the root's slot 0, which also stands for a missing child.

    Each node has one row of `rows` `[B, slots, K]`, so that one gather brings all that a child needs of its
    parent. The state `[D]`, the reward of the edge above and the network's value come first, then four parts,
    each `[slots]`:

    - `discounts`: of each ancestor and itself, the discount from there to here; 0 for all others;
    - `above`: 1 for each ancestor and itself;
    - `returns`: what its expansion returned to each of them;
    - `rewards`: of each ancestor, the discounted rewards from there to here.

    So the visits of all nodes are the sum of `above` over rows, and their returns that of `returns`. The root
    is left out of these parts: its visits are next to none, but not zero, so that its Q is 0.

    Of a node's edges, `children` `[B, slots, C]` are slots, `actions` `[B, slots, C, A]`, and `prior`
    `[B, slots, C]` logits, None where all are equal. `visits` and `q` `[B, used]` (of the edge above:
    reward plus discounted mean value) are those after the last wave, `low` and `high` the range of Q.
    """

    def __init__(self, state: Tensor, slots: int, edges: int, action_size: int, discount: float) -> None:
        (batch, size), device = state.shape, state.device
        self.size, self.slots, self.used, self.discount = size, slots, 1, discount
        self.newest = slice(0, 1)
        self.constants = _constants(slots, discount, device)
        self.trees = torch.arange(batch, device=device).unsqueeze(1)
        self.rows = torch.empty(batch, slots, size + 2 + 4 * slots, device=device)
        torch.cat([state, self.constants.root.expand(batch, -1)], 1, out=self.rows[:, 0])
        self.children = torch.zeros(batch, slots, edges, dtype=torch.long, device=device)
        self.actions = torch.empty(batch, slots, edges, action_size, device=device)
        self.prior: Tensor | None = None
        self.visits = self.q = self.low = self.high = self.rows

    def parents(self, node: Tensor) -> Tensor:
        """The rows of nodes `[B, W]`, `[B * W, K]`."""
        return self.rows[self.trees, node].flatten(0, 1)

    def expand(self, parent: Tensor, state: Tensor, reward: Tensor, value: Tensor) -> None:
        """New leaves in the next free slots, backed up to all nodes above them.

        Args:
            parent: the rows of their parents, `[B * W, K]`.
            state, reward, value: of the leaves, `[B * W, D]`, `[B * W]` and `[B * W]`.
        """
        batch, slots, first = self.rows.shape[0], self.slots, self.used
        parent, state, reward, value = (
            x.view(batch, -1, x.shape[1:].numel()) for x in (parent, state, reward, value)
        )
        width = parent.shape[1]
        _, lineage, _, rewards = parent.split([self.size + 2, 2 * slots, slots, slots], -1)
        rewards = torch.addcmul(rewards, lineage[..., :slots], reward)
        itself = self.constants.itself[first : first + width]
        lineage = torch.addcmul(itself, lineage, self.constants.decay)
        returns = torch.addcmul(rewards, lineage[..., :slots], value)
        self.used = used = first + width
        self.newest = slice(first, used)
        rows = [state, reward, value, lineage, returns, rewards]
        torch.cat(rows, -1, out=self.rows[:, first:used])

        sums = self.rows[:, :used, self.size + 2 + slots : -slots].sum(1).view(batch, 2, slots)[..., :used]
        self.visits, returned = sums.unbind(1)
        self.q = torch.addcdiv(self.rows[:, :used, self.size], returned, self.visits, value=self.discount)
        q = self.q[:, 1:]
        seen = torch.cat([self.low, self.high, q], 1) if first > 1 else q  # by earlier waves, too
        self.low, self.high = torch.aminmax(seen, dim=1, keepdim=True)

    def know(self, actions: Tensor, prior: Tensor | None) -> None:
        """The edges below the newest leaves: actions `[B * W, C, A]`, prior logits `[B * W, C]` or None."""
        batch, slots, edges, _ = self.actions.shape
        self.actions[:, self.newest] = actions.view(batch, -1, edges, actions.shape[-1])
        if prior is not None:
            if self.prior is None:
                self.prior = prior.new_zeros(batch, slots, edges)
            self.prior[:, self.newest] = prior.view(batch, -1, edges)

    def choices(self, settings: SearchSettings) -> Tensor:
        """The edge that the interior rule takes below every node in use, `[B, used]`."""
        children = self.children[:, : self.used]
        prior = None if self.prior is None else self.prior[:, : self.used]
        # Of every child its visits and its Q, and whether it is there: next to 0 where it is missing.
        there = self.constants.there[: self.used].expand_as(self.q)
        planes, own = torch.stack([self.visits, self.q, there], 1), self.visits.unsqueeze(-1)
        index = children.flatten(1).unsqueeze(1).expand(-1, 3, -1)
        found = planes.gather(2, index).unflatten(2, children.shape[1:])
        visits, q, there = found.unbind(1)
        known = found[:, 1:] if prior is None else found[:, 1:] * prior.softmax(-1).unsqueeze(1)
        value = self.rows[:, : self.used, self.size + 1 : self.size + 2]
        weighted, seen = known.sum(-1, keepdim=True).unbind(1)
        mixed = mixed_value(weighted, seen, own, value)
        scaled = self.sigma(torch.lerp(mixed, q, there), visits.amax(-1, keepdim=True), settings)
        improved = (scaled if prior is None else prior + scaled).softmax(-1)
        return torch.addcdiv(improved, visits, own, value=-1).argmax(-1)

    def descend(self, node: Tensor, visit: int, settings: SearchSettings) -> tuple[Tensor, Tensor]:
        """From root children `[B, W]` with `visit` visits to nodes whose chosen edge has no child."""
        if visit == 1:  # nothing hangs below them yet
            if self.prior is None:
                return node, self.constants.slots[:1].expand_as(node)
            return node, self.prior[:, : self.used].argmax(-1).gather(1, node)
        choices = self.choices(settings)
        child = self.children[:, : self.used].gather(2, choices.unsqueeze(-1)).squeeze(-1)
        # A child has a higher slot than its parent: where there is none, a node is followed by itself.
        following = torch.maximum(child, self.constants.slots[: self.used])
        for _ in range(visit - 1):  # a subtree with `visit` nodes is at most so deep
            node = following.gather(1, node)
        return node, choices.gather(1, node)

    def grow(self, node: Tensor, edge: Tensor) -> Tensor:
        """Hangs the next free slots below edges of nodes `[B, W]`; their actions `[B * W, A]`."""
        self.children[self.trees, node, edge] = self.constants.slots[self.used : self.used + node.shape[1]]
        return self.actions[self.trees, node, edge].flatten(0, 1)

    def sigma(self, completed: Tensor, most: Tensor | int, settings: SearchSettings) -> Tensor:
        """`sigma(q)` of completed Q `[B, ..., C]`; `most` visits has one of them, `[B, ..., 1]`."""
        if settings.normalization == "node":
            low, high = torch.aminmax(completed, dim=-1, keepdim=True)
            scaled = (completed - low) / (high - low).clamp_(min=settings.range_floor)
        else:
            shape = (-1,) + (1,) * (completed.dim() - 1)
            span = (self.high - self.low).clamp_(min=settings.range_floor)
            scaled = ((completed - self.low.view(shape)) / span.view(shape)).clamp_(0, 1)
        base, scale = settings.c_visit * settings.c_scale, settings.c_scale
        weight = torch.rsub(most, base, alpha=-scale) if isinstance(most, Tensor) else base + scale * most
        return scaled * weight


@dataclass(frozen=True)
class _Constants:
    """What trees of one size share.

    Attributes:
        slots: `[slots]`, their numbers.
        there: `[slots]`, 1, and next to 0 for slot 0, which stands for a missing child.
        root: `[2 + 4 * slots]`, what follows the state in the root's row.
        itself: `[slots, 2 * slots]`, what a node's discounts and `above` have of itself.
        decay: `[2 * slots]`, what of these its child keeps.
    """

    slots: Tensor
    there: Tensor
    root: Tensor
    itself: Tensor
    decay: Tensor


@cache  # a captured graph reads them for good
@torch.inference_mode(False)
def _constants(slots: int, discount: float, device: torch.device) -> _Constants:
    numbers = torch.arange(slots, device=device)
    return _Constants(
        slots=numbers,
        there=torch.where(numbers == 0, 1e-30, 1.0),
        root=torch.where(torch.arange(2 + 4 * slots, device=device) == 2 + slots, 1e-30, 0.0),
        itself=torch.eye(slots, device=device).repeat(1, 2),
        decay=torch.where(torch.arange(2 * slots, device=device) < slots, discount, 1.0),
    )


@torch.no_grad()
def search(
    model: SearchModel,
    proposal: Proposal,
    observation: Tensor,
    task: Tensor,
    settings: SearchSettings,
    generator: torch.Generator,
    roots: int | None = None,
) -> SearchResult:
    """Plans from every observation at once.

    Args:
        model: `root` and `step` (see `SearchModel`).
        proposal: gives the candidate actions of roots and interior nodes.
        observation: `[B, O]`.
        task: `[B]` int64.
        settings: see `SearchSettings`.
        generator: of all noise, on the observations' device.
        roots: search the first so many observations only; the network values all of them.
    """
    batch, slots = roots or observation.shape[0], settings.num_simulations + 1
    root_state, network_value = model.root(observation, task)
    root_state, root_value, task = root_state[:batch], network_value[:batch], task[:batch]
    candidates, prior = proposal.root(model, root_state, task, generator)
    noise = proposal.interior_noise(batch, slots, generator, root_state.device)
    considered = min(settings.max_considered, candidates.shape[1])
    fixed = fixed_scores(candidates, prior, settings.gumbel_scale, generator)
    root = Root(candidates, prior, fixed, root_value.float(), min(considered, settings.num_simulations))
    tree = _Tree(root_state, slots, noise.shape[2], candidates.shape[2], settings.discount)

    waves = plan_waves(considered, settings.num_simulations, settings.wave)
    # No repeat_interleave, for which a compiler fixes the number of roots.
    tasks = {w: task.unsqueeze(1).expand(-1, w).flatten() for w in {wave.width for wave in waves}}
    most, node = 0, tree.constants.slots[1 : root.visited + 1].expand(batch, -1)
    for wave in waves:
        first = tree.used
        if wave.visit == 0:
            parent = tree.rows[:, :1].expand(-1, wave.width, -1).flatten(0, 1)
            action = root.actions[:, first - 1 : first - 1 + wave.width].flatten(0, 1)
        else:
            if settings.wave or wave.width < node.shape[1]:  # otherwise the same ones again
                node = root.choose(tree, wave, most, settings)
            at, edge = tree.descend(node, wave.visit, settings)
            parent, action = tree.parents(at), tree.grow(at, edge)
        state, reward, value = model.step(parent[:, : tree.size], action, tasks[wave.width])
        tree.expand(parent, state, reward, value)
        most = max(most, wave.visit + 1)
        if tree.used < slots:
            tree.know(*proposal.interior(model, state, tasks[wave.width], noise[:, first : tree.used]))

    # As many visits as any: the last survivors of the halving, best of them by sigma(q).
    completed = root.completed(tree)
    scaled = root.scattered(tree.sigma(completed, most, settings))
    visits, q = tree.visits[:, 1 : root.visited + 1], completed[:, : root.visited]
    # (root.value + (visits * q).sum(1)) / slots
    parts = root.value.view(-1, 1, 1), visits.unsqueeze(1), q.unsqueeze(2)
    value = torch.baddbmm(*parts, beta=1 / slots, alpha=1 / slots).view(-1)
    if root.place is not None:
        visits = root.scattered(F.pad(visits, (0, 1)))
    scores = scaled if fixed is None else fixed + scaled
    best = scores.masked_fill(visits != most, -torch.inf).argmax(1)
    ratio = proposal.log_ratio(model, root_state, task, candidates)
    weights = sum([x for x in (prior, ratio) if x is not None], scaled).softmax(-1)
    return SearchResult(
        actions=candidates,
        visits=visits.long(),
        q=root.scattered(completed),
        weights=weights,
        best=best,
        action=take(candidates, best.unsqueeze(1)).squeeze(1),
        value=value,
        root_value=network_value.float(),
    )
