"""From replay to the learner: draw a batch, move it to the device, compute its targets."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Generic, TypeVar

import torch
from torch.profiler import record_function
from torch.utils.data import IterableDataset

from ezm_pl.selfplay import PHASE
from ezm_pl.training.batch import Batch

T = TypeVar("T")
"""An agent's targets: EZ-M's `Targets`; None where the update computes its own."""


class Prepared(Generic[T]):
    """A batch with its targets, which may still be on their way.

    Attributes:
        windows: the batch as it was drawn, on the host.
    """

    def __init__(self, windows: Batch, result: Callable[[], tuple[Batch, T]]) -> None:
        self.windows, self._result = windows, result

    def result(self) -> tuple[Batch, T]:
        """The batch on the learner's device and its targets; waits for them.

        Raises:
            whatever computing the targets raised.
        """
        return self._result()


class Pipeline(IterableDataset[Prepared[T]]):
    """Endless batches with targets, prepared one update ahead in one thread.

    On the CPU the thread reanalyses the next batch while the learner works on this one. On a GPU, where
    one stream does all the work, it draws the next batch into page-locked memory instead.

    Args:
        draws: iterates over batches on the host; ends when the run does.
        targets: gives the targets of a batch (EZ-M's reanalysis), at a number of updates done.
        updates: asked for that number when a batch is drawn.
        device: of the learner.
        draw_ahead: whether batches may be drawn in the thread (on a GPU).
        threads: torch's threads for the operations of the thread.
    """

    def __init__(
        self,
        draws: Callable[[], Iterator[Batch]],
        targets: Callable[[Batch, int], T],
        updates: Callable[[], int],
        *,
        device: torch.device,
        draw_ahead: bool,
        threads: int,
    ) -> None:
        self._draws, self._targets, self._updates = draws, targets, updates
        self._device, self._draw_ahead = device, draw_ahead
        self._thread = ThreadPoolExecutor(1, "ezm-pipeline", torch.set_num_threads, (threads,))
        self._running: deque[Future[tuple[Batch, T]]] = deque()

    def __iter__(self) -> Iterator[Prepared[T]]:
        if self._draw_ahead or self._device.type == "cuda":
            for windows in self._drawn_ahead() if self._draw_ahead else self._draws():
                yield Prepared(windows, partial(self._prepare, windows, self._updates()))
        else:
            for windows in self._draws():
                future = self._thread.submit(self._prepare, windows, self._updates())
                while self._running and self._running[0].done():
                    self._running.popleft()
                self._running.append(future)
                yield Prepared(windows, future.result)

    def _drawn_ahead(self) -> Iterator[Batch]:
        draws, pin = self._draws(), torch.cuda.is_available()

        def draw() -> Batch | None:
            windows = next(draws, None)
            return windows.pin_memory() if pin and windows is not None else windows

        following = self._thread.submit(draw)
        while (windows := following.result()) is not None:
            following = self._thread.submit(draw)
            yield windows

    def _prepare(self, windows: Batch, updates: int) -> tuple[Batch, T]:
        with record_function(PHASE + "reanalysis"):
            batch = Batch(*(x.to(self._device, non_blocking=True) for x in windows))
            return batch, self._targets(batch, updates)

    def drain(self) -> None:
        """Waits until nothing is being reanalysed: the target network and random streams may then change."""
        wait(self._running)

    def stop(self) -> None:
        """Ends the thread, which lasts as long as the batch that it is at."""
        self._thread.shutdown(cancel_futures=True)
        self._running.clear()
