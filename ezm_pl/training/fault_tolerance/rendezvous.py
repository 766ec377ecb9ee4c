"""How ranks find one another: a wait that says what it waits for, and that a signal can end.

PyTorch waits for its peers in C++, where no Python signal handler runs, for half an hour.
"""

from __future__ import annotations

import socket
import sys
import time
from contextlib import closing
from datetime import timedelta

from lightning.pytorch.strategies import DDPStrategy
from torch.distributed import TCPStore, is_torchelastic_launched

from ezm_pl.spec import RunFailed

QUIET_SECONDS = 20.0
"""Before the first word: ranks that this process starts take about ten seconds to come."""
PATIENCE_SECONDS = 1800.0
_POLL_SECONDS = 0.2
_ARRIVED = "ezm/ranks"


def set_up_environment(strategy: DDPStrategy) -> None:
    """What `DDPStrategy.setup_environment` does, once every rank has come.

    Raises:
        RunFailed: some rank has not come within `PATIENCE_SECONDS`.
    """
    store = None
    cluster = strategy.cluster_environment
    if cluster is not None and not is_torchelastic_launched():  # torchrun has waited for all of them
        strategy.set_world_ranks()
        store = await_ranks(
            cluster.main_address,
            cluster.main_port,
            strategy.global_rank,
            strategy.world_size,
            tells=strategy.local_rank == 0,
        )
    strategy.setup_environment()
    del store  # its server has become the process group's


def await_ranks(address: str, port: int, rank: int, size: int, *, tells: bool = True) -> TCPStore:
    """Waits until `size` ranks have called this.

    Args:
        address: of rank 0's machine, which serves the store.
        port: of the store.
        rank: of this process.
        size: ranks in all.
        tells: whether to say on standard error which ranks are missing.

    Returns:
        The store, to be kept until the process group is made at the same address.

    Raises:
        RunFailed: after `PATIENCE_SECONDS`.
    """
    began, told = time.monotonic(), False
    where = f"{address}:{port}"
    store: TCPStore | None = None
    arrived = 0
    while arrived < size:
        if store is None and (rank == 0 or _answers(address, port)):
            store = TCPStore(
                address,
                port,
                size,
                is_master=rank == 0,
                timeout=timedelta(seconds=10),
                wait_for_workers=False,
                multi_tenant=True,
            )
            store.add(_ARRIVED, 1)
        arrived = store.add(_ARRIVED, 0) if store is not None else 0
        waited = time.monotonic() - began
        missing = (
            f"rank 0 at {where}" if store is None else f"{size - arrived} of {size} ranks to join {where}"
        )
        if waited > PATIENCE_SECONDS:
            raise RunFailed(f"waited {PATIENCE_SECONDS / 60:.0f} minutes for {missing}")
        if tells and not told and arrived < size and waited > QUIET_SECONDS:
            print(f"ezm: waiting for {missing} ({_HOW}); Ctrl-C stops", file=sys.stderr, flush=True)
            told = True
        if arrived < size:
            time.sleep(_POLL_SECONDS)
    assert store is not None
    return store


_HOW = "each machine needs the same MASTER_ADDR and MASTER_PORT, and its own NODE_RANK"


def _answers(address: str, port: int) -> bool:
    """Whether a server listens there. PyTorch's client would wait without handling signals."""
    try:
        with closing(socket.create_connection((address, port), timeout=2.0)):
            return True
    except OSError:
        return False
