"""Ctrl-C: the first one asks for an orderly end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ezm_pl.training.agent_module import AgentModule
from ezm_pl.training.data import SelfPlayDataModule


@contextmanager
def stops_in_order(data: SelfPlayDataModule, module: AgentModule) -> Iterator[None]:
    """Inside, the first Ctrl-C asks for an orderly stop; the second is an ordinary KeyboardInterrupt.

    However the block ends, collection has stopped after it: Lightning tears the data module down only
    where nothing was raised, and a thread left in MuJoCo crashes the interpreter's exit.
    """

    def stop(_: int, __: FrameType | None) -> None:
        if data.sync.asked_to_stop.is_set():
            raise KeyboardInterrupt
        data.sync.ask_to_stop()

    in_main_thread = threading.current_thread() is threading.main_thread()  # only there may signals be set
    before = signal.signal(signal.SIGINT, stop) if in_main_thread else None
    try:
        yield
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        data.teardown("fit")
        module.teardown("fit")
        if in_main_thread:
            signal.signal(signal.SIGINT, before)
