"""Memory, threads and processes of a training run from its first second to its last: does anything grow?

    .venv/bin/python benchmarks/soak.py SPEC [--set FIELD=VALUE ...] [--figure FILE] [--json FILE]

Starts `ezm train` as a user would and looks at it and all that it starts every few seconds. Memory is
the proportional set size: what processes share is counted once. At the end nothing may be left.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from timing import machine, show, write_json


@dataclass
class Samples:
    """Readings of a process and all below it, one entry per reading.

    Attributes:
        minutes: since the start. gib: memory. threads, processes: how many.
        seen: every process that there was.
    """

    minutes: list[float] = field(default_factory=list)
    gib: list[float] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    processes: list[int] = field(default_factory=list)
    seen: set[psutil.Process] = field(default_factory=set)

    def read(self, root: psutil.Process, started: float) -> None:
        """Adds a reading; processes that end meanwhile do not count."""
        memory, threads, count = 0, 0, 0
        try:
            tree = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in tree:
            try:
                info = process.memory_full_info()
                threads += process.num_threads()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            memory += getattr(info, "pss", info.uss)
            count += 1
            self.seen.add(process)
        if count:
            self.minutes.append((time.perf_counter() - started) / 60)
            self.gib.append(memory / 2**30)
            self.threads.append(threads)
            self.processes.append(count)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("spec", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", dest="settings")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between readings")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the readings")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    args = parser.parse_args()
    command = [sys.executable, "-m", "ezm_pl", "train", str(args.spec)]
    command += [word for setting in args.settings for word in ("--set", setting)]
    samples, started = Samples(), time.perf_counter()
    run = subprocess.Popen(command)
    root = psutil.Process(run.pid)
    while True:
        samples.read(root, started)
        try:
            code = run.wait(args.every)
        except subprocess.TimeoutExpired:
            continue
        break
    left = [process.pid for process in samples.seen if process.is_running()]
    minutes, gib = np.array(samples.minutes), np.array(samples.gib)
    quarters = [float(np.median(part)) for part in np.array_split(gib, 4)]
    half = minutes >= minutes[-1] / 2
    growth = float(np.polyfit(minutes[half], gib[half], 1)[0]) * 60 * 1024
    show(
        f"{args.spec.name}: {minutes[-1]:.0f} minutes",
        [
            "",
            *(f"quarter {n}" for n in range(1, 5)),
            "most",
            "growth in the second half",
        ],
        [
            ["memory, GiB", *(f"{q:.3f}" for q in quarters), f"{gib.max():.3f}", f"{growth:+.0f} MiB/hour"],
            _counts("threads", samples.threads),
            _counts("processes", samples.processes),
        ],
        machine(),
        caption=f"exit code {code}; left behind: {left or 'nothing'}",
    )
    if args.figure:
        draw(samples, args.figure, args.spec.name)
    write_json(
        args.json, machine(), minutes=samples.minutes, gib=samples.gib, threads=samples.threads,
        processes=samples.processes, growth_mib_an_hour=growth, code=code, left=left,
    )  # fmt: skip
    sys.exit(1 if code or left else 0)


def _counts(name: str, counts: list[int]) -> list[str]:
    middles = (f"{np.median(part):.0f}" for part in np.array_split(counts, 4))
    return [name, *middles, str(max(counts)), ""]


def draw(samples: Samples, path: Path, title: str) -> None:
    """Memory above, threads and processes below, against minutes."""
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    above.plot(samples.minutes, samples.gib, color="#1f5fbf")
    above.set_ylim(0, 1.15 * max(samples.gib))
    above.set_ylabel("memory, GiB")
    above.set_title(title, fontsize="medium")
    below.plot(samples.minutes, samples.threads, label="threads", color="#d1620a")
    below.plot(samples.minutes, samples.processes, label="processes", color="0.3")
    below.set_ylim(0)
    below.set_xlabel("minutes")
    below.legend(fontsize="small")
    for axis in (above, below):
        axis.grid(alpha=0.25)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
