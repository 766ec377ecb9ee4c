"""The next batch is drawn while the learner computes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """Iterates over `items` one item ahead, in a thread of its own.

    An exception in `items` is raised where the item would have come. The thread ends with `items`, or
    by `stop`; whoever makes an `Ahead` sees to it that one of them happens.

    Args:
        items: what to go through; only the thread touches it.
    """

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items
        self._ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=1)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ezm-batches", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        while not self._stopped.is_set():
            try:
                item, error = self._ready.get(timeout=0.1)
            except queue.Empty:
                continue
            if error is None:
                return item  # type: ignore[return-value]
            self.stop()
            raise error
        raise StopIteration

    def stop(self) -> None:
        """Ends the thread and waits for it, which lasts as long as the item that it is at."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            for item in self._items:
                if not self._put(item, None):
                    return
            self._put(None, StopIteration())
        except BaseException as error:  # noqa: BLE001 - raised by `__next__` in the consumer's thread
            self._put(None, error)

    def _put(self, item: T | None, error: BaseException | None) -> bool:
        while not self._stopped.is_set():
            try:
                self._ready.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
