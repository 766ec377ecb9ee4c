"""Ranks that wait for one another: they say so, they meet in any order, and a signal ends the wait."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from pathlib import Path

import fork_server
import pytest

RANK = """
import sys, time
from ezm_pl.training.fault_tolerance import rendezvous
rendezvous.QUIET_SECONDS = 0.5
rank, size = int(sys.argv[2]), int(sys.argv[3])
store = rendezvous.await_ranks("127.0.0.1", int(sys.argv[1]), rank, size)
print("met", flush=True)
store.add("ended", 1)
while rank == 0 and store.add("ended", 0) < size:  # where the others meet ends last
    time.sleep(0.05)
"""


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(port: int, rank: int, size: int) -> fork_server.Forked:
    arguments = ["-c", RANK, str(port), str(rank), str(size)]
    return fork_server.start(arguments, cwd=Path(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def first_line(process: fork_server.Forked) -> str:
    assert process.stderr is not None
    return process.stderr.readline()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_alone_says_what_it_waits_for_and_a_signal_ends_it(rank: int, port: int) -> None:
    process = start(port, rank, 2)
    missing = f"1 of 2 ranks to join 127.0.0.1:{port}" if rank == 0 else f"rank 0 at 127.0.0.1:{port}"
    assert first_line(process).startswith(
        f"ezm: waiting for {missing} (each machine needs the same MASTER_ADDR"
    )
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert err.splitlines()[-1] == "KeyboardInterrupt"
    assert out == ""


def test_ranks_meet_whoever_comes_first(port: int) -> None:
    late = start(port, 1, 3)
    assert "waiting for rank 0" in first_line(late)
    others = [start(port, rank, 3) for rank in (0, 2)]
    for process in (late, *others):
        out, err = process.communicate(timeout=250)
        assert (out, process.returncode) == ("met\n", 0), err
