"""Threads that share a list of jobs with the thread that calls them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np


class ThreadPool:
    """Does jobs 0 to N - 1 over and over, in the calling thread and in `helpers` more.

    Jobs are taken one by one, those that took longest the last time first, so that nobody waits long for
    the last. The caller works too: waking a thread costs as much as a good part of a physics step.

    Args:
        jobs: N.
        helpers: threads beside the caller.
    """

    def __init__(self, jobs: int, helpers: int) -> None:
        self._seconds = np.zeros(jobs)
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._help, name=f"ezm-envs-{n}", daemon=True) for n in range(helpers)
        ]
        for thread in self._threads:
            thread.start()

    def each(self, job: Callable[[int], object]) -> None:
        """Calls `job(n)` for every n and waits; the first exception of a job is raised here."""
        call = _Call(job, iter(np.argsort(-self._seconds).tolist()), self._seconds)
        for _ in self._threads:
            self._calls.put(call)
        call.work()
        for _ in self._threads:
            call.done.get()
        if call.failures:
            raise call.failures[0]

    def close(self) -> None:
        """Ends the threads."""
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _help(self) -> None:
        while (call := self._calls.get()) is not None:
            call.work()
            call.done.put(None)


class _Call:
    """One round of jobs. Taking from `order`, a list's iterator, is atomic."""

    def __init__(self, job: Callable[[int], object], order: Iterator[int], seconds: np.ndarray) -> None:
        self.job, self.order, self.seconds = job, order, seconds
        self.done: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.failures: list[BaseException] = []

    def work(self) -> None:
        """Takes jobs until there are no more, or one has failed."""
        try:
            for n in self.order:
                start = time.perf_counter()
                self.job(n)
                self.seconds[n] = time.perf_counter() - start
                if self.failures:
                    return
        except BaseException as error:  # noqa: BLE001 - raised by `ThreadPool.each`
            self.failures.append(error)
