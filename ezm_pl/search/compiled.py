"""`CompiledSearch`: on a processor, a search as one C++ program, which torch's compiler (inductor) writes.

At few roots a search is hundreds of small operations, each of which costs Python and the dispatcher more than
its arithmetic takes. Compiled, it is a few calls of generated loops and BLAS products.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from ezm_pl.search.graphs import Search
from ezm_pl.search.tree import SearchResult

log = logging.getLogger(__name__)
_one_at_a_time = Lock()

Draw = tuple[Callable[..., Tensor], tuple[Any, ...], dict[str, Any]]


class _Draws(TorchFunctionMode):
    """Notes the random draws made inside, or answers them with tensors `given`."""

    def __init__(self, given: Iterable[Tensor] | None = None) -> None:
        super().__init__()
        self.noted: list[Draw] = []
        self._given = None if given is None else iter(given)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(kwargs.get("generator"), torch.Generator):
            return func(*args, **kwargs)
        self.noted.append((func, args, {k: v for k, v in kwargs.items() if k != "generator"}))
        return func(*args, **kwargs) if self._given is None else next(self._given)


@dataclass(frozen=True)
class _Program:
    """A compiled search of observations, tasks, draws, and of the model's tensors with these indices."""

    run: Callable[..., Any]
    draws: list[Draw]
    weights: list[int]


class CompiledSearch:
    """A search that is compiled once per number of roots, whatever the weights; torch caches it on disk.

    It needs a model with `prepare(rows)`, whose result is the list of tensors that a search of batches up to
    `rows` reads, or None where that cannot be compiled (`InferenceModel`). Then, and where compiling fails,
    which one line says, it searches as it would without.

    Args:
        search: of (model, observation `[B, O]`, task `[B]`, generator), one static program.
        width: most leaves per root that one network call expands.
    """

    def __init__(self, search: Search, width: int) -> None:
        self._search, self._width, self._fails = search, width, False
        self._programs: dict[int, _Program] = {}

    def __call__(
        self, model: Any, observation: Tensor, task: Tensor, generator: torch.Generator
    ) -> SearchResult:
        roots = len(observation)
        held = None if self._fails else model.prepare(roots * self._width)
        if held is None:
            return self._search(model, observation, task, generator)
        with _one_at_a_time:
            if roots not in self._programs:
                try:
                    self._programs[roots] = self._compile(model, held, observation, task, generator)
                except RuntimeError as error:
                    self._fails = True
                    log.warning("searches run uncompiled: %s", str(error).partition("\n")[0])
                    return self._search(model, observation, task, generator)
        program = self._programs[roots]
        draws = [draw(*args, **named, generator=generator) for draw, args, named in program.draws]
        with torch.no_grad():
            return SearchResult(*program.run(observation, task, *draws, *(held[i] for i in program.weights)))

    def _compile(
        self, model: Any, held: list[Tensor], observation: Tensor, task: Tensor, generator: torch.Generator
    ) -> _Program:
        from torch import _inductor as inductor  # takes a second to import

        state, noting = generator.get_state(), _Draws()
        with torch.no_grad():
            with noting:  # it also makes the constants
                self._search(model, observation, task, generator)
            generator.set_state(state)

            def run(observation: Tensor, task: Tensor, *draws: Tensor) -> tuple[Tensor, ...]:
                with _Draws(draws):
                    return tuple(vars(self._search(model, observation, task, generator)).values())

            draws = [draw(*args, **named) for draw, args, named in noting.noted]
            traced = make_fx(run)(observation, task, *draws)
            # Weights become inputs: they change, and the cached program does not depend on them.
            numbers = {id(tensor): index for index, tensor in reversed(list(enumerate(held)))}
            weights: list[int] = []
            inputs: dict[str, Any] = {}
            last = [node for node in traced.graph.nodes if node.op == "placeholder"][-1]
            for node in list(traced.graph.find_nodes(op="get_attr")):
                tensor = getattr(traced, node.target)
                if id(tensor) not in numbers:
                    continue
                if node.target not in inputs:
                    with traced.graph.inserting_after(last):
                        last = inputs[node.target] = traced.graph.placeholder(f"weight_{len(weights)}")
                    last.meta = dict(node.meta)
                    weights.append(numbers[id(tensor)])
                node.replace_all_uses_with(inputs[node.target])
                traced.graph.erase_node(node)
            traced.recompile()
            example: list[Any] = [observation, task, *draws, *(held[i] for i in weights)]
            return _Program(inductor.compile(traced, example), noting.noted, weights)
