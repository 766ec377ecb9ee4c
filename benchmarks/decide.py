"""Latency of one robot's decisions at 50 Hz: from an observation in memory to an action in memory.

    .venv/bin/python benchmarks/decide.py [--seconds 12] [--threads 1] [--json FILE]

Every 20 ms a new observation arrives; a decision normalises it, searches and hands back the action as a
NumPy array. A decision that ends after the next observation is late, and that observation is skipped.
Between decisions the process sleeps, as a robot's would: latencies include waking up. More threads make
the median shorter and the tail longer: a layer of one decision is small, and waits for the last of them.

A narrow network's search is compiled first, which takes minutes once per machine.

Measured one after the other: the search, and the policy alone (`ezm eval --no-search`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch
from networks import add_arguments, experiment, network, planner, positions
from numpy.typing import NDArray
from timing import machine, parser, show, spread, write_json

from ezm_pl.search import ActFn, act_greedy
from ezm_pl.training.hardware import search_dtype

PERIOD = 0.02
"""Seconds between observations: 50 Hz."""
AT_LEAST = 500


Decide = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def pace(decide: Decide, observations: NDArray[np.float32], seconds: float) -> tuple[list[float], int]:
    """Latencies of decisions at 50 Hz, s, and how many of them were late."""
    for observation in observations[:20]:
        decide(observation)
    latencies, late = [], 0
    start = time.perf_counter()
    tick = start + PERIOD
    while len(latencies) < AT_LEAST or tick - start < seconds:
        time.sleep(max(0.0, tick - time.perf_counter()))
        decide(observations[len(latencies) % len(observations)])
        latency = time.perf_counter() - tick
        latencies.append(latency)
        late += latency > PERIOD
        tick += PERIOD * max(1, np.ceil(latency / PERIOD))
    return latencies, late


def main() -> None:
    arguments = parser(__doc__, 12.0, f"of deciding, each way; at least {AT_LEAST} decisions are made")
    add_arguments(arguments)
    arguments.add_argument("--threads", type=int, default=1, help="on the CPU (default: 1)")
    args = arguments.parse_args()
    torch.set_num_threads(args.threads)
    spec, device = experiment(args), args.device
    dtype = search_dtype(spec.search.dtype)
    model = network(spec, dtype, device, args.seed)
    observations = positions(spec, 64, torch.device("cpu"), args.seed)[0].numpy()
    task = torch.zeros(1, dtype=torch.long, device=device)
    generator = torch.Generator(device).manual_seed(args.seed)
    heads = torch.Generator().manual_seed(args.seed)

    facts = machine(device) | {"dtype": str(dtype).removeprefix("torch.")}
    rows, results = [], []
    search = planner(spec)
    if search.compiled is not None and device.type == "cpu":
        search.compiled.wait(model, 1)
    for name, act in (("search", search.act), ("policy alone", act_greedy)):

        def decide(observation: NDArray[np.float32], act: ActFn = act) -> NDArray[np.float32]:
            model.draw_heads(heads)
            one = torch.as_tensor(observation, device=device).unsqueeze(0)
            return act(model, one, task, generator)[0].cpu().numpy()

        latencies, late = pace(decide, observations, args.seconds)
        p50, p90, p99 = map(float, np.percentile(latencies, [50, 90, 99]))
        numbers = {"p50": p50, "p90": p90, "p99": p99, "slowest": max(latencies)}
        shown = [f"{number * 1e3:.1f}" for number in numbers.values()]
        rows.append([name, str(len(latencies)), *shown, f"{late / len(latencies):.1%}"])
        results.append({"by": name, "late": late, "seconds": asdict(spread(latencies))} | numbers)
    show(
        f"One decision at 50 Hz: {spec.search.num_simulations} simulations, "
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters",
        ["by", "decisions", "p50, ms", "p90, ms", "p99, ms", "slowest, ms", "late"],
        rows,
        facts,
    )
    write_json(args.json, facts, rows=results)


if __name__ == "__main__":
    main()
