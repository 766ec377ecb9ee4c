"""Ctrl-C, `kill`, a scheduler and a closed terminal all end a run in the same orderly way."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

INTERRUPTED_EXIT = 130
"""Exit code of a run that Ctrl-C ended (128 + SIGINT)."""


RESUME_EXIT = 75
"""Exit code of a run that SIGTERM or SIGUSR1 ended (EX_TEMPFAIL): nothing is wrong, resume it."""


@dataclass
class Stopped:
    """Which signals have ended the run.

    Attributes:
        by: their numbers, in order; Ctrl-C's own is not among them.
    """

    by: list[int] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """`RESUME_EXIT` where a scheduler has ended it, else `INTERRUPTED_EXIT`."""
        return RESUME_EXIT if {signal.SIGTERM, signal.SIGUSR1} & set(self.by) else INTERRUPTED_EXIT


_entered: list[Stopped] = []
"""Of the blocks that this process is in, the outermost first: a sweep's, its trial's."""


@contextmanager
def signals_as_sigint() -> Iterator[Stopped]:
    """Inside, SIGTERM, SIGUSR1 and SIGHUP act as Ctrl-C does. One that was ignored (`nohup`) stays ignored.

    Each of several blocks in one another knows what has ended the run.
    SLURM sends SIGUSR1 ahead of the time limit if asked to (`--signal=USR1@120`).
    """
    stopped = Stopped()

    def sigint(number: int, frame: FrameType | None) -> None:
        if stopped.by:
            signal.default_int_handler(number, frame)

    def interrupt(number: int, _: FrameType | None) -> None:
        for each in _entered:
            each.by.append(number)
        signal.raise_signal(signal.SIGINT)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, interrupt)
    if (
        signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    ):  # by a shell script that runs this in the background
        before[signal.SIGINT] = signal.signal(signal.SIGINT, sigint)
    _entered.append(stopped)
    try:
        yield stopped
    finally:
        _entered.pop()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def defer_sigint() -> Iterator[None]:
    """Inside, Ctrl-C waits until the block has ended: for short writes that must be whole."""
    waiting: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: waiting.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if waiting:
        signal.raise_signal(signal.SIGINT)
