"""What the benchmarks share: interleaved rounds, medians with quartiles, tables, JSON, machine facts."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from ezm_pl.envs.stepping.vector import available_cores


@dataclass(frozen=True)
class Spread:
    """Median, lower and upper quartile of `count` values."""

    median: float
    low: float
    high: float
    count: int

    def __format__(self, form: str) -> str:
        """`median (low-high)`, each in `form`."""
        return f"{self.median:{form}} ({self.low:{form}}-{self.high:{form}})"

    def scaled(self, factor: float) -> Spread:
        """In another unit, `factor` times the values."""
        return Spread(self.median * factor, self.low * factor, self.high * factor, self.count)


def spread(values: Sequence[float] | NDArray[np.float64]) -> Spread:
    """Median and quartiles of values `[n]`."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return Spread(float(middle), float(low), float(high), len(values))


def rounds(
    sides: Mapping[str, Callable[[], object]],
    seconds: float,
    *,
    warm_up: int = 2,
    at_least: int = 3,
    device: torch.device | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, NDArray[np.float64]]:
    """Times all sides turn about, so that whatever else the machine does falls on each of them.

    Args:
        sides: what to call, by name.
        seconds: after which no further round starts; at least `at_least` rounds are made.
        warm_up: calls of each side that are not timed (compilation, caches).
        device: whose queued work belongs to a call; None or cpu: nothing is queued.
        clock: `time.process_time` on a machine with other work, which wall-clock time would count.

    Returns:
        Seconds `[rounds]` of each side; entry `i` of all sides comes from the same round.
    """
    names = list(sides)
    for name in names:
        for _ in range(warm_up):
            sides[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + seconds
    turn = 0
    while turn < at_least or time.perf_counter() < end:
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(once(sides[name], device, clock))
        turn += 1
    return {name: np.array(values) for name, values in times.items()}


def once(
    call: Callable[[], object],
    device: torch.device | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds of one call, with all work that it queues on `device`."""
    _wait(device)
    start = clock()
    call()
    _wait(device)
    return clock() - start


def _wait(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_flops(dtype: torch.dtype, device: torch.device, seconds: float = 1.0, size: int = 0) -> float:
    """Floating-point operations per second of a plain square matrix product: the fastest of many.

    `size` 0: 2,048 on the CPU, 8,192 elsewhere.
    """
    size = size or (2048 if device.type == "cpu" else 8192)
    left, right = (torch.rand(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)
    times = rounds({"product": lambda: torch.mm(left, right, out=out)}, seconds, device=device)["product"]
    return 2 * size**3 / float(times.min())


def flop_counter() -> FlopCounterMode:
    """Counts the floating-point operations of matrix products inside, packed layers' included."""

    def linear(x: Sequence[int], *others: Any, out_shape: Sequence[int], **named: Any) -> int:
        return 2 * math.prod(x) * out_shape[-1]

    packed = {}
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        packed[torch.ops.mkldnn._linear_pointwise] = linear
    return FlopCounterMode(display=False, custom_mapping=packed)


def machine(device: torch.device | None = None) -> dict[str, Any]:
    """Facts to read the numbers by."""
    facts: dict[str, Any] = {
        "processor": _processor(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if device is not None and device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def parser(doc: str | None, seconds: float, what: str) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have: `--seconds` (of `what`), `--seed`, `--json`."""
    result = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    result.add_argument("--seconds", type=float, default=seconds, help=f"{what} (default: {seconds:g})")
    result.add_argument("--seed", type=int, default=0)
    result.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    return result


def show(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    facts: Mapping[str, Any],
    caption: str = "",
) -> None:
    """Prints a table: its first column on the left, the others on the right, the machine below it."""
    table = Table(title=title)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    console = Console()
    console = console if console.is_terminal else Console(width=120)
    console.print(table)
    for line in (caption, ", ".join(f"{name} {value}" for name, value in facts.items())):
        if line:
            console.print(line, style="dim", highlight=False)


def write_json(path: Path | None, facts: Mapping[str, Any], **numbers: Any) -> None:
    """Writes the numbers (Python's or numpy's) and the machine's facts to `path`, if there is one."""
    if path is not None:
        text = json.dumps({"machine": dict(facts), **numbers}, indent=1, default=lambda x: x.item())
        path.write_text(text + "\n")
        print(f"wrote {path}")
