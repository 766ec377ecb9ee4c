"""Where candidate actions come from: continuous policies are sampled, discrete ones enumerated.

Shapes as in `tree.py`: `B` nodes, `R` root candidates, `C` interior candidates, `A` action size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from ezm_pl.spec.experiment import SearchSpec


class Proposal(Protocol):
    """Candidate actions and their prior logits, which are None where all are equal."""

    def root(
        self, model: Any, state: Tensor, task: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """Candidates `[B, R, A]` and prior logits `[B, R]` of root states `[B, D]`."""

    def log_ratio(self, model: Any, state: Tensor, task: Tensor, actions: Tensor) -> Tensor | None:
        """`log policy - log proposal` of root candidates `[B, R, A]`: `[B, R]`; None where all are zero.

        What the candidates' weights must be corrected by, to be an estimate of the improved policy
        and not of an improved proposal.
        """

    def interior_noise(
        self, batch: int, slots: int, generator: torch.Generator, device: torch.device
    ) -> Tensor:
        """All noise that interior nodes of a search will need, `[batch, slots, C, ...]`."""

    def interior(
        self, model: Any, state: Tensor, task: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Candidates `[B * W, C, A]` and prior logits `[B * W, C]` of `W` nodes in each of `B` trees.

        `B * W` may as well be two dimensions of these.

        Args:
            state, task: `[B * W, D]` and `[B * W]`. noise: `[B, W, C, ...]`.
        """


@dataclass(frozen=True)
class GaussianProposal:
    """Draws from the model's policy, some with a wider std. Draws have equal priors.

    The model's `policy(state, task)` gives a distribution with `action(noise)`.

    Attributes:
        action_size: `A`.
        root_scales: std scale of each root candidate, `[R]`.
        interior_scales: std scale of each interior candidate, `[C]`.
        corrected: whether weights are corrected for the width of the proposal (see `log_ratio`).
        mode: whether the first root candidate is the policy's mode.
    """

    action_size: int
    root_scales: tuple[float, ...]
    interior_scales: tuple[float, ...]
    corrected: bool = False
    mode: bool = False

    @classmethod
    def from_spec(cls, spec: SearchSpec, action_size: int) -> Self:
        """As an experiment's spec says, for the padded action size `A`."""
        return cls.mixed(
            action_size,
            spec.num_root_actions,
            spec.num_interior_actions,
            spec.policy_share,
            spec.exploration_std_scale,
            spec.correct_proposal,
            spec.mode_candidate,
        )

    @classmethod
    def mixed(
        cls,
        action_size: int,
        root: int,
        interior: int,
        policy_share: float,
        exploration_std_scale: float,
        corrected: bool = False,
        mode: bool = False,
    ) -> Self:
        """`policy_share` of the root candidates from the policy, the others with a wider std.

        The wider std is the policy's × `exploration_std_scale`.

        Of an interior node's candidates every second one is wide, the first is the policy's own.
        """
        own = round(root * policy_share)
        return cls(
            action_size,
            (1.0,) * own + (exploration_std_scale,) * (root - own),
            tuple(exploration_std_scale if i % 2 else 1.0 for i in range(interior)),
            corrected,
            mode,
        )

    def scaled(self, factor: float) -> Self:
        """The same with every std times `factor`."""
        roots = tuple(factor * scale for scale in self.root_scales)
        return replace(
            self, root_scales=roots, interior_scales=tuple(factor * scale for scale in self.interior_scales)
        )

    def root(
        self, model: Any, state: Tensor, task: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, None]:
        shape = (state.shape[0], len(self.root_scales), self.action_size)
        noise = torch.randn(shape, generator=generator, device=state.device)
        if self.mode:
            noise = F.pad(noise[:, 1:], (0, 0, 1, 0))  # not in place: a compiled search's input
        return self.draw(model, state, task, noise, self.root_scales)

    def log_ratio(self, model: Any, state: Tensor, task: Tensor, actions: Tensor) -> Tensor | None:
        """Against the mixture of all root scales (the balance heuristic, Veach & Guibas 1995).

        Sampled MuZero (Hubert et al. 2021) corrects by the same ratio. Without it candidates drawn with
        a wider std teach the policy that width; with it wide candidates hardly count where there are
        many actuators. None where `corrected` is off, as published.
        """
        if not self.corrected:
            return None
        policy = model.policy(state, task)
        spread = (torch.atanh(actions) - policy.mean.unsqueeze(1)) / policy.log_std.exp().unsqueeze(1)
        square = (spread**2 * policy.mask.unsqueeze(1)).sum(-1, keepdim=True)
        scales = _on_device(self.root_scales, state.device)
        dimensions = policy.mask.sum(-1).view(-1, 1, 1)
        proposal = -0.5 * square / scales**2 - dimensions * scales.log()
        return -0.5 * square.squeeze(-1) - proposal.logsumexp(-1) + math.log(len(self.root_scales))

    def interior_noise(
        self, batch: int, slots: int, generator: torch.Generator, device: torch.device
    ) -> Tensor:
        shape = (batch, slots, len(self.interior_scales), self.action_size)
        noise = torch.randn(shape, generator=generator, device=device)
        return noise * _on_device(self.interior_scales, device).unsqueeze(1)

    def interior(self, model: Any, state: Tensor, task: Tensor, noise: Tensor) -> tuple[Tensor, None]:
        return self.draw(model, state, task, noise)

    def draw(
        self,
        model: Any,
        state: Tensor,
        task: Tensor,
        noise: Tensor,
        scales: tuple[float, ...] | None = None,
    ) -> tuple[Tensor, None]:
        """Candidates `[..., R, A]` for standard-normal noise `[..., R, A]` and std scales `[R]`; no priors.

        Without scales, the noise has been multiplied by them. The states are `[N, D]`, `N` of them in all.
        """
        if scales is not None:
            noise = noise * _on_device(scales, state.device).unsqueeze(1)
        policy = model.policy(state, task)
        parts = (policy.mean, policy.log_std, policy.mask)
        wide = type(policy)(*(part.view(*noise.shape[:-2], 1, -1) for part in parts))
        return wide.action(noise), None


@dataclass(frozen=True)
class DiscreteProposal:
    """All of `num_actions` actions, one-hot, with the model's `policy_logits(state, task)` as prior."""

    num_actions: int

    def root(
        self, model: Any, state: Tensor, task: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        return self._all(model, state, task)

    def log_ratio(self, model: Any, state: Tensor, task: Tensor, actions: Tensor) -> None:
        """None: nothing is sampled."""

    def interior_noise(
        self, batch: int, slots: int, generator: torch.Generator, device: torch.device
    ) -> Tensor:
        return torch.zeros(1, 1, self.num_actions, device=device).expand(batch, slots, self.num_actions)

    def interior(self, model: Any, state: Tensor, task: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        return self._all(model, state, task)

    def _all(self, model: Any, state: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
        actions = torch.eye(self.num_actions, device=state.device)
        return actions.expand(state.shape[0], -1, -1), model.policy_logits(state, task).float()


@lru_cache
@torch.inference_mode(False)
def _on_device(scales: tuple[float, ...], device: torch.device) -> Tensor:
    """Copied to the device once: the host waits for such a copy."""
    return torch.tensor(scales, device=device)
