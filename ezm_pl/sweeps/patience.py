"""What a worker does while a store does not answer: it says so once, and goes on or tries again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from ezm_pl.tracking.store import first_line, store_errors

PATIENCE_SECONDS = 600.0
"""Seconds that `Patience.insist` tries for."""
_RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 15.0)

T = TypeVar("T")


class Patience:
    """Outlasts a store that is away for a while.

    Args:
        tell: takes one line for the user, when the store stops answering and when it answers again.
        store: its name in these lines.
        errors: what it raises while it does not answer.
    """

    def __init__(
        self,
        tell: Callable[[str], None],
        store: str = "MLflow",
        errors: Callable[[], tuple[type[Exception], ...]] = store_errors,
    ) -> None:
        self._tell, self._store, self._errors, self._away = tell, store, errors, False

    @contextmanager
    def spare(self) -> Iterator[None]:
        """Inside, the store may be away: what it was not told then is told it later, by the caller."""
        try:
            yield
        except self._errors() as error:
            self._is_away(error)
        else:
            self._answers()

    def insist(self, do: Callable[[], T]) -> T:
        """What `do` returns, which is called again while the store does not answer; twice must do no harm.

        Raises:
            Exception: the store's, after `PATIENCE_SECONDS`.
        """
        ends, failures = time.monotonic() + PATIENCE_SECONDS, 0
        while True:
            try:
                result = do()
            except self._errors() as error:
                self._is_away(error)
                wait = _RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)]
                if time.monotonic() + wait > ends:
                    raise
                time.sleep(wait)
                failures += 1
            else:
                self._answers()
                return result

    def _is_away(self, error: Exception) -> None:
        if not self._away:
            self._tell(f"{self._store} does not answer: {first_line(error)}. The sweep tries again later")
        self._away = True

    def _answers(self) -> None:
        if self._away:
            self._tell(f"{self._store} answers again")
        self._away = False
