"""Connects the ranks of a run, and ends all of them where one has died.

Gradients go over Lightning's process group. What ranks agree on between updates (go on, wait, stop,
fail) goes over a group of its own on gloo, always from the main thread: it waits for no GPU.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch import distributed

from ezm_pl.training.fault_tolerance.rendezvous import set_up_environment
from ezm_pl.training.lightning_internals import take_processes
from ezm_pl.training.ranks import RankError, Ranks

PATIENCE = 30
"""Seconds that the other ranks of this machine are given to end after one of them has."""
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")


@contextmanager
def connected(trainer: Trainer) -> Iterator[Ranks]:
    """Starts the other ranks of this machine, unless a launcher has, and connects all of them.

    At the end, also after an error, the connection is closed, and the ranks started here have ended.

    Raises:
        RankError: another rank has died.
    """
    strategy = trainer.strategy
    if trainer.world_size == 1:
        yield Ranks()
        return
    assert isinstance(strategy, DDPStrategy)
    launcher = strategy.launcher
    assert launcher is not None
    children: list[subprocess.Popen] = []
    ended = threading.Event()
    try:
        try:
            launcher.launch(set_up_environment, strategy)
        except KeyboardInterrupt:
            for child in getattr(launcher, "procs", ()):
                child.terminate()  # it waits as well, and has nothing to save
            raise
        children += take_processes(launcher)
        if children:
            threading.Thread(target=_watch, args=(children, ended), name="ezm-ranks", daemon=True).start()
        group = distributed.new_group(backend="gloo")
        yield Ranks(trainer.global_rank, trainer.world_size, strategy.num_processes, group)
    except RuntimeError as error:
        if any(sign in str(error) for sign in _LOST):
            raise RankError(
                "another rank of this run has died or cannot be reached; its own output says why"
            ) from error
        raise
    finally:
        ended.set()
        if distributed.is_initialized():
            distributed.destroy_process_group()
        for rank, child in enumerate(children, 1):
            how = "has ended with code"
            try:
                code = child.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                child.kill()
                how = f"has not ended {PATIENCE} seconds after this one, and was killed: code"
                code = child.wait()
            if code:
                print(f"ezm: rank {rank} {how} {code}", file=sys.stderr, flush=True)


def _watch(children: Sequence[subprocess.Popen], ended: threading.Event) -> None:
    """Where a rank has died and the others wait for it for ever, ends all of them."""
    while not ended.wait(1.0):
        dead = [f"{rank} (code {child.poll()})" for rank, child in enumerate(children, 1) if child.poll()]
        if dead and not ended.wait(PATIENCE):
            print(f"ezm: all wait for rank {', '.join(dead)}; ending them", file=sys.stderr, flush=True)
            for child in children:
                child.kill()
            os.kill(os.getpid(), signal.SIGKILL)


class OwnSignals(Callback):
    """Restores the SIGTERM handler that Lightning replaces: Lightning's own communicates with the other ranks
    at any moment, which can block all of them."""

    def __init__(self) -> None:
        self._handler = signal.getsignal(signal.SIGTERM)

    def _restore(self) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._handler)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the handler back."""
        self._restore()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the handler back."""
        self._restore()
