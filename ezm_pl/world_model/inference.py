"""The world model as the search sees it: `root`, `step` and `policy`, folded, fused and in low precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from ezm_pl.programs import NARROW
from ezm_pl.spec.experiment import ModelSpec
from ezm_pl.world_model.fused import FusedNetworks
from ezm_pl.world_model.layers import Head, RunningNorm
from ezm_pl.world_model.model import WorldModel
from ezm_pl.world_model.policy import SquashedGaussian
from ezm_pl.world_model.products import Kind, packs

_CHUNK = 2**19
"""Latent values that a processor takes through the networks at once, so that they stay in its caches."""
_BLAS_WIDTH = 256
"""Widest latent for which BLAS is faster than oneDNN on a processor; at few rows even in bfloat16."""
_FEW = 2**20 + 2**18
"""Multiply-adds of a layer up to which it is so (80 rows at latent size 128, 20 at 256)."""


def part_size(rows: int, most: int) -> int:
    """Rows of equal parts of a batch of `rows`, each of at most `most`: no small remainder."""
    return math.ceil(rows / math.ceil(rows / most))


def _alone(method: Callable[..., Any]) -> Callable[..., Any]:
    """Without gradients, and in the model's own dtype whatever autocast surrounds the call."""
    alone = torch.no_grad()(method)
    guarded = torch.autocast("cpu", enabled=False)(alone)

    @wraps(method)
    def call(*args: Any, **named: Any) -> Any:
        # Leaving autocast takes as long as a small layer: only where there is one.
        return (guarded if torch.is_autocast_enabled("cpu") else alone)(*args, **named)

    return call


def _changed(model: InferenceModel, incompatible_keys: Any = None) -> None:
    model._stale.update(model._fused)


