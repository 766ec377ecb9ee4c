"""The unrolled losses of a batch, as named terms: `docs/algorithm.md`, "Losses".

A term is a function from an `Unroll` to one number per window. Its weight is the field of
`LossSpec` with the same name, or stands in `loss.extra` (`docs/extending.md`, "A loss term").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial

import torch
from torch import Tensor

from ezm_pl.spec.experiment import LossSpec, TargetSpec
from ezm_pl.spec.extension import load_extension
from ezm_pl.spec.metrics import OPTIONAL_TERMS
from ezm_pl.training.batch import Batch, Targets
from ezm_pl.training.pathwise import QSpread, action_gradient
from ezm_pl.world_model import SquashedGaussian, WorldModel
from ezm_pl.world_model.closed_form import Cosine
from ezm_pl.world_model.learning import Network, learning_form
from ezm_pl.world_model.synchronised import count_batches
from ezm_pl.world_model.unrolled import unrolled


@dataclass(frozen=True)
class Unroll:
    """A batch of `B` windows and what the model predicts along `U` imagined steps.

    Attributes:
        model: the learning copy, in the form of `learning_form`.
        batch, targets: the windows and what to compare with.
        discount: per decision.
        searched: the positions that have a policy target.
        generator: of the policy's noise, and of the descriptions where tasks are given in words.
        spread: of Q, per task; None where no term needs it.
        task: `[B, E]`, the embeddings of the windows' tasks: one description for each window.
        latents: `[B, U + 1, S]`, `imagined` `[B, U, S]` after the first.
        seen: `[B, U, S]`, the latents of the observations after the first, without gradient.
        rewards: `[B, U]`, without gradient.
        values: `[B, U + 1]`, the mean of the value heads, without gradient.
        reward_error: `[B, U]`, the cross-entropy of the reward against the observed one; 0 where that is not
            known.
        value_error: `[B, U + 1]`, that of the value against its target, mean over the heads.
        path_error: `[B, U]`, that of the value against the model's own one-step return.
        policy: `[B * (U + 1), A]`.
        entropy: `[B, U + 1]`, of the policy.
    """

    model: WorldModel
    batch: Batch
    targets: Targets
    discount: float
    searched: slice
    generator: torch.Generator
    spread: QSpread | None
    task: Tensor
    latents: Tensor
    imagined: Tensor
    seen: Tensor
    rewards: Tensor
    values: Tensor
    reward_error: Tensor
    value_error: Tensor
    path_error: Tensor
    policy: SquashedGaussian
    entropy: Tensor


@dataclass(frozen=True)
class Losses:
    """What an update minimises.

    Attributes:
        total: the sum of `shares`, `[]`.
        names: of the terms.
        each: `[terms, B]`, summed over the unroll, importance-weighted (but for `UNWEIGHTED`) and divided by
            `U * B`.
        shares: `[terms, B]`, the same times the terms' weights.
        value_error: `[B]`, the mean value minus its target at the position itself.
        measure: computes `diagnostics`.
    """

    total: Tensor
    names: tuple[str, ...]
    each: Tensor
    shares: Tensor
    value_error: Tensor
    measure: Callable[[], dict[str, Tensor]]

    @property
    def windows(self) -> Tensor:
        """What each window adds to the total, `[B]`."""
        return self.shares.sum(0)

    @property
    def terms(self) -> dict[str, Tensor]:
        """Each term by name, `[]` without gradient."""
        return dict(zip(self.names, self.each.detach().sum(1), strict=True))

    @cached_property
    def diagnostics(self) -> dict[str, Tensor]:
        """Numbers about the policy and the values, by metric name; computed when first asked for."""
        return self.measure()


Term = Callable[[Unroll], Tensor]
TERMS: dict[str, Term] = {}
"""Every loss term by name, in the order in which they are computed."""

UNWEIGHTED = {"pathwise"}
"""Terms without importance weights, which correct what is fitted and not where the policy improves."""
MAXIMISED = {"entropy", "temporal"}
"""Terms that are to become large: what is minimised and reported is minus what their functions return."""


def term(function: Term) -> Term:
    """Registers a loss term under the function's name: `Unroll` to `[B]`, summed over the unroll."""
    TERMS[function.__name__] = function
    return function


