"""The losses and their gradients are one static program: what can be traced can be captured as a graph.

`make_fx` refuses every read of a value, so nothing in the trace depends on the batch that it was made with.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from training_helpers import make_batch, make_experiment, make_sizes, make_targets

from ezm_pl.training.batch import Batch, Targets
from ezm_pl.training.losses import losses, unroll
from ezm_pl.training.pathwise import QSpread
from ezm_pl.world_model import WorldModel

SIZES = make_sizes([4, 3], [2, 1])
EXPERIMENT = make_experiment(
    {"targets": {"unroll_steps": 3, "td_steps": 2}, "loss": {"pathwise": 1.0, "observation": 1.0}}
)


class Update(nn.Module):
    """The forward half of an update, with every loss term."""

    def __init__(self) -> None:
        super().__init__()
        mask = torch.as_tensor(SIZES.action_mask)
        self.model = WorldModel(EXPERIMENT.model, SIZES.obs_size, mask, decoded=torch.ones(2, SIZES.obs_size))
        self.spread = QSpread(2)

    def forward(self, batch: Batch, targets: Targets) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        self.model.normalizer.update(batch.observation[:, 0])
        noise: Any = None  # torch's own random numbers, which a trace can hold
        found = losses(
            unroll(self.model, batch, targets, EXPERIMENT.targets, noise, self.spread), EXPERIMENT.loss
        )
        return found.total, found.terms, found.value_error


def test_losses_and_gradients_are_the_same_traced_with_another_batch() -> None:
    torch.manual_seed(0)
    update = Update()
    for parameter in update.parameters():
        nn.init.normal_(parameter, std=0.2)  # also the layers that start at zero
    parameters = dict(update.named_parameters())

    def whole(
        parameters: dict[str, Tensor], buffers: dict[str, Tensor], batch: Batch, targets: Targets
    ) -> tuple[Any, ...]:
        found = functional_call(update, parameters | buffers, (batch, targets))
        return found, torch.autograd.grad(found[0], list(parameters.values())), buffers

    def inputs(seed: int, **ends: Any) -> tuple[Any, ...]:
        batch = make_batch(EXPERIMENT, SIZES, 6, seed, **ends)
        buffers = {name: x.clone() for name, x in update.named_buffers()}
        return parameters, buffers, batch, make_targets(EXPERIMENT, SIZES, batch, seed + 1)

    traced = make_fx(whole)(*inputs(0))
    ends = {"length": [5, 5, 2, 2, 1, 3], "terminated": [False, True, False, True, True, False]}
    results = []
    for function in (traced, whole):
        torch.manual_seed(1)
        with torch.set_grad_enabled(function is whole):  # the trace holds the gradients' operations itself
            results.append(function(*inputs(7, **ends)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)
    assert all(bool(x.abs().sum() > 0) for x in results[0][1]), "every parameter has a gradient"
