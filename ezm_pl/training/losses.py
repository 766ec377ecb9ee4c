"""The unrolled losses of a batch (ALGORITHM, section 5)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ezm_pl.spec.experiment import LossSpec
from ezm_pl.training.batch import Batch, Targets
from ezm_pl.world_model import SquashedGaussian, WorldModel


class Losses(NamedTuple):
    """Each term averaged over the batch (importance-weighted, summed over the unroll, over `U`).

    `value_error` `[B]` is the mean-head value minus its target at the position itself; the others are
    diagnostics of the policy: entropy a real action dimension, mean std, and the share of target
    actions beyond 0.95.
    """

    total: Tensor
    reward: Tensor
    value: Tensor
    policy: Tensor
    entropy: Tensor
    temporal: Tensor
    path: Tensor
    value_error: Tensor
    predicted_value: Tensor
    policy_entropy: Tensor
    policy_std: Tensor
    saturated_targets: Tensor


def halve_gradient(x: Tensor) -> Tensor:
    """`x` itself, whose gradient is halved."""
    return torch.lerp(x.detach(), x, 0.5)


def unroll(model: WorldModel, batch: Batch, steps: int) -> Tensor:
    """Latents `[B, U + 1, S]` from the first observation on, imagined after the first."""
    latents = [model.encode(batch.observation[:, 0], batch.task)]
    for k in range(steps):
        latents.append(halve_gradient(model.next_latent(latents[-1], batch.action[:, k], batch.task)))
    return torch.stack([s.to(latents[-1].dtype) for s in latents], 1)


def losses(
    model: WorldModel,
    batch: Batch,
    targets: Targets,
    weights: LossSpec,
    discount: float,
    generator: torch.Generator,
) -> Losses:
    """All losses of a batch.

    Heads see all unroll steps in one pass, so their BatchNorm statistics cover the whole unroll.
    """
    size, steps = targets.reward.shape
    positions = steps + 1
    task = batch.task.repeat_interleave(positions)
    step_task = batch.task.repeat_interleave(steps)
    latents = unroll(model, batch, steps)

    def total(term: Tensor, mask: Tensor) -> Tensor:
        """`[B, *]` terms to a scalar: over the unroll, importance-weighted, over the batch."""
        return ((term * mask).sum(1) * batch.weight).mean() / steps

    scalar = model.scalar
    reward_logits = model.reward_logits(
        latents[:, :steps].flatten(0, 1), batch.action.flatten(0, 1), step_task
    ).view(size, steps, -1)
    reward = total(scalar.loss(reward_logits, scalar.two_hot(targets.reward)), targets.reward_mask)

    features = model.features(latents.flatten(0, 1), task)
    value_logits = model.value_logits(features).unflatten(1, (size, positions))  # [H, B, U + 1, Z]
    # The heads' mean cross-entropy against one target is that of their mean log-probability.
    log_probability = value_logits.float().log_softmax(-1).mean(0)
    value = total(-(scalar.two_hot(targets.value) * log_probability).sum(-1), targets.value_mask)

    with torch.no_grad():
        values = scalar.decode(value_logits).mean(0)
        imagined = scalar.two_hot(scalar.decode(reward_logits) + discount * values[:, 1:])
    path_loss = -(imagined * log_probability[:, :steps]).sum(-1)
    path = total(path_loss, targets.policy_mask[:, :steps])

    policy = model.policy(features, task)
    shape = (size, positions, 1, -1)
    wide = SquashedGaussian(policy.mean.view(shape), policy.log_std.view(shape), policy.mask.view(shape))
    likelihood = (targets.action_weight * wide.log_prob(targets.action)).sum(-1)
    policy_loss = total(-likelihood, targets.policy_mask)
    noise = torch.randn(policy.mean.shape, generator=generator, device=policy.mean.device)
    entropy_per_position = policy.entropy(noise).view(size, positions)
    entropy = total(entropy_per_position, targets.policy_mask)

    # With gradients first: autocast keeps weights as it first cast them, in torch before 2.11 for good
    # without gradients if it was where there are none.
    guess = model.predict(model.project(latents[:, 1:].flatten(0, 1)))
    with torch.no_grad():
        seen = batch.observation[:, 1:positions].flatten(0, 1)
        goal = model.project(model.encode(seen, step_task))
    similarity = F.cosine_similarity(guess.float(), goal.float(), dim=-1).view(size, steps)
    temporal = total(-similarity, targets.latent_mask)

    total_loss = (
        weights.reward * reward
        + weights.value * value
        + weights.policy * policy_loss
        - weights.entropy * entropy
        + weights.temporal * temporal
        + weights.path * path
    )
    with torch.no_grad():
        dimensions = policy.mask.sum(-1).view(size, positions)
        decided = targets.policy_mask
        count = decided.sum().clamp(min=1)
        std = (policy.log_std.exp() * policy.mask).sum(-1).view(size, positions) / dimensions
        far = ((targets.action.abs() > 0.95) * wide.mask).sum(-1) / wide.mask.sum(-1)
        far = (far * targets.action_weight).sum(-1)
    return Losses(
        total=total_loss,
        reward=reward.detach(),
        value=value.detach(),
        policy=policy_loss.detach(),
        entropy=entropy.detach(),
        temporal=temporal.detach(),
        path=path.detach(),
        value_error=values[:, 0] - targets.value[:, 0],
        predicted_value=(values * decided).sum() / count,
        policy_entropy=(entropy_per_position.detach() / dimensions * decided).sum() / count,
        policy_std=(std * decided).sum() / count,
        saturated_targets=(far * decided).sum() / count,
    )
