"""Makes the program of losses and gradients: `python -m ezm_pl.training.make_program`, with a `LossProgram`.

It traces them with their gradients, without mutations, and compares the program with the plain losses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from ezm_pl.programs import Draws
from ezm_pl.programs.making import compile_into, main
from ezm_pl.training.batch import Batch, Targets
from ezm_pl.training.compiled_losses import Learner, LossProgram
from ezm_pl.training.losses import weighted_terms
from ezm_pl.training.pathwise import QSpread
from ezm_pl.world_model import WorldModel

TOLERANCE = {False: 1e-3, True: 2e-2}
"""Error allowed beyond twice the plain losses', as a share of the largest gradient; True: in bfloat16."""


class Gradients:
    """Losses and gradients as a function of tensors only: `CompiledLosses.__call__` gives the same ones.

    Args:
        spec: of the program.
    """

    def __init__(self, spec: LossProgram) -> None:
        self.spec, self.bfloat16 = spec, spec.bfloat16
        mask = torch.ones(spec.tasks, spec.action_size)
        decoded = torch.ones(spec.tasks, spec.observation_size) if spec.terms.observation else None
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = WorldModel(spec.model, spec.observation_size, mask, decoded=decoded)
            for name, parameter in model.named_parameters():  # also those that start at zero
                scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.1
                # A narrow policy would make its gradients a million times the others'.
                scale *= 0.01 if name.startswith("policy_head") else 1
                parameter.data.add_(torch.randn_like(parameter), alpha=scale)
        spread = QSpread(spec.tasks) if spec.terms.pathwise else None
        self.learner = Learner(model, spread, spec.targets, spec.terms)
        for name, parameter in self.learner.named_parameters():
            parameter.requires_grad_(name not in spec.frozen)
        self.parameters, self.buffers = (
            dict(found) for found in (self.learner.named_parameters(), self.learner.named_buffers())
        )
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Parameters, buffers, batch, targets, weights and draws to total, value errors and gradients."""
        left = iter(tensors)
        named = {name: next(left) for name in (*self.parameters, *self.buffers)}
        batch = Batch(*(next(left) for _ in Batch._fields))
        targets, weights = Targets(*(next(left) for _ in Targets._fields)), next(left)
        with Draws(left):
            total, error = self._losses(named, batch, targets, weights)
        learned = [named[name] for name, x in self.parameters.items() if x.requires_grad]
        return total, error, *torch.autograd.grad(total, learned)

    def inputs(self) -> list[Tensor]:
        """Random ones."""
        spec, generator = self.spec, self.generator
        batch = Batch(*(torch.rand(shape, generator=generator) for _, shape in spec.batch))
        batch = batch._replace(
            task=torch.randint(spec.tasks, batch.task.shape, generator=generator),
            observation=batch.observation * 4 - 2,
        )
        batch = Batch(*(x.to(getattr(torch, dtype)) for x, (dtype, _) in zip(batch, spec.batch, strict=True)))
        targets = Targets(*(torch.rand(shape, generator=generator) for _, shape in spec.sought))
        masks = {name: getattr(targets, name).round() for name in targets._fields if name.endswith("_mask")}
        targets = targets._replace(action=targets.action * 1.8 - 0.9, **masks)
        weights = torch.rand(len(weighted_terms(spec.terms)), 1, generator=generator)
        state = generator.get_state()
        buffers = {name: x.clone() for name, x in self.buffers.items()}
        with Draws() as draws, torch.no_grad():
            self._losses(self.parameters | buffers, batch, targets, weights)
        generator.set_state(state)
        buffers = {name: x.clone() for name, x in self.buffers.items()}
        drawn = draws.again(generator)
        return [*self.parameters.values(), *buffers.values(), *batch, *targets, weights, *drawn]

    def results(
        self, function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]
    ) -> dict[str, dict[str, Tensor]]:
        """What a function like this one finds, and the statistics that it leaves: by network, by name."""
        own = [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
        total, error, *gradients = function(*own)
        found = {"loss": {"total": total.detach()}, "value": {"error": error.detach()}}
        learned = (name for name, x in self.parameters.items() if x.requires_grad)
        tensors = [*zip(learned, gradients, strict=True)]
        tensors += zip(self.buffers, own[len(self.parameters) :], strict=False)
        for name, x in tensors:
            found.setdefault(".".join(name.split(".")[:2]), {})[name] = x.detach()
        return found

    def _losses(
        self, named: dict[str, Tensor], batch: Batch, targets: Targets, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16, cache_enabled=False):
            found: tuple[Tensor, Tensor] = functional_call(
                self.learner, named, (batch, targets, weights, self.generator)
            )
        return found


def make(spec: LossProgram) -> None:
    """Makes the program and puts it into the cache folder.

    Raises:
        whatever torch's compiler raises; RuntimeError: the program finds something else than the losses.
    """
    gradients = Gradients(spec)
    inputs = gradients.inputs()
    traced = make_fx(gradients)(*inputs)
    with torch.no_grad():
        functional = make_fx(torch.func.functionalize(traced, remove="mutations"))(*inputs)
        exported = torch.export.export(functional, tuple(inputs))
    compile_into(spec, exported, lambda program: _compare(gradients, lambda *x: program(x)))


def _compare(gradients: Gradients, program: Callable[..., Sequence[Tensor]]) -> None:
    """Raises RuntimeError where a program is farther from float32 than the plain losses are."""
    inputs = gradients.inputs()
    found, plain = (gradients.results(function, inputs) for function in (program, gradients))
    gradients.bfloat16 = False
    exact = gradients.results(gradients, inputs)
    for network, named in exact.items():
        largest = max(float(x.double().norm()) for x in named.values())
        for name, expected in named.items():
            error, own = (float((x[network][name] - expected).double().norm()) for x in (found, plain))
            if not error <= 2 * own + TOLERANCE[gradients.spec.bfloat16] * largest:
                raise RuntimeError(f"the compiled losses find another {name}: {error:.1e} of {largest:.1e}")


if __name__ == "__main__":
    main(LossProgram, make)
