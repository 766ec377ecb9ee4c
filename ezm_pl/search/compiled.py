"""`CompiledSearch`: on a CPU, a search as one C++ program (`ezm_pl/programs/`).

A program serves any number of roots and any weights of a network.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ezm_pl.programs import Draws, Program, ProgramSpec, surroundings
from ezm_pl.search.tree import SearchResult
from ezm_pl.spec.experiment import ModelSpec, SearchSpec
from ezm_pl.world_model import InferenceModel, part_size

Search = Callable[[Any, Tensor, Tensor, torch.Generator, int], SearchResult]
Run = Callable[[Sequence[Tensor]], list[Tensor]]

MOST = 2**18
"""Most latent values of a batch that a program is given at once: more roots are searched in parts."""


class SearchProgram(ProgramSpec):
    """A program of a search."""

    of: ClassVar[str] = "searches"
    subpackages: ClassVar[tuple[str, ...]] = ("search", "world_model")
    maker: ClassVar[str] = "ezm_pl.search.make_program"

    model: ModelSpec
    search: SearchSpec
    discount: float
    evaluation: bool
    observation_size: int
    tasks: int
    action_size: int
    dtype: Literal["float32", "bfloat16"]


class CompiledSearch:
    """Searches by programs, where there are any.

    There are programs for the built-in proposal and an `InferenceModel` on a CPU whose layers are narrow
    enough (`InferenceModel.compiled_dtype`); many roots are searched in parts. None is used under torch's
    deterministic algorithms: the clock decides when it takes over, and it adds in another order.

    Args:
        search: of (model, observation `[B, O]`, task `[B]`, generator, roots), uncompiled.
        spec, discount, evaluation: of the `Planner`.
        width: most leaves per root that one network call expands.
    """

    def __init__(
        self, search: Search, spec: SearchSpec, discount: float, evaluation: bool, width: int
    ) -> None:
        self._search, self._spec, self._discount, self._width = search, spec, discount, width
        self._evaluation = evaluation
        surroundings(*SearchProgram.subpackages)  # of the sources that this process has loaded
        self._programs: dict[ProgramSpec, _Searches] = {}
        self._of: WeakKeyDictionary[InferenceModel, dict[torch.dtype, _Searches]] = WeakKeyDictionary()

    def __call__(
        self, model: Any, observation: Tensor, task: Tensor, generator: torch.Generator, roots: int
    ) -> SearchResult:
        dtype = self._dtype(model, roots) if observation.device.type == "cpu" else None
        if dtype is None:
            return self._search(model, observation, task, generator, roots)
        if roots < len(observation):  # a program searches from all
            found = self(model, observation[:roots], task[:roots], generator, roots)
            _, others = model.root(observation[roots:], task[roots:])
            return replace(found, root_value=torch.cat([found.root_value, others]))
        program = self._program(model, dtype)
        draws, start = program.draws.get(roots), time.thread_time()
        if draws is None:
            with Draws() as draws:
                found = self._search(model, observation, task, generator, roots)
            program.draws[roots] = draws
        elif program.run is not None:
            rows = observation.contiguous(), task.contiguous()  # a program reads no strides
            return self._run(program.run, model, dtype, [*rows, *draws.again(generator)])
        else:
            found = self._search(model, observation, task, generator, roots)
        program.earn(time.thread_time() - start)
        return found

    def _run(
        self, run: Run, model: InferenceModel, dtype: torch.dtype, inputs: Sequence[Tensor]
    ) -> SearchResult:
        """A program's result; `inputs` have a row per root."""
        tensors, roots = model.prepare(dtype), len(inputs[0])
        most = max(1, MOST // (self._width * model.model.spec.latent_size))
        parts = zip(*(each.split(part_size(roots, most)) for each in inputs), strict=True)
        found = [run([*part, *tensors]) for part in parts]
        whole = found[0] if len(found) == 1 else [torch.cat(each) for each in zip(*found, strict=True)]
        return SearchResult(*whole)

    def wait(self, model: InferenceModel, roots: int) -> bool:
        """Gets the program for so many roots of a model now (minutes); whether there is one."""
        dtype = self._dtype(model, roots)
        return dtype is not None and self._program(model, dtype).wait()

    def _dtype(self, model: Any, roots: int) -> torch.dtype | None:
        if torch.are_deterministic_algorithms_enabled() or self._spec.proposal:
            return None
        return model.compiled_dtype(roots * self._width) if isinstance(model, InferenceModel) else None

    def _program(self, model: InferenceModel, dtype: torch.dtype) -> _Searches:
        programs = self._of.setdefault(model, {})
        if dtype not in programs:
            tasks, action_size = model.model.action_mask.shape
            spec = SearchProgram(
                model=model.model.spec,
                search=self._spec,
                discount=self._discount,
                evaluation=self._evaluation,
                observation_size=model.observation_size,
                tasks=tasks,
                action_size=action_size,
                dtype="float32" if dtype == torch.float32 else "bfloat16",
            )
            programs[dtype] = self._programs.setdefault(spec, _Searches(spec))
        return programs[dtype]


class _Searches(Program):
    """A search's program.

    Attributes:
        draws: what a search of so many roots draws.
    """

    def __init__(self, spec: SearchProgram) -> None:
        super().__init__(spec)
        self.draws: dict[int, Draws] = {}
