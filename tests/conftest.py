"""What all tests share."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest
import torch

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # as the product does: tests import MLflow before it


LONGEST = {
    "test_train.py", "test_away.py", "test_ranks.py", "test_sweep_runs.py", "test_fit.py",
    "test_checkpoint.py", "test_ablations.py", "test_distill.py", "test_export.py",
    "test_resumed_metrics.py",
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take longest come first, so that no process is left with one of them at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tensors here are tiny: threads would only get in each other's way (20x the time on a busy machine)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def imports_are_no_garbage() -> None:
    """What is imported stays: leaving it out makes each collection of garbage cheap."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def memory() -> Iterator[None]:
    """A file's trainers and environments, which refer to each other, do not outlive it."""
    yield
    gc.collect()
    if psutil.Process().memory_info().rss > 2**30:
        with suppress(OSError, AttributeError):  # not Linux, or another C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # it keeps what 46 simulations had


@pytest.fixture(autouse=True, scope="session")
def ctrl_c() -> Iterator[None]:
    """Ctrl-C works here and in what tests start, also where pytest was started to ignore it (`nohup`)."""
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def small_disk() -> Iterator[Callable[[Path, str], None]]:
    """Puts a folder on a disk of its own, in memory and so large (`8m`); skips where it may not."""
    with ExitStack() as mounted:

        def mount(folder: Path, size: str) -> None:
            folder.mkdir()
            command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"mount is not permitted here: {done.stderr.strip()}")
            mounted.callback(subprocess.run, ["umount", "-l", str(folder)], check=True)

        yield mount
