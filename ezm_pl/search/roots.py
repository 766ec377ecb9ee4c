"""The root's side of a search: its candidates, their scores, and which of them a wave visits.

Shapes as in `tree.py`: `B` roots, `R` root candidates, `C` actions of an interior node, `W` leaves of a wave.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from ezm_pl.search.halving import Wave

if TYPE_CHECKING:
    from ezm_pl.search.tree import SearchSettings, _Tree


class Root:
    """The candidates of the roots, best first where not all of them are visited.

    Their children are slots 1 to `visited`: the first phase visits them in this order.

    Args:
        actions: `[B, R, A]`.
        prior: logits `[B, R]`, or None where all are equal.
        fixed: the part of their scores that visits do not change, `[B, R]`, or None.
        value: the network's, `[B]`.
        visited: how many will be.
    """

    def __init__(
        self, actions: Tensor, prior: Tensor | None, fixed: Tensor | None, value: Tensor, visited: int
    ) -> None:
        self.visited, self.value, self.count = visited, value, actions.shape[1]
        self.actions, self.prior, self.fixed, self.place = actions, prior, fixed, None
        if visited < self.count:
            batch, device = actions.shape[0], actions.device
            order = torch.arange(visited, device=device).expand(batch, -1)
            if fixed is not None:
                order = fixed.argsort(dim=1, descending=True, stable=True)[:, :visited]
                self.fixed, self.actions = fixed.gather(1, order), take(actions, order)
                self.prior = None if prior is None else prior.softmax(-1).gather(1, order)
            place = torch.full((batch, self.count), visited, device=device)
            self.place = place.scatter_(1, order, torch.arange(visited, device=device).expand(batch, -1))

    def completed(self, tree: _Tree) -> Tensor:
        """Completed Q `[B, visited]`, behind it that of the others where there are any."""
        q = tree.q[:, 1 : self.visited + 1]
        if self.place is None:
            return q
        visits = tree.visits[:, 1 : self.visited + 1]
        seen = torch.ones_like(q) if self.prior is None else self.prior
        weighted, seen, visits = (part.sum(1, keepdim=True) for part in (seen * q, seen, visits))
        mixed = mixed_value(weighted, seen.clamp_(min=1e-12), visits + 1, self.value.unsqueeze(1))
        return torch.cat([q, mixed], 1)

    def scattered(self, ranked: Tensor) -> Tensor:
        """What `completed` has of candidates, in their own order `[B, R]`."""
        return ranked if self.place is None else ranked.gather(1, self.place)

    def choose(self, tree: _Tree, wave: Wave, most: int, settings: SearchSettings) -> Tensor:
        """The slots `[B, W]` of the best candidates with `wave.visit` visits; one has `most`."""
        slots = slice(self.visited + 1)  # from the root's on, which has another number of visits
        if self.fixed is None and settings.c_scale:
            scores = tree.q[:, slots]  # sigma keeps their order
        else:
            scores = tree.sigma(self.completed(tree), most, settings)[:, : self.visited]
            scores = F.pad(scores if self.fixed is None else scores + self.fixed, (1, 0))
        scores = scores.masked_fill(tree.visits[:, slots] != wave.visit, -torch.inf)
        return scores.argsort(dim=1, descending=True, stable=True)[:, : wave.width]


def fixed_scores(
    candidates: Tensor, prior: Tensor | None, scale: float, generator: torch.Generator
) -> Tensor | None:
    """Prior logits plus Gumbel noise `[B, R]` of root candidates; None where both are nothing."""
    fixed = None if prior is None else prior - prior.amax(1, keepdim=True)
    if not scale:
        return fixed
    gumbel = _gumbel(candidates[..., 0], scale, generator)
    return gumbel if fixed is None else gumbel + fixed


def _gumbel(like: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """Gumbel noise `[B, R]`."""
    uniform = torch.rand(like.shape, generator=generator, device=like.device).clamp(1e-20, 1 - 1e-7)
    return -torch.log(-torch.log(uniform)) * scale


def take(rows: Tensor, index: Tensor) -> Tensor:
    """`rows[b, index[b, w]]` of rows `[B, C, A]` for an index `[B, W]`: `[B, W, A]`."""
    return rows.gather(1, index.unsqueeze(-1).expand(-1, -1, rows.shape[2]))


def mixed_value(weighted: Tensor, seen: Tensor, visits: Tensor, value: Tensor) -> Tensor:
    """`v_mix` (Danihelka et al. 2022, appendix D) of nodes, `[..., 1]`.

    Args:
        weighted, seen: the visited actions' Q times prior, and their prior, summed; `seen` is above 0.
        visits, value: of the node itself (its actions' together and one) and the network's.
    """
    mean_q = weighted / seen
    return torch.addcdiv(mean_q, value - mean_q, visits)  # (value + (visits - 1) mean_q) / visits
