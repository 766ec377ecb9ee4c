"""`GraphedSearch`: on a GPU, a search as a CUDA graph, which launches all its kernels at once.

Written from torch 2.13's sources (`torch/cuda/graphs.py`); no GPU was at hand to run it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ezm_pl.search.tree import SearchResult

log = logging.getLogger(__name__)

Search = Callable[[Any, Tensor, Tensor, torch.Generator, int], SearchResult]


@dataclass(frozen=True)
class _Captured:
    """A graph with the tensors that it reads and writes, and the generator whose state it advances."""

    graph: Any
    observation: Tensor
    task: Tensor
    generator: torch.Generator
    result: SearchResult


class GraphedSearch:
    """A search that is captured once per model, number of roots and generator, and then replayed.

    It needs a model with `prepare()`, which brings the tensors that a search reads up to date where they are
    (`InferenceModel`). On a CPU, for other models, and inside the capture of a larger graph it searches as
    it would without; so it does from then on where a capture fails, which one line says.

    Args:
        search: of (model, observation `[B, O]`, task `[B]`, generator, roots), one static program.
    """

    def __init__(self, search: Search) -> None:
        self._search, self._fails = search, False
        self._captured: WeakKeyDictionary[Any, dict[tuple[int, int, int], _Captured]] = WeakKeyDictionary()

    def __call__(
        self, model: Any, observation: Tensor, task: Tensor, generator: torch.Generator, roots: int
    ) -> SearchResult:
        if (
            self._fails
            or not observation.is_cuda
            or not hasattr(model, "prepare")
            or torch.cuda.is_current_stream_capturing()
        ):
            return self._search(model, observation, task, generator, roots)
        model.prepare()
        graphs = self._captured.setdefault(model, {})
        key = (len(observation), roots, id(generator))
        if key not in graphs:
            try:
                graphs[key] = self._capture(model, observation, task, generator, roots)
            except RuntimeError as error:
                self._fails = True
                log.warning("searches run without CUDA graphs: %s", str(error).partition("\n")[0])
                return self._search(model, observation, task, generator, roots)
        captured = graphs[key]
        captured.observation.copy_(observation)
        captured.task.copy_(task)
        captured.graph.replay()
        # The graph writes the next result where this one is.
        return SearchResult(**{name: tensor.clone() for name, tensor in vars(captured.result).items()})

    def _capture(
        self, model: Any, observation: Tensor, task: Tensor, generator: torch.Generator, roots: int
    ) -> _Captured:
        """The search as a graph; the generator is as before."""
        observation, task = observation.clone(), task.clone()
        state, stream = generator.get_state(), torch.cuda.Stream(observation.device)
        stream.wait_stream(torch.cuda.current_stream(observation.device))
        with torch.cuda.stream(stream):
            for _ in range(2):  # constants, workspaces and the choice of kernels
                self._search(model, observation, task, generator, roots)
        torch.cuda.current_stream(observation.device).wait_stream(stream)
        generator.set_state(state)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(generator)
        # Other threads, such as the collector's, may use the device meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = self._search(model, observation, task, generator, roots)
        return _Captured(graph, observation, task, generator, result)
