"""The losses of soft actor-critic with a temperature per task: `docs/baseline.md`.

Source: Haarnoja et al. 2018 (arXiv 1812.05905). Shapes: `B` positions, `n` TD steps, `O` observation,
`A` action, `T` tasks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from ezm_pl.spec import Experiment
from ezm_pl.training.batch import Batch
from ezm_pl.training.losses import Losses
from ezm_pl.training.sac.networks import SACNetwork
from ezm_pl.training.targets import n_step_returns
from ezm_pl.world_model import SquashedGaussian


def soft_target(
    batch: Batch, reward: Tensor, next_q: Tensor, next_entropy: Tensor, temperature: Tensor, discount: float
) -> Tensor:
    """`[B]`: `sum_i discount^i r_i + discount^n (min Q'(s_n, a_n) + temperature * entropy(s_n))`.

    After a termination nothing is bootstrapped; after a time limit the episode's last observation is.

    Args:
        batch: its `length` and `terminated`.
        reward: `[B, n]`.
        next_q: `[2, B]`, the target network's, of the observation `n` steps on and an action drawn there.
        next_entropy: `[B]`, of the policy there.
        temperature: `[B]`.
        discount: per decision.
    """
    bootstrap = next_q.amin(0) + temperature * next_entropy
    returns = n_step_returns(reward, bootstrap.unsqueeze(1), batch.length, batch.terminated, discount)
    return returns.squeeze(1)


def critic_loss(q: Tensor, target: Tensor) -> Tensor:
    """`[B]`: half the squared error of both Q `[2, B]`, summed."""
    return 0.5 * (q - target).square().sum(0)


def actor_loss(q: Tensor, entropy: Tensor, temperature: Tensor) -> Tensor:
    """`[B]`: what the policy minimises, from both Q `[2, B]` of an action that it has drawn."""
    return -(q.amin(0) + temperature * entropy)


def temperature_loss(temperature: Tensor, entropy: Tensor, target_entropy: Tensor) -> Tensor:
    """`[B]`: falls with the temperature where the policy's entropy is above its target."""
    return temperature * (entropy - target_entropy)


def frozen_q(network: SACNetwork, features: Tensor, action: Tensor) -> Tensor:
    """Both Q `[2, B]`, with a gradient for the action alone."""
    frozen = {name: x.detach() for name, x in network.q_heads.named_parameters()}
    inputs = torch.cat([features.detach(), action], -1)
    q: Tensor = functional_call(network.q_heads, frozen, (inputs,))
    return q.squeeze(-1)


def sac_losses(
    batch: Batch,
    network: SACNetwork,
    target_network: SACNetwork,
    log_temperature: Tensor,
    experiment: Experiment,
    generator: torch.Generator,
) -> Losses:
    """The three losses of a batch, which share one backward pass: each has parameters of its own.

    The policy reads the encoder's features without a gradient, so the Q loss alone trains the encoder. All
    gradients are those at the weights before the update.

    Args:
        batch: windows of at least `sac.td_steps` steps.
        network: learns.
        target_network: bootstraps.
        log_temperature: `[T]`.
        experiment: discount, TD steps, target entropy.
        generator: of the policy's noise.
    """
    steps, discount = experiment.sac.td_steps, experiment.targets.discount
    task, scaled = batch.task, experiment.targets.return_scaling
    reward = batch.reward / batch.return_scale.unsqueeze(1) if scaled else batch.reward
    temperature = log_temperature.exp().index_select(0, task)
    constant = temperature.detach()

    with torch.no_grad():
        following = batch.observation[:, steps]
        there = network.policy(network.encode(following, task), task)
        noise = _noise(there, generator)
        next_q = target_network.q(target_network.encode(following, task), there.action(noise))
        target = soft_target(batch, reward[:, :steps], next_q, there.entropy(noise), constant, discount)

    features = network.encode(batch.observation[:, 0], task)
    q = network.q(features, batch.action[:, 0])
    policy = network.policy(features.detach(), task)
    noise = _noise(policy, generator)
    # Exact for the Gaussian, one sample for tanh's share: the same mean as -log pi, with less variance.
    entropy = policy.entropy(noise)
    dimensions = policy.mask.sum(-1)
    each = {
        "critic": critic_loss(q, target),
        "actor": actor_loss(frozen_q(network, features, policy.action(noise)), entropy, constant),
        "temperature": temperature_loss(
            temperature, entropy.detach(), experiment.sac.target_entropy * dimensions
        ),
    }
    value = q.detach().mean(0)
    shares = torch.stack([*each.values()]) / len(task)

    @torch.no_grad()
    def measure() -> dict[str, Tensor]:
        std = (policy.log_std.exp() * policy.mask).sum(-1) / dimensions
        named = {
            "value/predicted": value.mean(),
            "value/target": target.mean(),
            "value/error": (value - target).abs().mean(),
            "policy/entropy": (entropy / dimensions).mean(),
            "policy/std": std.mean(),
        }
        return named | temperatures(log_temperature, experiment.tasks)

    return Losses(
        total=shares.sum(),
        names=tuple(each),
        each=shares,
        shares=shares,
        value_error=value - target,
        measure=measure,
    )


def temperatures(log_temperature: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
    """Each task's temperature, by the name that it is logged by."""
    values = log_temperature.detach().exp()
    return {f"temperature/{task}": values[index] for index, task in enumerate(tasks)}


def _noise(policy: SquashedGaussian, generator: torch.Generator) -> Tensor:
    return torch.randn(policy.mean.shape, generator=generator, device=policy.mean.device)


@torch.no_grad()
def track(target: SACNetwork, network: SACNetwork, rate: float) -> None:
    """Moves the target network's weights by `rate` towards the learner's; takes over its statistics."""
    torch._foreach_lerp_([*target.parameters()], [*network.parameters()], rate)
    for mine, theirs in zip(target.buffers(), network.buffers(), strict=True):
        mine.copy_(theirs)