def imagine(model: WorldModel, batch: Batch) -> Tensor:
    """Latents `[B, U + 1, S]`: the first observation's, then imagined ones."""
    task = model.embed(batch.task)
    first = model.encode(batch.observation[:, 0], task)
    imagined = imagine_from(
        model, first, batch.action, task.unsqueeze(1).expand(-1, batch.action.shape[1], -1)
    )
    return torch.cat([first.to(imagined.dtype).unsqueeze(1), imagined], 1)


def imagine_from(model: WorldModel, first: Tensor, action: Tensor, task: Tensor) -> Tensor:
    """Latents `[B, U, S]` after `first` `[B, S]`, each with its gradient halved.

    Args:
        model: its dynamics are unrolled.
        first: where that begins. action: `[B, U, A]`. task: embeddings `[B, U, E]`.
    """
    extras = (action, task) if model.embedding_used["dynamics"] else (action,)
    return unrolled(model.dynamics).unroll(first, *extras, share=0.5)


def encode_windows(model: WorldModel, batch: Batch, steps: int, task: Tensor) -> tuple[Tensor, Tensor]:
    """The latents of the first observations `[B, S]`; without gradient those of the next `[B, U, S]`."""
    assert isinstance(model.encoder, Network)
    x = model.normalizer(batch.observation)[:, : steps + 1].transpose(0, 1)
    graded = x[0]
    if model.embedding_used["representation"]:
        x, graded = torch.cat([x, task.detach().expand(steps + 1, -1, -1)], -1), task
    latent, seen = model.encoder.split(x.flatten(0, 1), graded)
    return latent, seen.view(steps, *latent.shape).transpose(0, 1)


def unroll(
    model: WorldModel,
    batch: Batch,
    targets: Targets,
    spec: TargetSpec,
    generator: torch.Generator,
    spread: QSpread | None = None,
) -> Unroll:
    """Runs the model along the windows. Each head sees all unroll steps in one pass."""
    size, steps = targets.reward.shape
    positions = steps + 1
    model = learning_form(model)
    embedded = model.embed(batch.task, generator)
    first, seen = encode_windows(model, batch, steps, embedded)
    embedded, action = embedded.to(first.dtype), batch.action.to(first.dtype)
    task = embedded.unsqueeze(1).expand(-1, positions, -1)
    before = task[:, :steps]
    imagined = imagine_from(model, first, action, before)
    latents = torch.cat([first.unsqueeze(1), imagined], 1)
    reward_logits = model.reward_logits(latents[:, :steps], action, before)
    features = model.features(latents, task)
    value_logits = model.value_logits(features)  # [H, B * (U + 1), Z]
    heads, rows = value_logits.shape[:2]
    log_probability = torch.cat([value_logits.flatten(0, 1), reward_logits]).float().log_softmax(-1)
    value_log_probability, reward_log_probability = log_probability.split([heads * rows, size * steps])
    with torch.no_grad():
        scalars = model.scalar.expectation(log_probability.exp())
        values = scalars[: heads * rows].view(heads, size, positions).mean(0)
        rewards = scalars[heads * rows :].view(size, steps)
        one_step = torch.add(rewards, values[:, 1:], alpha=spec.discount)
        two_hot = model.scalar.two_hot(torch.cat([targets.reward, targets.value, one_step], 1))
        known = torch.cat([targets.reward_mask, targets.value_mask, targets.policy_mask[:, :steps]], 1)
        sought = two_hot * known.neg().unsqueeze(-1)  # no number that gets a gradient changes its sign
    # The heads' mean cross-entropy against one target is that of their mean log-probability.
    value_log_probability = value_log_probability.view(heads, size, positions, -1).mean(0)
    predicted = [reward_log_probability.view(size, steps, -1), value_log_probability]
    predicted.append(value_log_probability[:, :steps])
    errors = (sought * torch.cat(predicted, 1)).sum(-1)
    reward_error, value_error, path_error = errors.split([steps, positions, steps], 1)
    policy = model.policy(features, batch.task.unsqueeze(1).expand(-1, positions))
    count_batches(model.reward_head, model.value_heads, model.policy_head)
    noise = torch.randn(policy.mean.shape, generator=generator, device=policy.mean.device)
    return Unroll(
        model=model,
        batch=batch,
        targets=targets,
        discount=spec.discount,
        searched=spec.policy_positions,
        generator=generator,
        spread=spread,
        task=embedded,
        latents=latents,
        imagined=imagined,
        seen=seen,
        rewards=rewards,
        values=values,
        reward_error=reward_error,
        value_error=value_error,
        path_error=path_error,
        policy=policy,
        entropy=policy.entropy(noise).view(size, positions),
    )


