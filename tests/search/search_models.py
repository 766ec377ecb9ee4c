"""Random models, and a plain one-node-at-a-time search to compare the batched one with.

Shapes: `M` models, `S` states, `C` actions, `B` roots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ezm_pl.search import DiscreteProposal, SearchResult, SearchSettings, plan_waves, search
from ezm_pl.world_model import PolicyBounds, SquashedGaussian


@dataclass(frozen=True)
class TabularModel:
    """`M` models side by side; a root's task picks its model, its observation `[B, 1]` the first state.

    Attributes:
        next_state: `[M, S, C]` int64.
        reward: `[M, S, C]`.
        value: `[M, S]`.
        prior: `[M, S, C]` logits.
    """

    next_state: Tensor
    reward: Tensor
    value: Tensor
    prior: Tensor

    @classmethod
    def random(
        cls,
        models: int,
        states: int,
        actions: int,
        seed: int,
        *,
        prior_scale: float = 1.0,
        reward_scale: float = 1.0,
        value_scale: float = 2.0,
    ) -> TabularModel:
        generator = torch.Generator().manual_seed(seed)
        shape = (models, states, actions)
        return cls(
            torch.randint(states, shape, generator=generator),
            torch.randn(shape, generator=generator) * reward_scale,
            torch.randn(shape[:2], generator=generator) * value_scale,
            torch.randn(shape, generator=generator) * prior_scale,
        )

    @property
    def models(self) -> int:
        return self.value.shape[0]

    @property
    def actions(self) -> int:
        return self.prior.shape[2]

    def root(self, observation: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
        return observation, self.value[task, observation[:, 0].long()]

    def step(self, state: Tensor, action: Tensor, task: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        here, edge = state[:, 0].long(), action.argmax(-1)
        following = self.next_state[task, here, edge]
        return following.unsqueeze(-1).float(), self.reward[task, here, edge], self.value[task, following]

    def policy_logits(self, state: Tensor, task: Tensor) -> Tensor:
        return self.prior[task, state[:, 0].long()]


@dataclass(frozen=True)
class FewBelowRoot(DiscreteProposal):
    """All actions at the root, only the first `interior_actions` below it (published: 16 and 2)."""

    interior_actions: int = 2

    def interior_noise(
        self, batch: int, slots: int, generator: torch.Generator, device: torch.device
    ) -> Tensor:
        return super().interior_noise(batch, slots, generator, device)[..., : self.interior_actions]

    def interior(self, model: Any, state: Tensor, task: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        actions, logits = super().interior(model, state, task, noise)
        return actions[:, : self.interior_actions], logits[:, : self.interior_actions]


def search_tables(
    model: TabularModel, settings: SearchSettings, proposal: DiscreteProposal | None = None, seed: int = 0
) -> SearchResult:
    """One search in each of the `M` models, all from state 0."""
    observation = torch.zeros(model.models, 1)
    task = torch.arange(model.models)
    generator = torch.Generator().manual_seed(seed)
    proposal = proposal or DiscreteProposal(model.actions)
    return search(model, proposal, observation, task, settings, generator)


class SmoothModel:
    """A small random continuous world with a Gaussian policy; tasks differ in their reward's direction."""

    def __init__(self, size: int = 6, action_size: int = 3, tasks: int = 4, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.move, self.push = draw(size, size) / size**0.5, draw(action_size, size)
        self.goal, self.worth, self.centre = draw(tasks, size), draw(size, 1), draw(size, action_size)
        self.mask = torch.ones(tasks, action_size)

    def root(self, observation: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
        return observation, self.value(observation)

    def step(self, state: Tensor, action: Tensor, task: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        following = torch.tanh(state @ self.move + action @ self.push)
        return following, (following * self.goal[task]).sum(-1), self.value(following)

    def value(self, state: Tensor) -> Tensor:
        return (state @ self.worth).squeeze(-1)

    def policy(self, state: Tensor, task: Tensor) -> SquashedGaussian:
        mean = 0.3 * state @ self.centre
        raw = torch.cat([mean, torch.zeros_like(mean)], -1)
        return SquashedGaussian.from_raw(raw, self.mask[task], PolicyBounds(initial_log_std=-1.0))


@dataclass
class Node:
    """One node of the plain search; its children appear as they are expanded."""

    state: int
    reward: float
    value: float
    prior: list[float]
    total: float = 0.0
    visits: int = 0
    children: dict[int, Node] = field(default_factory=dict)


class PlainSearch:
    """docs/algorithm.md, "Search", in tree normalisation: Python floats, one node after the other.

    `ranges` keeps the smallest and largest Q after each wave.

    Args:
        model: tables; model `index` of them is searched from state 0.
        interior_actions: how many of the actions exist below the root.
        settings: of the search; `wave` decides how long the range of Q stays frozen.
    """

    def __init__(
        self, model: TabularModel, index: int, settings: SearchSettings, interior_actions: int
    ) -> None:
        self.model, self.index, self.settings = model, index, settings
        self.interior_actions = interior_actions
        self.low, self.high = math.inf, -math.inf
        self.ranges: list[tuple[float, float]] = []
        self.root = self.node(0, 0.0, model.actions)
        self.root.total, self.root.visits = self.root.value, 1
        for wave in plan_waves(
            min(settings.max_considered, model.actions), settings.num_simulations, settings.wave
        ):
            scores = self.scores(self.root, 0, self.low, self.high)
            counts = self.counts(self.root)
            ready = [a for a in range(model.actions) if counts[a] == wave.visit]
            chosen = sorted(ready, key=lambda a: (-scores[a], a))[: wave.width]
            low, high = self.low, self.high
            paths = [self.descend(action, low, high) for action in chosen]
            for path in paths:
                self.back_up(path)
            for path in paths:
                for node in path[1:]:
                    self.low = min(self.low, self.q(node))
                    self.high = max(self.high, self.q(node))
            self.ranges.append((self.low, self.high))

    def node(self, state: int, reward: float, actions: int) -> Node:
        value = float(self.model.value[self.index, state])
        return Node(state, reward, value, self.model.prior[self.index, state, :actions].double().tolist())

    def q(self, node: Node) -> float:
        return node.reward + self.settings.discount * node.total / node.visits

    def counts(self, node: Node) -> list[int]:
        return [node.children[a].visits if a in node.children else 0 for a in range(len(node.prior))]

    def completed(self, node: Node) -> list[float]:
        weights = [math.exp(p) for p in node.prior]
        if not node.children:
            return [node.value] * len(node.prior)
        seen = sum(weights[a] for a in node.children)
        mean = sum(weights[a] * self.q(child) for a, child in node.children.items()) / seen
        count = sum(self.counts(node))
        mix = (node.value + count * mean) / (count + 1)
        return [self.q(node.children[a]) if a in node.children else mix for a in range(len(node.prior))]

    def scores(self, node: Node, visit: int, low: float, high: float) -> list[float]:
        """Prior logits plus sigma of the completed Q."""
        s = self.settings
        if low > high:
            low = high = 0.0
        scale = (s.c_visit + max(self.counts(node))) * s.c_scale
        span = max(high - low, s.range_floor)
        return [
            p + scale * min(max((q - low) / span, 0.0), 1.0)
            for p, q in zip(node.prior, self.completed(node), strict=True)
        ]

    def descend(self, action: int, low: float, high: float) -> list[Node]:
        """The path from the root to a new leaf."""
        path = [self.root]
        while action in path[-1].children:
            node = path[-1].children[action]
            path.append(node)
            scores, counts = self.scores(node, 0, low, high), self.counts(node)
            total = sum(math.exp(x - max(scores)) for x in scores)
            gain = [
                math.exp(x - max(scores)) / total - n / (1 + sum(counts))
                for x, n in zip(scores, counts, strict=True)
            ]
            action = gain.index(max(gain))
        parent = path[-1]
        following = int(self.model.next_state[self.index, parent.state, action])
        reward = float(self.model.reward[self.index, parent.state, action])
        leaf = self.node(following, reward, self.interior_actions)
        parent.children[action] = leaf
        return [*path, leaf]

    def back_up(self, path: list[Node]) -> None:
        value = path[-1].value
        for node in reversed(path):
            node.total += value
            node.visits += 1
            value = node.reward + self.settings.discount * value
