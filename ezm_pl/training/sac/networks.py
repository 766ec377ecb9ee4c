"""The networks of soft actor-critic: EZ-M's encoder with a policy and two Q heads.

Shapes: `B` positions, `O` padded observation, `A` padded action, `S` latent, `E` task embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ezm_pl.spec.experiment import ModelSpec
from ezm_pl.world_model import PolicyBounds, SquashedGaussian
from ezm_pl.world_model.layers import Head, RunningNorm, cap_norm, encoder_layers

Q_HEADS = 2
BOUNDS = PolicyBounds(min_log_std=-5.0, max_log_std=2.0)
"""The usual range of soft actor-critic: the temperature decides the std, not a bound."""


class SACActor(nn.Module):
    """What acts: normaliser, encoder and policy. Every layer has the size that `model` gives EZ-M's.

    Args:
        spec: sizes.
        observation_size: `O`.
        action_mask: `[T, A]`, 1 for a task's real action dimensions.
    """

    action_mask: Tensor

    def __init__(self, spec: ModelSpec, observation_size: int, action_mask: Tensor) -> None:
        super().__init__()
        tasks, actions = action_mask.shape
        self.observation_size = observation_size
        self.register_buffer("action_mask", action_mask.float(), persistent=False)
        self.normalizer = RunningNorm(observation_size)
        embedding = spec.task_embedding_size
        in_encoder, in_heads = (embedding * (part in spec.task_embedding_in) for part in _PARTS)
        self.in_encoder, self.in_heads = in_encoder > 0, in_heads > 0
        # Ranks wait for the gradient of every parameter that wants one.
        self.task_embedding = nn.Parameter(
            torch.randn(tasks, embedding) * 0.1, requires_grad=self.in_encoder or self.in_heads
        )
        self.encoder = encoder_layers(observation_size + in_encoder, spec.latent_size, spec.blocks)
        self.width = spec.latent_size + in_heads
        self.policy_head = Head(self.width, spec.head_size, 2 * actions, zero_last=True, norm="layer")

    def draw_heads(self, generator: torch.Generator) -> None:
        """Nothing is drawn: the policy alone acts."""

    def encode(self, observation: Tensor, task: Tensor) -> Tensor:
        """Observations `[B, O]` of tasks `[B]` to what the heads read, `[B, S + E]`."""
        table = cap_norm(self.task_embedding).index_select(0, task)
        x = self.normalizer(observation)
        latent = self.encoder(torch.cat([x, table], -1) if self.in_encoder else x)
        return torch.cat([latent, table], -1) if self.in_heads else latent

    def policy(self, features: Tensor, task: Tensor) -> SquashedGaussian:
        """The policy `[B, A]` of features `[B, S + E]`."""
        mask = self.action_mask.index_select(0, task)
        return SquashedGaussian.from_raw(self.policy_head(features)[0], mask, BOUNDS)

    def policy_of(self, observation: Tensor, task: Tensor) -> SquashedGaussian:
        """The policies `[B, A]` of observations `[B, O]` of tasks `[B]`."""
        return self.policy(self.encode(observation, task), task)


class SACNetwork(SACActor):
    """What learns: the actor and two Q functions. Arguments as for `SACActor`."""

    def __init__(self, spec: ModelSpec, observation_size: int, action_mask: Tensor) -> None:
        super().__init__(spec, observation_size, action_mask)
        self.q_heads = Head(self.width + action_mask.shape[1], spec.head_size, 1, heads=Q_HEADS, norm="layer")

    def q(self, features: Tensor, action: Tensor) -> Tensor:
        """Both Q of features `[B, S + E]` and actions `[B, A]`: `[2, B]`."""
        return self.q_heads(torch.cat([features, action], -1)).squeeze(-1)

    def critic_parameters(self) -> list[nn.Parameter]:
        """What the Q loss trains: all but the policy head."""
        return [x for name, x in self.named_parameters() if not name.startswith("policy_head.")]

    def acting_state(self) -> dict[str, Tensor]:
        """The state dict of a `SACActor` with these weights."""
        return {name: x for name, x in self.state_dict().items() if not name.startswith("q_heads.")}


_PARTS = ("representation", "value_policy")
"""EZ-M's names (`model.task_embedding_in`) for the encoder and the heads."""