@term
def reward(x: Unroll) -> Tensor:
    """Cross-entropy of the predicted reward against the observed one."""
    return x.reward_error.sum(1)


@term
def value(x: Unroll) -> Tensor:
    """Cross-entropy of the value against its target, mean over the heads."""
    return x.value_error.sum(1)


@term
def policy(x: Unroll) -> Tensor:
    """Negative log-likelihood of the search's candidates, weighted by the search."""
    size, positions = x.values.shape
    shape = (size, positions, 1, -1)
    parts = (x.policy.mean, x.policy.log_std, x.policy.mask)
    mean, log_std, mask = (part.view(shape)[:, x.searched] for part in parts)
    decided = x.targets.policy_mask[:, x.searched]
    weight = x.targets.action_weight * decided.unsqueeze(-1) * (positions / decided.shape[1])
    weighted = SquashedGaussian(mean, log_std, mask * weight.unsqueeze(-1))
    return weighted.surprise(x.targets.action).sum((1, 2))


@term
def entropy(x: Unroll) -> Tensor:
    """The policy's entropy, which is maximised."""
    return (x.entropy * x.targets.policy_mask).sum(1)


@term
def temporal(x: Unroll) -> Tensor:
    """Cosine similarity of imagined and encoded latents (SimSiam), which is maximised."""
    model, steps = x.model, x.targets.reward.shape[1]
    assert isinstance(model.projector, Network)
    both = torch.cat([x.imagined, x.seen]).flatten(0, 1)
    guess, goal = model.projector.split(both, x.imagined)
    similarity = Cosine.apply(model.predict(guess), goal).view(-1, steps)
    return (similarity * x.targets.latent_mask).sum(1)


@term
def path(x: Unroll) -> Tensor:
    """Cross-entropy of the value against the model's own one-step return (Farquhar et al. 2021)."""
    return x.path_error.sum(1)


@term
def observation(x: Unroll) -> Tensor:
    """Mean squared error of the normalised observation decoded from imagined latents."""
    steps, model = x.targets.reward.shape[1], x.model
    seen = model.normalizer(x.batch.observation[:, 1 : steps + 1])
    decoded = model.decode_observation(x.imagined).float()
    used = model.observation_mask.index_select(0, x.batch.task).unsqueeze(1)
    error = ((decoded - seen).square() * used).sum(-1) / used.sum(-1)
    return (error * x.targets.latent_mask).sum(1)


