"""Ctrl-C: the first one asks for an orderly end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import lightning as L


@contextmanager
def stops_in_order(
    data: L.LightningDataModule,
    module: L.LightningModule,
    *,
    asked: Callable[[], bool],
    ask: Callable[[], None],
) -> Iterator[None]:
    """Inside, the first Ctrl-C asks for an orderly stop; the second is an ordinary KeyboardInterrupt.

    However the block ends, the data module's thread has stopped after it: Lightning tears the data module
    down only where nothing was raised, and a thread left in MuJoCo crashes the interpreter's exit.

    Args:
        data, module: what is torn down.
        asked: whether a stop has been asked for.
        ask: asks for one.
    """

    def stop(_: int, __: FrameType | None) -> None:
        if asked():
            raise KeyboardInterrupt
        ask()

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
