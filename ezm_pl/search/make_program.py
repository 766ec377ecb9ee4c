"""Makes the program of a search: `python -m ezm_pl.search.make_program`, with a `SearchProgram` as its input.

It exports the search for any number of roots, and compares the program with the uncompiled search.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ezm_pl.programs import Draws
from ezm_pl.programs.library import Library
from ezm_pl.programs.making import compile_into, main
from ezm_pl.search.compiled import SearchProgram
from ezm_pl.search.planner import Planner
from ezm_pl.search.tree import SearchResult, search
from ezm_pl.world_model import InferenceModel

TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
"""Of values and actions. What a search chooses among near-equals may differ in bfloat16."""


class Searching(nn.Module):
    """A search as a function of tensors only: observation, task, draws, and the networks' tensors.

    Args:
        spec: of the program.
    """

    def __init__(self, spec: SearchProgram) -> None:
        super().__init__()
        self.spec = spec
        uncompiled = spec.search.model_copy(update={"compiled": False})
        self.planner = Planner(uncompiled, spec.discount, spec.action_size, evaluation=spec.evaluation)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            mask = torch.ones(spec.tasks, spec.action_size)
            model = InferenceModel(spec.model, spec.observation_size, mask)
            for parameter in model.parameters():  # also those that start at zero
                scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.1
                parameter.data.add_(torch.randn_like(parameter), alpha=scale)
        self.dtype = getattr(torch, spec.dtype)
        self.tensors = model.prepare(self.dtype)
        self.model = [model]  # not a submodule: none of its parameters is read
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, observation: Tensor, task: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        count = len(others) - len(self.tensors)
        with Draws(others[:count]):
            return tuple(vars(self.search(observation, task, others[count:])).values())

    def search(self, observation: Tensor, task: Tensor, tensors: Sequence[Tensor]) -> SearchResult:
        """The uncompiled search of observations `[B, O]` and tasks `[B]`."""
        planner, model = self.planner, self.model[0].function_of(tensors, self.dtype)
        return search(model, planner.proposal, observation, task, planner.settings, self.generator)

    def inputs(self, roots: int) -> tuple[tuple[Tensor, ...], SearchResult]:
        """Random inputs for so many roots, and what a search finds from them."""
        observation = torch.randn(roots, self.spec.observation_size, generator=self.generator)
        task = torch.arange(roots) % self.spec.tasks
        state = self.generator.get_state()
        with Draws() as draws:
            found = self.search(observation, task, self.tensors)
        self.generator.set_state(state)
        return (observation, task, *draws.again(self.generator), *self.tensors), found


@torch.no_grad()
def make(spec: SearchProgram) -> None:
    """Makes the program and puts it into the cache folder.

    Raises:
        whatever torch's compiler raises; RuntimeError: the program finds something else than the search.
    """
    searching = Searching(spec)
    inputs, _ = searching.inputs(5)
    rows, fixed = {0: torch.export.Dim.DYNAMIC}, len(searching.tensors)
    shapes = (rows, rows, (*[rows] * (len(inputs) - 2 - fixed), *[{}] * fixed))
    exported = torch.export.export(searching, inputs, dynamic_shapes=shapes)
    compile_into(spec, exported, partial(_compare, searching))


def _compare(searching: Searching, program: Library) -> None:
    """Raises RuntimeError where a program does not find what the search does."""
    most = TOLERANCE[searching.spec.dtype]
    for roots in (1, 6):
        inputs, expected = searching.inputs(roots)
        found = SearchResult(*program(inputs))
        names = ("actions", "root_value") + ("q", "value", "action") * (searching.spec.dtype == "float32")
        for name in names:
            a, b = getattr(found, name), getattr(expected, name)
            if not torch.allclose(a, b, rtol=most, atol=most):
                raise RuntimeError(f"the compiled search finds another {name}, by {(a - b).abs().max():.1e}")


if __name__ == "__main__":
    main(SearchProgram, make)
