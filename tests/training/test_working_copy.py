"""An update's shortcuts to the gradient: weights cast once, and one gradient for all unroll steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from training_helpers import make_batch, make_experiment, make_model, make_sizes, make_targets

from ezm_pl.training.losses import imagine, losses, unroll
from ezm_pl.training.working_copy import WorkingCopy
from ezm_pl.world_model import WorldModel

SIZES = make_sizes([4, 3], [2, 1])
EXPERIMENT = make_experiment({"targets": {"unroll_steps": 3, "td_steps": 2}})


def update(model: WorldModel, computes: WorldModel) -> tuple[float, dict[str, Tensor]]:
    """The loss in mixed precision that `computes` gives, and the gradients that `model` gets."""
    batch = make_batch(EXPERIMENT, SIZES, 6)
    targets = make_targets(EXPERIMENT, SIZES, batch)
    noise = torch.Generator().manual_seed(5)
    with torch.autocast("cpu", torch.bfloat16):
        found = losses(unroll(computes, batch, targets, EXPERIMENT.targets, noise), EXPERIMENT.loss)
    found.total.backward()
    return found.total.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_a_working_copy_computes_as_autocast_does_and_trains_the_learner() -> None:
    plain, model = make_model(EXPERIMENT, SIZES).train(), make_model(EXPERIMENT, SIZES).train()
    working = WorkingCopy(model, torch.bfloat16)
    for _ in range(2):  # the second time with weights that have moved
        expected, gradients = update(plain, plain)
        found, cast = update(model, working())
        assert abs(found - expected) < 1e-5 * abs(expected)
        assert cast.keys() == gradients.keys() == dict(model.named_parameters()).keys()
        largest = max(float(x.abs().max()) for x in gradients.values())
        for name, gradient in gradients.items():
            assert cast[name].dtype == torch.float32
            torch.testing.assert_close(cast[name], gradient, rtol=2e-2, atol=1e-3 * largest, msg=name)
        for name, buffer in plain.named_buffers():  # the running statistics
            torch.testing.assert_close(dict(model.named_buffers())[name], buffer, rtol=1e-3, atol=1e-4)
        for each in (plain, model):
            with torch.no_grad():
                for parameter in each.parameters():
                    parameter.add_(0.01)
            each.zero_grad()


def test_gradients_of_an_unroll_are_those_of_a_plain_loop_halved_at_every_step() -> None:
    model = make_model(EXPERIMENT, SIZES)
    batch = make_batch(EXPERIMENT, SIZES, 6)

    def plain() -> Tensor:
        latent = model.encode(batch.observation[:, 0], batch.task)
        latents = [latent]
        for k in range(3):
            latents.append(model.next_latent(latents[-1], batch.action[:, k], batch.task))
            if latents[-1].requires_grad:
                latents[-1].register_hook(lambda gradient: gradient * 0.5)
        return torch.stack(latents, 1)

    direction = torch.randn(plain().shape, generator=torch.Generator().manual_seed(2))
    found: list[dict[str, Any]] = []
    for latents in (plain(), imagine(model, batch)):
        model.zero_grad()
        (latents * direction).sum().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and any("dynamics" in name for name in found[0])
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5, msg=name)
