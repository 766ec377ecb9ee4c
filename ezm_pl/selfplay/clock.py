"""Where a thread's time goes."""

from __future__ import annotations

import time
from collections import defaultdict

import torch


class Clock:
    """Adds up the seconds of a thread's parts: every moment belongs to exactly one of them.

    On a GPU the moments are events in its stream, so that a part is what the GPU spent between them,
    idle or not, and not what the host took to queue it. Only `read` waits for queued work.

    Args:
        device: whose time it is; None for the host's.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._stream = torch.cuda.current_stream(device) if device and device.type == "cuda" else None
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._laps: list[tuple[str, torch.cuda.Event]] = []
        self._event = self._record() if self._stream else None
        self._time = time.perf_counter()

    def lap(self, part: str) -> None:
        """The time since the last lap has been `part`'s."""
        if self._stream is not None:
            self._laps.append((part, self._record()))
            return
        now = time.perf_counter()
        self._seconds[part] += now - self._time
        self._time = now

    def read(self) -> dict[str, float]:
        """Seconds of every part up to the last lap."""
        for part, event in self._laps:
            event.synchronize()
            assert self._event is not None
            self._seconds[part] += self._event.elapsed_time(event) / 1e3
            self._event = event
        self._laps.clear()
        return dict(self._seconds)

    def _record(self) -> torch.cuda.Event:
        assert self._stream is not None
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        return event


def shares(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Each part's share of the time between two readings of a clock; empty if there was none."""
    passed = {part: seconds - before.get(part, 0.0) for part, seconds in after.items()}
    total = sum(passed.values())
    return {part: seconds / total for part, seconds in passed.items()} if total > 0 else {}