class InferenceModel(nn.Module):
    """A frozen copy of a `WorldModel` for acting and reanalysis.

    BatchNorm is folded into the layers before it, weights are held in `dtype`, nothing has a
    gradient. A search state is `[B, S + E + 3A]` (`FusedNetworks`): it holds its policy and all that a step
    needs to know of its task.

    It computes from fused copies, made anew at the first call after `load`, `load_state_dict` or a move:
    these are the ways to change its weights. On a processor a narrow network in bfloat16 computes small
    batches in float32, which is faster there.

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
        self._fused: dict[Kind, FusedNetworks] = {}
        self._stale: set[Kind] = set()
        self.register_load_state_dict_post_hook(_changed)
        self.eval()

    def draw_heads(self, generator: torch.Generator) -> None:
        """Draws the two value heads whose minimum is the value, until the next draw."""
        drawn = torch.randperm(self.model.spec.value_heads, generator=generator)[:2]
        self.heads = tuple(sorted(drawn.tolist()))

    @torch.no_grad()
    def load(self, source: WorldModel | InferenceModel, embedding: Tensor | None = None) -> None:
        """Copies the weights of `source`, folding BatchNorm where it has any.

        Args:
            source: a model of the same sizes.
            embedding: `[T, E]`, capped, in place of its task embeddings.
        """
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
        source_parameters: dict[str, Tensor] = dict(trained.named_parameters())
        if embedding is not None or trained.described is not None:
            source_parameters["task_embedding"] = (
                trained.capped_embedding() if embedding is None else embedding
            )
        heads = tuple(f"{n}." for n, m in self.model.named_modules() if isinstance(m, Head))
        for name, parameter in self.model.named_parameters():
            if not name.startswith(heads):
                mine.append(parameter)
                theirs.append(source_parameters[name])
        torch._foreach_copy_(mine, theirs)
        _changed(self)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> InferenceModel:
        self._fused.clear()
        return super()._apply(fn, recurse)

    def kind(self, rows: int) -> Kind:
        """How it computes batches of `rows`."""
        weight = self.model.task_embedding
        if not packs(weight):
            return Kind(weight.dtype, packed=False, paired=weight.device.type != "cpu")
        latent = self.model.spec.latent_size
        small = latent <= _BLAS_WIDTH and (weight.dtype == torch.float32 or rows * latent**2 <= _FEW)
        return Kind(torch.float32, packed=False) if small else Kind(weight.dtype, packed=True)

    def compiled_dtype(self, rows: int) -> torch.dtype | None:
        """What a compiled search with batches up to `rows` computes in; None where it would be no faster."""
        return self.kind(rows).dtype if self.model.spec.latent_size <= NARROW else None

    def _networks(self, rows: int) -> FusedNetworks:
        """The networks for a batch of `rows`, from the weights as they are."""
        return self._networks_of(self.kind(rows))

    def _networks_of(self, kind: Kind) -> FusedNetworks:
        if kind not in self._fused or kind in self._stale:
            with torch.inference_mode(False):  # they are written to outside it, too
                fused = FusedNetworks(self.model, kind)
                self._fused.setdefault(kind, fused).load(fused)
            self._stale.discard(kind)
        return self._fused[kind]

    @_alone
    def prepare(self, dtype: torch.dtype | None = None) -> list[Tensor]:
        """The tensors that a captured or compiled search reads, brought up to date in place.

        Args:
            dtype: of a compiled search; None on a GPU.
        """
        networks = self._networks_of(self.kind(0) if dtype is None else Kind(dtype, packed=False))
        networks.heads.draw(self.heads)
        return networks.tensors

    def function_of(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> Functional:
        """The search model that `tensors` make in the place of those of `prepare(dtype)`."""
        networks = self._networks_of(Kind(dtype, packed=False))
        return Functional(networks.with_tensors(tensors), self)

    @_alone
    def root(self, observation: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
        """Observations `[B, O]`, tasks `[B]` to states `[B, S + E + 3A]` and values `[B]`."""
        return self._networks(len(observation)).root(observation, task, self.heads)

    @_alone
    def step(self, state: Tensor, action: Tensor, task: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States `[B, S + E + 3A]`, actions `[B, A]` to next states, rewards `[B]` and values `[B]`."""
        rows = max(1, _CHUNK // self.model.spec.latent_size)
        if state.device.type == "cpu" and len(state) > rows:
            rows = part_size(len(state), rows)
            chunks = zip(state.split(rows), action.split(rows), task.split(rows), strict=True)
            states, rewards, values = zip(*(self.step(*chunk) for chunk in chunks), strict=True)
            return torch.cat(states), torch.cat(rewards), torch.cat(values)
        return self._networks(len(state)).step(state, action, self.heads)

    def policy(self, state: Tensor, task: Tensor) -> SquashedGaussian:
        """The policies of states `[B, S + E + 3A]`, which hold them."""
        mean, log_std, mask = state[..., -3 * self.model.action_mask.shape[1] :].chunk(3, -1)
        return SquashedGaussian(mean, log_std, mask)

    @_alone
    def policy_of(self, observation: Tensor, task: Tensor) -> SquashedGaussian:
        """The policies of observations `[B, O]`, without their values."""
        return self.policy(self._networks(len(observation)).policy_only(observation, task), task)

    @_alone
    def value(self, state: Tensor, heads: Sequence[int] | None = None) -> Tensor:
        """The minimum over `heads` (the drawn two by default), floored by the spec: `[B]`.

        The search has its values from `root` and `step`; here the features are computed once more.
        """
        model = self.model
        size = model.spec.latent_size + model.embedding_used["value_policy"] * model.spec.task_embedding_size
        features = model.trunk(state[..., :size].to(model.task_embedding.dtype))
        each = model.scalar.decode(model.value_logits(features, self.heads if heads is None else heads))
        value, floor = each.amin(0), model.spec.value_floor
        return value if floor is None else value.clamp(min=floor)


class Functional:
    """An `InferenceModel` that computes with other tensors, without guards: for a compiler to trace.

    Args:
        networks: of these tensors.
        model: of its own ones.
    """

    def __init__(self, networks: FusedNetworks, model: InferenceModel) -> None:
        self._networks, self.policy = networks, model.policy

    def root(self, observation: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
        """As `InferenceModel.root`."""
        return self._networks.root(observation, task, self._networks.heads.drawn)

    def step(self, state: Tensor, action: Tensor, task: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `InferenceModel.step`."""
        return self._networks.step(state, action, self._networks.heads.drawn)
