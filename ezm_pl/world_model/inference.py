"""The world model as the search sees it: `root`, `step` and `policy`, folded and in low precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from ezm_pl.spec.experiment import ModelSpec
from ezm_pl.world_model.layers import Head, RunningNorm
from ezm_pl.world_model.model import WorldModel
from ezm_pl.world_model.onednn import pack_for_cpu
from ezm_pl.world_model.policy import SquashedGaussian

_CHUNK = 2**19
"""Latent values that a processor takes through the networks at once, so that they stay in its caches."""


def _alone(method: Callable[..., Any]) -> Callable[..., Any]:
    """Without gradients, and in the model's own dtype whatever autocast surrounds the call."""
    alone = torch.no_grad()(method)
    guarded = torch.autocast("cpu", enabled=False)(alone)

    @wraps(method)
    def call(*args: Any, **named: Any) -> Any:
        # Leaving autocast takes as long as a small layer: only where there is one.
        return (guarded if torch.is_autocast_enabled("cpu") else alone)(*args, **named)

    return call


def _unpack(model: InferenceModel, incompatible_keys: Any) -> None:
    model._packed.clear()


class InferenceModel(nn.Module):
    """A frozen copy of a `WorldModel` for acting and reanalysis.

    BatchNorm is folded into the layers before it, weights are held in `dtype`, nothing has a
    gradient. A search state is `[B, 2S + E]`: the latent, then the features of the heads, so that a
    policy asked for later costs its head alone.

    It computes from a packed copy (`pack_for_cpu`), made at the first call after `load`,
    `load_state_dict` or a move: these are the ways to change its weights.

    Args:
        spec, observation_size, action_mask: as for `WorldModel`.
        dtype: of weights and states; scalars and policies come out in float32.

    Attributes:
        observation_size: `O`.
    """

    def __init__(
        self, spec: ModelSpec, observation_size: int, action_mask: Tensor, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.model = WorldModel(spec, observation_size, action_mask, inference=True)
        self.model.requires_grad_(False)
        for parameter in self.model.parameters():
            parameter.data = parameter.data.to(dtype)
        self.observation_size = observation_size
        self.heads: tuple[int, ...] = (0, 1)
        self._packed: list[WorldModel] = []  # in a list, for it is no part of the state dict
        self.register_load_state_dict_post_hook(_unpack)
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
        self._packed.clear()

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> InferenceModel:
        self._packed.clear()
        return super()._apply(fn, recurse)

    def _ready(self) -> WorldModel:
        """The networks, packed since their weights last changed."""
        if not self._packed:
            self._packed.append(pack_for_cpu(self.model))
        return self._packed[0]

    @_alone
    def root(self, observation: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
        """Observations `[B, O]`, tasks `[B]` to states `[B, 2S + E]` and values `[B]`."""
        model = self._ready()
        latent = model.encode(observation, task)
        features = model.features(latent, task)
        value = self._value(model.scalar.decode(model.value_logits(features, self.heads)))
        return torch.cat([latent, features], -1), value

    @_alone
    def step(self, state: Tensor, action: Tensor, task: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States `[B, 2S + E]`, actions `[B, A]` to next states, rewards `[B]` and values `[B]`."""
        rows = max(1, _CHUNK // self.model.spec.latent_size)
        if state.device.type == "cpu" and len(state) > rows:
            rows = math.ceil(len(state) / math.ceil(len(state) / rows))  # no small remainder
            chunks = zip(state.split(rows), action.split(rows), task.split(rows), strict=True)
            states, rewards, values = zip(*(self.step(*chunk) for chunk in chunks), strict=True)
            return torch.cat(states), torch.cat(rewards), torch.cat(values)
        model = self._ready()
        latent = state[..., : model.spec.latent_size].contiguous()
        reward = model.reward_logits(latent, action, task)
        latent = model.next_latent(latent, action, task)
        features = model.features(latent, task)
        scalars = model.scalar.decode(torch.stack([reward, *model.value_logits(features, self.heads)]))
        return torch.cat([latent, features], -1), scalars[0], self._value(scalars[1:])

    @_alone
    def policy(self, state: Tensor, task: Tensor) -> SquashedGaussian:
        """The policies of states `[B, 2S + E]`."""
        model = self._ready()
        return model.policy(state[..., model.spec.latent_size :].contiguous(), task)

    @_alone
    def value(self, state: Tensor, heads: Sequence[int] | None = None) -> Tensor:
        """The minimum over `heads` (the drawn two by default), floored by the spec: `[B]`."""
        model = self._ready()
        features = state[..., model.spec.latent_size :].contiguous()
        logits = model.value_logits(features, self.heads if heads is None else heads)
        return self._value(model.scalar.decode(logits))

    def _value(self, each: Tensor) -> Tensor:
        """Values `[H, B]` of single heads to what the search uses of them, `[B]`."""
        value, floor = each.amin(0), self.model.spec.value_floor
        return value if floor is None else value.clamp(min=floor)
