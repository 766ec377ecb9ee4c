"""The world model: representation, dynamics, reward, value and policy, shared by all tasks.

Shapes: `B` positions, `O` padded observation, `A` padded action, `S` latent, `E` task embedding,
`H` value heads, `Z` atoms. Sources: EZ-M (arXiv 2603.01452), EfficientZero V2 (arXiv 2403.00564).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ezm_pl.spec.experiment import ModelSpec
from ezm_pl.world_model.language import DescribedTasks
from ezm_pl.world_model.layers import Head, ResidualBlock, RunningNorm, Transition, cap_norm, encoder_layers
from ezm_pl.world_model.policy import PolicyBounds, SquashedGaussian
from ezm_pl.world_model.scalars import CategoricalScalar


class WorldModel(nn.Module):
    """One world model for `T` tasks.

    Wherever a method takes tasks `[B]`, but in `policy`, it also takes their embeddings `[B, E]` (`embed`).

    Args:
        spec: sizes (about 16M parameters by default).
        observation_size: `O`.
        action_mask: `[T, A]`, 1 for a task's real action dimensions.
        inference: build the form without BatchNorm and projections that `InferenceModel` runs. Its task
            embeddings are a table, whatever they were learned from.
        decoded: `[T, O]`, 1 for a task's real observation dimensions: build a decoder of them.
    """

    action_mask: Tensor
    observation_mask: Tensor

    def __init__(
        self,
        spec: ModelSpec,
        observation_size: int,
        action_mask: Tensor,
        *,
        inference: bool = False,
        decoded: Tensor | None = None,
    ) -> None:
        super().__init__()
        tasks, actions = action_mask.shape
        self.spec = spec
        self.register_buffer("action_mask", action_mask.float(), persistent=False)
        self.bounds = PolicyBounds(spec.min_log_std, spec.max_log_std, spec.initial_log_std, spec.max_mean)
        self.scalar = CategoricalScalar(spec.atoms, spec.support)
        self.normalizer = RunningNorm(observation_size)
        latent, embedding = spec.latent_size, spec.task_embedding_size
        used = {part: embedding * (part in spec.task_embedding_in) for part in _PARTS}
        self.embedding_used = {part: size > 0 for part, size in used.items()}
        # Ranks wait for the gradient of every parameter that wants one.
        wanted = any(self.embedding_used.values())
        self.described: DescribedTasks | None = None
        if spec.task_conditioning == "id" or inference:
            self.task_embedding = nn.Parameter(torch.randn(tasks, embedding) * 0.1, requires_grad=wanted)
        else:
            self.described = DescribedTasks(tasks, embedding).requires_grad_(wanted)
        self.encoder = encoder_layers(observation_size + used["representation"], latent, spec.blocks)
        self.dynamics = Transition(latent, used["dynamics"] + actions, spec.blocks)
        self.action_encoder = nn.Sequential(
            nn.Linear(actions + used["reward"], spec.action_embedding_size),
            nn.LayerNorm(spec.action_embedding_size),
            nn.Tanh(),
        )
        form: dict[str, Any] = {"folded": inference, "norm": spec.head_norm}
        self.reward_trunk = Transition(latent, used["reward"] + spec.action_embedding_size, spec.blocks)
        self.reward_head = Head(latent, spec.head_size, spec.atoms, zero_last=True, **form)
        width = latent + used["value_policy"]
        self.trunk = nn.Sequential(*(ResidualBlock(width) for _ in range(spec.blocks)), nn.LayerNorm(width))
        self.value_heads = Head(width, spec.head_size, spec.atoms, heads=spec.value_heads, **form)
        self.policy_head = Head(width, spec.head_size, 2 * actions, zero_last=True, **form)
        if not inference:
            wide, out = spec.projector_size, spec.projection_size
            self.projector = nn.Sequential(
                nn.Linear(latent, wide), nn.LayerNorm(wide), nn.ReLU(),
                nn.Linear(wide, wide), nn.LayerNorm(wide), nn.ReLU(),
                nn.Linear(wide, out), nn.LayerNorm(out),
            )  # fmt: skip
            self.predictor = nn.Sequential(
                nn.Linear(out, wide), nn.LayerNorm(wide), nn.ReLU(), nn.Linear(wide, out)
            )
        if decoded is not None:
            self.register_buffer("observation_mask", decoded.float(), persistent=False)
            self.decoder = nn.Linear(latent, observation_size)

    def _with_task(self, part: str, task: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        """`x` `[B, *]`, and the task's embedding `[B, E]` where `part` uses it."""
        if not self.embedding_used[part]:
            return (x,)
        return x, (task if task.is_floating_point() else self.embed(task)).to(x.dtype)

    def embed(self, task: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The capped embeddings `[B, E]` of tasks `[B]`.

        Args:
            task: ids.
            generator: draws one of its task's descriptions for each row, where tasks are given in words.
        """
        if self.described is not None and generator is not None:
            return self.described(task, generator)
        return F.embedding(task, self.capped_embedding())  # its gradient is one operation

    def capped_embedding(self) -> Tensor:
        """The task embeddings `[T, E]`, L2 norm at most 1; of tasks in words, those by which agents act."""
        return cap_norm(self.task_embedding) if self.described is None else self.described.table()

    @property
    def _embedding_weight(self) -> Tensor:
        return self.task_embedding if self.described is None else self.described.projection

    def encode(self, observation: Tensor, task: Tensor) -> Tensor:
        """Observations `[B, O]` of tasks `[B]` to latents `[B, S]`."""
        x = self.normalizer(observation).to(self._embedding_weight.dtype)
        return self.encoder(torch.cat(self._with_task("representation", task, x), -1))

    def next_latent(self, latent: Tensor, action: Tensor, task: Tensor) -> Tensor:
        """The latent `[B, S]` after an action `[B, A]`."""
        return self.dynamics(latent, *self._with_task("dynamics", task, action.to(latent.dtype)))

    def reward_logits(self, latent: Tensor, action: Tensor, task: Tensor) -> Tensor:
        """Logits `[B, Z]` of the reward for an action `[B, A]` in a latent `[B, S]`."""
        inputs = self._with_task("reward", task, action.to(latent.dtype))
        inputs = (self.action_encoder(torch.cat(inputs, -1)), *inputs[1:])
        return self.reward_head(self.reward_trunk(latent, *inputs)).squeeze(0)

    def features(self, latent: Tensor, task: Tensor) -> Tensor:
        """What the value and policy heads read, `[B, S + E]`."""
        return self.trunk(torch.cat(self._with_task("value_policy", task, latent), -1))

    def value_logits(self, features: Tensor, heads: Sequence[int] | None = None) -> Tensor:
        """Logits `[H, B, Z]` of the value heads (or of those named)."""
        return self.value_heads(features, heads)

    def policy(self, features: Tensor, task: Tensor) -> SquashedGaussian:
        """The policy `[B, A]` of features `[B, S + E]` and tasks `[B]`, in one dimension or several."""
        mask = self.action_mask[task].flatten(0, -2)
        return SquashedGaussian.from_raw(self.policy_head(features).squeeze(0), mask, self.bounds)

    def decode_observation(self, latent: Tensor) -> Tensor:
        """The normalised observations `[..., O]` of latents `[..., S]`."""
        return self.decoder(latent)

    def predict(self, projection: Tensor) -> Tensor:
        """Temporal consistency's prediction, `[B, P] -> [B, P]` (SimSiam's predictor)."""
        return self.predictor(projection)


_PARTS = ("representation", "dynamics", "reward", "value_policy")
