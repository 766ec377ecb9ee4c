"""What saving full replay buffers costs: time, size, and how long training waits for it.

    python benchmarks/checkpoint.py [--tasks 29] [--capacity 100000] [--folder DIR]

One thread adds (as the collector does), one samples and sets priorities (as the learner does); the
longest time that either spent in one call is the stall. First everything is saved, then what a
checkpoint interval has changed, some times over.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from ezm_pl.replay import ReplayBuffer, ReplayStore
from ezm_pl.spec.experiment import ReplaySpec, TargetSpec

OBSERVATION, ACTION, ENVS, BATCH = 308, 61, 16, 512


class Traffic:
    """Adds and samples in two threads, at most `rate` vector steps and batches per second."""

    def __init__(self, buffer: ReplayBuffer, tasks: int) -> None:
        self.buffer, self.longest, self._stop = buffer, {"add": 0.0, "sample": 0.0}, threading.Event()
        rows = tasks * ENVS
        random = np.random.default_rng(0)
        self.step = (
            random.standard_normal((rows, OBSERVATION), np.float32),
            random.standard_normal((rows, ACTION), np.float32),
            np.ones(rows, np.float32),
            np.zeros(rows, bool),
            np.zeros(rows, bool),
        )
        self.steps = 0
        self.threads = [threading.Thread(target=self._loop, args=(w,)) for w in ("add", "sample")]

    def add(self) -> None:
        """One step of every environment; episodes of 1,000 steps."""
        self.steps += 1
        *start, terminated, truncated = self.step
        truncated = np.full_like(truncated, self.steps % 1000 == 0)
        self.buffer.add(*start, terminated, truncated, start[0])

    def _sample(self) -> None:
        windows = self.buffer.sample(BATCH)
        self.buffer.update_priorities(
            windows.task, windows.replay_index, windows.transition_id, windows.weight
        )

    def _loop(self, what: str) -> None:
        function = self.add if what == "add" else self._sample
        while not self._stop.wait(0.05):
            start = time.perf_counter()
            function()
            self.longest[what] = max(self.longest[what], time.perf_counter() - start)

    def __enter__(self) -> Traffic:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self.threads:
            thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=29)
    parser.add_argument("--capacity", type=int, default=100_000, help="transitions per task")
    parser.add_argument("--interval", type=int, default=200, help="vector steps between saves")
    parser.add_argument("--saves", type=int, default=3, help="incremental saves")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: a temporary one")
    args = parser.parse_args()
    specs = ReplaySpec(capacity=args.capacity, block_size=100), TargetSpec()
    sizes = {"observation_size": OBSERVATION, "action_size": ACTION}
    needed = ReplayBuffer.estimate_bytes(*specs, **sizes, tasks=args.tasks) * 1.3
    there = psutil.virtual_memory().available
    if needed > there:
        raise SystemExit(f"{needed / 2**30:.1f} GiB are needed and {there / 2**30:.1f} are free: --capacity")
    buffer = ReplayBuffer(np.repeat(np.arange(args.tasks), ENVS), *specs, **sizes)
    traffic = Traffic(buffer, args.tasks)
    while len(buffer) < 0.99 * args.tasks * args.capacity and traffic.steps * ENVS < 1.05 * args.capacity:
        for _ in range(200):
            traffic.add()
    table = Table(
        "save", "snapshot ms", "write s", "MiB written", "MiB on disk", "longest add ms", "longest sample ms"
    )
    with tempfile.TemporaryDirectory(dir=args.folder) as folder, traffic:
        time.sleep(3)
        table.add_row("(none)", "", "", "", "", *longest(traffic))
        store = ReplayStore(buffer, Path(folder))
        memory = psutil.Process().memory_info().rss
        for number in range(1 + args.saves):
            before = {path.name for path in store.folder.glob("*")}
            start = time.perf_counter()
            plan = store.begin(str(number))
            taken = time.perf_counter()
            store.write(plan)
            store.keep({str(number), str(number - 1)} if number else {"0"})
            written = time.perf_counter()
            files = {path.name: path.stat().st_size for path in store.folder.glob("*")}
            new = sum(size for name, size in files.items() if name not in before)
            table.add_row(
                "full" if number == 0 else f"incremental {number}",
                f"{1000 * (taken - start):.0f}",
                f"{written - taken:.1f}",
                f"{new / 2**20:,.0f}",
                f"{sum(files.values()) / 2**20:,.0f}",
                *longest(traffic),
            )
            target = traffic.steps + args.interval
            while traffic.steps < target:
                time.sleep(0.05)
            longest(traffic)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - memory
        other = (
            ReplayBuffer(np.repeat(np.arange(args.tasks), ENVS), *specs, **sizes)
            if psutil.virtual_memory().available > needed
            else None
        )
        if other is not None:
            start = time.perf_counter()
            assert ReplayStore(other, Path(folder)).load(str(args.saves)) == []
            print(f"loaded in {time.perf_counter() - start:.1f} s, {len(other):,} transitions")
    Console(width=120).print(table)
    print(
        f"{args.tasks} tasks x {args.capacity:,} transitions, {len(buffer):,} stored, arrays of "
        f"{buffer.nbytes / 2**30:.2f} GiB; memory grew by at most {max(0, peak) / 2**20:.0f} MiB while saving"
    )


def longest(traffic: Traffic) -> tuple[str, str]:
    """The longest add and sample since the last call, in ms."""
    found = traffic.longest
    traffic.longest = {"add": 0.0, "sample": 0.0}
    return f"{1000 * found['add']:.0f}", f"{1000 * found['sample']:.0f}"


if __name__ == "__main__":
    main()
