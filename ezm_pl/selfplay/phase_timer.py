"""Which phase a thread's time goes into."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.profiler import record_function

PHASE = "phase: "
"""How the names of phases begin in torch's profiler."""


class PhaseTimer:
    """Adds up the seconds of a thread's phases; what no phase covers is `other`.

    On a GPU a phase lasts from one event in its stream to another: what the GPU spends between them, idle
    or not, and not what the host takes to queue it. Only `read` waits for queued work.

    Args:
        device: whose time it is; None for the host's.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._stream = torch.cuda.current_stream(device) if device and device.type == "cuda" else None
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._queued: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._start = time.perf_counter()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """The time inside is the phase's. Phases are not nested."""
        with record_function(PHASE + phase):
            if self._stream is not None:
                begin = self._record()
                yield
                self._queued.append((phase, begin, self._record()))
                return
            begun = time.perf_counter()
            try:
                yield
            finally:
                self._seconds[phase] += time.perf_counter() - begun

    def read(self) -> dict[str, float]:
        """Seconds of every phase so far, and of `other`."""
        for phase, begin, end in self._queued:
            end.synchronize()
            self._seconds[phase] += begin.elapsed_time(end) / 1e3
        self._queued.clear()
        passed = time.perf_counter() - self._start
        return {**self._seconds, "other": max(0.0, passed - sum(self._seconds.values()))}

    def _record(self) -> torch.cuda.Event:
        assert self._stream is not None
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        return event


def shares(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Each phase's share of the time between two readings; empty if there was none."""
    passed = {phase: max(0.0, seconds - before.get(phase, 0.0)) for phase, seconds in after.items()}
    total = sum(passed.values())
    return {phase: seconds / total for phase, seconds in passed.items()} if total > 0 else {}
