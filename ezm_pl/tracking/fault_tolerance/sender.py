"""Sends metrics to MLflow from a thread, and keeps them while the store does not answer."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ezm_pl.tracking.store import first_line

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

UNSENT = Path("unsent_metrics.jsonl")
"""In a run's folder: points that could not be sent, one `[name, value, milliseconds, step]` per line."""
MOST_POINTS = 1_000_000
"""Points kept while the store does not answer: days of training, at some 30 points per 50 updates."""
_PER_REQUEST = 500
_RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 15.0)


class Sender:
    """Sends points in the order in which they are put, each with its own time stamp.

    Args:
        client: of the tracking store.
        run_id: whose points they are.
        tell: takes one line for the user, when the store stops answering and when it answers again.
    """

    def __init__(self, client: MlflowClient, run_id: str, tell: Callable[[str], None]) -> None:
        self._client, self._run_id, self._tell = client, run_id, tell
        self._points: deque[Metric] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="ezm-metrics", daemon=True)
        self._thread.start()

    def put(self, points: Sequence[Metric]) -> None:
        """Takes points and returns at once; drops the oldest where there are too many."""
        with self._changed:
            self._points.extend(points)
            while len(self._points) > MOST_POINTS:
                self._points.popleft()
                self._dropped += 1
            self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Waits up to `seconds` until everything is sent. Returns whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._points, timeout=seconds)

    def close(self, seconds: float, left: Path) -> str | None:
        """Tries for `seconds` to send the rest, ends the thread, and writes unsent points to the file `left`.

        Returns:
            What to tell the user; None where everything was sent.
        """
        self.flush(seconds)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()  # at most one request's time-out
        text = f"{self._dropped:,} metric points were dropped: too many to keep. " if self._dropped else ""
        if self._points:
            try:
                with left.open("a", encoding="utf-8") as file:
                    for p in self._points:
                        file.write(json.dumps([p.key, p.value, p.timestamp, p.step]) + "\n")
            except OSError as error:
                text += f"{len(self._points):,} metric points are lost: {left}: {error.strerror}"
            else:
                text += (
                    f"{len(self._points):,} metric points could not be sent and are in {left}; "
                    "--resume sends them first"
                )
        return text or None

    def _run(self) -> None:
        failures, since = 0, 0.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._points or self._closing)
                if self._closing:
                    return
                batch = [self._points[n] for n in range(min(_PER_REQUEST, len(self._points)))]
            problem = _send(self._client, self._run_id, batch)
            if problem is None or not problem.passes:
                with self._changed:
                    for point in batch:
                        if self._points and self._points[0] is point:  # else given up in the meantime
                            self._points.popleft()
                    self._changed.notify_all()
            if problem is None and failures:
                away = time.monotonic() - since
                self._tell(
                    f"MLflow is back after {away:.0f} seconds; {len(self._points):,} points are waiting"
                )
                failures = 0
            elif problem is not None and not problem.passes:
                self._tell(f"MLflow refuses {len(batch)} metric points: {problem.text}")
            elif problem is not None:
                if not failures:
                    since = time.monotonic()
                    self._tell(
                        f"MLflow does not accept metrics: {problem.text}. Training goes on; metrics are kept "
                        "and sent when it is back"
                    )
                with self._changed:
                    self._changed.wait_for(
                        lambda: self._closing, timeout=_RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)]
                    )
                failures += 1


def send_left(client: MlflowClient, run_id: str, left: Path) -> int:
    """Sends the points that an earlier session left in a file, and removes the file. Returns their number.

    Lines that cannot be read are skipped: a full disk cuts the last one.
    """
    from mlflow.entities import Metric

    if not left.is_file():
        return 0
    points = []
    for line in left.read_text(encoding="utf-8").splitlines():
        try:
            key, value, milliseconds, step = json.loads(line)
            points.append(Metric(str(key), float(value), int(milliseconds), int(step)))
        except (ValueError, TypeError):
            continue
    for first in range(0, len(points), _PER_REQUEST):
        client.log_batch(run_id, metrics=points[first : first + _PER_REQUEST])
    left.unlink()
    return len(points)


class _Problem(NamedTuple):
    """Why MLflow did not accept points, and whether it may accept them later."""

    text: str
    passes: bool


def _send(client: MlflowClient, run_id: str, points: Sequence[Metric]) -> _Problem | None:
    from mlflow.exceptions import MlflowException

    try:
        client.log_batch(run_id, metrics=points)
    except MlflowException as error:
        status = error.get_http_status_code()
        return _Problem(first_line(error), passes=status >= 500 or status in (408, 429))
    except Exception as error:  # noqa: BLE001 - a database's driver, a disk, a proxy: whatever it is may pass
        return _Problem(first_line(error), passes=True)
    return None
