"""Ctrl-C and its kin."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable

import pytest

from ezm_pl.commands.interrupts import hear_dropped_interrupts
from ezm_pl.tracking.fault_tolerance.signals import defer_sigint, signals_as_sigint


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_they_interrupt(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # `nohup pytest` ignores one of them
    try:
        with pytest.raises(KeyboardInterrupt), signals_as_sigint() as sweep, signals_as_sigint() as trial:
            signal.raise_signal(number)
        assert signal.getsignal(number) is signal.SIG_DFL
        assert sweep.by == trial.by == [number]
    finally:
        signal.signal(number, before)


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_as_sigint():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_interrupts_wait_for_the_end_of_a_short_write() -> None:
    written = []
    with pytest.raises(KeyboardInterrupt), defer_sigint():
        signal.raise_signal(signal.SIGINT)
        written.append("all of it")
    assert written == ["all of it"]
    with defer_sigint():
        pass


def test_sigterm_is_heard_where_ctrl_c_is_ignored() -> None:
    """As in what a shell script starts in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals_as_sigint() as stopped:
            signal.raise_signal(signal.SIGINT)
        assert stopped.by == []
        with pytest.raises(KeyboardInterrupt), signals_as_sigint(), defer_sigint():
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupt_that_python_drops_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a finalizer, as of weak references; what else is raised there is printed as before."""

    class Ends:
        def __init__(self, end: Callable[[], object]) -> None:
            self.end = end

        def __del__(self) -> None:
            self.end()

    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    hear_dropped_interrupts()
    with pytest.raises(KeyboardInterrupt):
        Ends(lambda: signal.raise_signal(signal.SIGINT))
        time.sleep(60)
    printed: list[object] = []
    monkeypatch.setattr(sys, "__unraisablehook__", printed.append)
    Ends(lambda: 1 / 0)
    assert len(printed) == 1
