"""A thread beside training, whose failure reaches the main thread."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod

import torch

from ezm_pl.selfplay.pacing import Pacing


class BackgroundError(RuntimeError):
    """A background thread failed; its own exception is the cause."""


class BackgroundThread(ABC):
    """Works in a thread until it is done, stopped, or fails.

    A subclass gives `_work`, which ends soon after `_stop` is set and `pacing` is stopped.

    Args:
        pacing: when to wait; stopped with the thread, also where that fails.
        name: of the thread.
        failed: what a failure is called, such as `self-play failed`.
        error: what `check` raises.
    """

    def __init__(self, pacing: Pacing, *, name: str, failed: str, error: type[BackgroundError]) -> None:
        self.pacing, self._what, self._error = pacing, failed, error
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @abstractmethod
    def _work(self) -> None:
        """What the thread does; it closes what it opens."""

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stops the thread and waits until it has ended, and so has closed what it opened."""
        self._stop.set()
        self.pacing.stop()
        if self._thread.ident is not None:
            self._thread.join()

    def check(self) -> None:
        """Raises a `BackgroundError` from the thread's own exception, if it has failed."""
        if self._failure is not None:
            raise self._error(f"{self._what}: {self._failure!r}") from self._failure

    @property
    def failed(self) -> bool:
        """Whether `check` would raise."""
        return self._failure is not None

    def _run(self) -> None:
        torch.set_num_threads(self._threads)  # a thread's own; other threads may have others
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - handed to the main thread by `check`
            self._failure = error
            self.pacing.stop()
