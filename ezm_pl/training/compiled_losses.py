"""`CompiledLosses`: on a CPU, an update's losses and gradients as one C++ program (`ezm_pl/programs/`)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ezm_pl.programs import NARROW, Draws, Program, ProgramSpec, surroundings
from ezm_pl.spec import Experiment
from ezm_pl.spec.experiment import LossSpec, ModelSpec, TargetSpec
from ezm_pl.spec.metrics import OPTIONAL_TERMS
from ezm_pl.training.batch import Batch, Targets
from ezm_pl.training.losses import loss_weights, losses, unroll
from ezm_pl.training.pathwise import QSpread
from ezm_pl.world_model import WorldModel

Form = tuple[str, tuple[int, ...]]
"""A tensor's dtype and shape."""


def forms(tensors: Iterable[Tensor]) -> tuple[Form, ...]:
    """Of several tensors."""
    return tuple((str(x.dtype).removeprefix("torch."), tuple(x.shape)) for x in tensors)


class LossProgram(ProgramSpec):
    """A program of losses and gradients.

    Attributes:
        terms: which there are; their weights are inputs.
        frozen: names of the parameters that get no gradient.
        batch, sought: dtypes and shapes of a `Batch`'s and of `Targets`' tensors.
    """

    of: ClassVar[str] = "losses"
    subpackages: ClassVar[tuple[str, ...]] = ("training", "world_model")
    maker: ClassVar[str] = "ezm_pl.training.make_program"

    model: ModelSpec
    terms: LossSpec
    targets: TargetSpec
    frozen: tuple[str, ...]
    tasks: int
    observation_size: int
    action_size: int
    bfloat16: bool
    batch: tuple[Form, ...]
    sought: tuple[Form, ...]


class Compiled(NamedTuple):
    """What a program tells of an update: as in `Losses`."""

    total: Tensor
    value_error: Tensor


class Learner(nn.Module):
    """The losses of a model as a module, so that `functional_call` can give it other tensors.

    Args:
        model, spread: the learner's.
        targets, terms: of the `LossProgram`.
    """

    def __init__(
        self, model: WorldModel, spread: QSpread | None, targets: TargetSpec, terms: LossSpec
    ) -> None:
        super().__init__()
        self.model, self.spread, self._targets, self._terms = model, spread, targets, terms

    def forward(
        self, batch: Batch, targets: Targets, weights: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The total `[]` and the value's errors `[B]`; `weights` `[terms, 1]`. Moves running statistics."""
        self.model.normalizer.update(batch.observation[:, 0])
        x = unroll(self.model, batch, targets, self._targets, generator, self.spread)
        found = losses(x, self._terms, weights)
        return found.total, found.value_error


class CompiledLosses:
    """Losses and gradients by a program, where there is one.

    Args:
        experiment: of the run. model, spread: the learner's. bfloat16: whether products are in bfloat16.
    """

    def __init__(
        self, experiment: Experiment, model: WorldModel, spread: QSpread | None, bfloat16: bool
    ) -> None:
        self._experiment, self._model, self._bfloat16 = experiment, model, bfloat16
        optional = {name: float(experiment.loss.of(name) > 0) for name in OPTIONAL_TERMS}
        self._terms = LossSpec().model_copy(update=optional)
        learner = Learner(model, spread, experiment.targets, self._terms)
        # Listed once: to walk over the modules takes a fiftieth of an update.
        self._parameters, self._buffers = dict(learner.named_parameters()), list(learner.buffers())
        surroundings(*LossProgram.subpackages)  # of the sources that this process has loaded
        self._draws: Draws | None = None
        self._given: tuple[Any, ...] = ()
        self._program: Program | None = None

    @staticmethod
    def possible(experiment: Experiment, device: torch.device, ranks: int) -> bool:
        """Whether a run may have a program: one rank on a CPU, a narrow network, built-in terms, task ids.

        Not under deterministic algorithms: the clock decides when it takes over, and sums have another order.
        """
        return (
            experiment.optim.compiled
            and device.type == "cpu"
            and ranks == 1
            and experiment.model.latent_size <= NARROW
            and experiment.model.task_conditioning == "id"
            and not experiment.loss.extra
            and not torch.are_deterministic_algorithms_enabled()
        )

    def __call__(self, batch: Batch, targets: Targets, generator: torch.Generator) -> Compiled | None:
        """As `Learner`, with the parameters' gradients put into them; None while there is no program."""
        if self._draws is None or self._program is None or self._program.run is None:
            return None
        # A program does not look at what it is given.
        if (self._frozen(), *forms((*batch, *targets))) != self._given:
            return None
        weights = loss_weights(self._experiment.loss, batch.weight.device)
        parameters = self._parameters.values()
        inputs = [*parameters, *self._buffers, *batch, *targets, weights, *self._draws.again(generator)]
        total, error, *gradients = self._program.run([x.contiguous() for x in inputs])
        learned = (parameter for parameter in parameters if parameter.requires_grad)
        for parameter, gradient in zip(learned, gradients, strict=True):
            parameter.grad = gradient.contiguous()  # a fused optimiser reads no strides
        return Compiled(total, error)

    @contextmanager
    def watched(self, batch: Batch, targets: Targets) -> Iterator[None]:
        """Around losses and gradients without the program: their time earns it."""
        program, start = self._of(batch, targets), time.thread_time()
        if self._draws is None:
            with Draws() as draws:
                yield
            self._draws = draws
        else:
            yield
        program.earn(time.thread_time() - start)

    def wait(self) -> bool:
        """Gets the program now (minutes), after an update without it; whether there is one."""
        return self._program is not None and self._program.wait()

    def _frozen(self) -> tuple[str, ...]:
        return tuple(name for name, parameter in self._parameters.items() if not parameter.requires_grad)

    def _of(self, batch: Batch, targets: Targets) -> Program:
        if self._program is None:
            tasks, action_size = self._model.action_mask.shape
            spec = LossProgram(
                model=self._model.spec,
                terms=self._terms,
                targets=self._experiment.targets,
                frozen=self._frozen(),
                tasks=tasks,
                observation_size=batch.observation.shape[-1],
                action_size=action_size,
                bfloat16=self._bfloat16,
                batch=forms(batch),
                sought=forms(targets),
            )
            self._program, self._given = Program(spec), (spec.frozen, *spec.batch, *spec.sought)
        return self._program
