"""The world model as the search sees it: `root`, `step` and `policy`, folded and in low precision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ezm_pl.spec.experiment import ModelSpec
from ezm_pl.world_model.layers import Head, RunningNorm
from ezm_pl.world_model.model import WorldModel
from ezm_pl.world_model.policy import SquashedGaussian


class InferenceModel(nn.Module):
    """A frozen copy of a `WorldModel` for acting and reanalysis.

    BatchNorm is folded into the layers before it, weights are held in `dtype`, nothing has a
    gradient. A search state is `[B, 2S + E]`: the latent, then the features of the heads, so that a
    policy asked for later costs its head alone.

    Args:
        spec, observation_size, action_mask: as for `WorldModel`.
        dtype: of weights and states; scalars and policies come out in float32.
    """

    def __init__(
        self, spec: ModelSpec, observation_size: int, action_mask: Tensor, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.model = WorldModel(spec, observation_size, action_mask, inference=True)
        self.model.requires_grad_(False)
        for parameter in self.model.parameters():
            parameter.data = parameter.data.to(dtype)
        self.heads: tuple[int, ...] = (0, 1)
        self.eval()

    def draw_heads(self, generator: torch.Generator) -> None:
        """Draws the two value heads whose minimum is the value, until the next draw."""
        drawn = torch.randperm(self.model.spec.value_heads, generator=generator)[:2]
        self.heads = tuple(sorted(drawn.tolist()))

    @torch.no_grad()
    def load(self, source: WorldModel | InferenceModel) -> None:
        """Copies the weights of `source`, folding BatchNorm where it has any."""
        trained = source.model if isinstance(source, InferenceModel) else source
        modules = dict(trained.named_modules())
        for name, module in self.model.named_modules():
            other = modules.get(name)
            if isinstance(module, Head):
                assert isinstance(other, Head)
                module.fold(other)
            elif isinstance(module, RunningNorm):
                module.load_state_dict(other.state_dict())  # type: ignore[union-attr]
        mine: list[Tensor] = []
        theirs: list[Tensor] = []
        source_parameters = dict(trained.named_parameters())
        heads = tuple(f"{n}." for n, m in self.model.named_modules() if isinstance(m, Head))
        for name, parameter in self.model.named_parameters():
            if not name.startswith(heads):
                mine.append(parameter)
                theirs.append(source_parameters[name])
        torch._foreach_copy_(mine, theirs)

    @torch.no_grad()
    def root(self, observation: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
        """Observations `[B, O]`, tasks `[B]` to states `[B, 2S + E]` and values `[B]`."""
        return self._state(self.model.encode(observation, task), task)

    @torch.no_grad()
    def step(self, state: Tensor, action: Tensor, task: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States `[B, 2S + E]`, actions `[B, A]` to next states, rewards `[B]` and values `[B]`."""
        latent = state[..., : self.model.spec.latent_size]
        reward = self.model.scalar.decode(self.model.reward_logits(latent, action, task))
        state, value = self._state(self.model.next_latent(latent, action, task), task)
        return state, reward, value

    @torch.no_grad()
    def policy(self, state: Tensor, task: Tensor) -> SquashedGaussian:
        """The policies of states `[B, 2S + E]`."""
        return self.model.policy(state[..., self.model.spec.latent_size :], task)

    def value(self, state: Tensor, heads: Sequence[int] | None = None) -> Tensor:
        """The minimum over `heads` (the drawn two by default), floored by the spec: `[B]`."""
        features = state[..., self.model.spec.latent_size :]
        logits = self.model.value_logits(features, self.heads if heads is None else heads)
        value = self.model.scalar.decode(logits).amin(0)
        floor = self.model.spec.value_floor
        return value if floor is None else value.clamp(min=floor)

    def _state(self, latent: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
        state = torch.cat([latent, self.model.features(latent, task)], -1)
        return state, self.value(state)