@term
def pathwise(x: Unroll) -> Tensor:
    """The policy climbs the model's own Q at the first and the last latent (see `pathwise.py`)."""
    assert x.spread is not None
    size, positions = x.values.shape
    ends = slice(None, None, positions - 1)
    parts = (x.policy.mean, x.policy.log_std, x.policy.mask)
    at = SquashedGaussian(*(part.view(size, positions, -1)[:, ends].flatten(0, 1) for part in parts))
    noise = torch.randn(at.mean.shape, generator=x.generator, device=at.mean.device)
    action, task = at.action(noise), x.task.repeat_interleave(2, 0)
    decided = x.targets.policy_mask[:, ends]
    slope, q = action_gradient(x.model, x.latents[:, ends].flatten(0, 1), action, task, x.discount)
    spread = x.spread(q, x.batch.task.repeat_interleave(2), decided.flatten())
    climb = (slope * action).sum(-1) / spread
    return (-climb.view(size, 2) * decided).sum(1) * (positions / 2)


def weighted_terms(weights: LossSpec) -> dict[str, tuple[Term, float]]:
    """The terms of an experiment with their weights: those of this file, then its own (`loss.extra`)."""
    used = {name: weights.of(name) for name in TERMS if name not in OPTIONAL_TERMS or weights.of(name) > 0}
    own = {each.rpartition(":")[2]: (load_extension(each), weight) for each, weight in weights.extra.items()}
    return {name: (TERMS[name], weight) for name, weight in used.items()} | own


def losses(x: Unroll, spec: LossSpec, weights: Tensor | None = None) -> Losses:
    """Every term, and their weighted sum.

    Args:
        x: of a batch.
        spec: which terms there are, and their weights.
        weights: `[terms, 1]`, in the place of the spec's (`loss_weights`).
    """
    steps, used = x.targets.reward.shape[1], weighted_terms(spec)
    importance = x.batch.weight
    if UNWEIGHTED & used.keys():
        plain = torch.ones_like(importance)
        importance = torch.stack([plain if name in UNWEIGHTED else importance for name in used])
    count = steps * importance.shape[-1]
    signs = tuple((-1 if name in MAXIMISED else 1) / count for name in used)
    device = importance.device
    each = torch.stack([function(x) for function, _ in used.values()])
    each = each * (importance * _constants(signs, device))
    shares = each * (loss_weights(spec, device) if weights is None else weights)
    return Losses(
        total=shares.sum(),
        names=tuple(used),
        each=each,
        shares=shares,
        value_error=x.values[:, 0] - x.targets.value[:, 0],
        measure=partial(_diagnostics, x),
    )


def loss_weights(spec: LossSpec, device: torch.device) -> Tensor:
    """The weights of a spec's terms `[terms, 1]`."""
    return _constants(tuple(weight for _, weight in weighted_terms(spec).values()), device)


@cache
def _constants(values: tuple[float, ...], device: torch.device) -> Tensor:
    """`values` `[n, 1]`, brought to the device once."""
    return torch.tensor(values, device=device).unsqueeze(1)


@torch.no_grad()
def _diagnostics(x: Unroll) -> dict[str, Tensor]:
    """Means over positions at which a decision was taken."""
    size, positions = x.values.shape
    decided, targets = x.targets.policy_mask, x.targets
    count = decided.sum().clamp(min=1)
    dimensions = x.policy.mask.sum(-1).view(size, positions)
    std = (x.policy.log_std.exp() * x.policy.mask).sum(-1).view(size, positions) / dimensions
    mask = x.policy.mask.view(size, positions, 1, -1)[:, x.searched]
    far = ((targets.action.abs() > 0.95) * mask).sum(-1) / mask.sum(-1)
    searched = decided[:, x.searched]
    return {
        "value/predicted": (x.values * decided).sum() / count,
        "value/target": targets.value.mean(),
        "value/error": (x.values[:, 0] - targets.value[:, 0]).abs().mean(),
        "policy/entropy": (x.entropy / dimensions * decided).sum() / count,
        "policy/std": (std * decided).sum() / count,
        "policy/saturated_targets": ((far * targets.action_weight).sum(-1) * searched).sum()
        / searched.sum().clamp(min=1),
    }
