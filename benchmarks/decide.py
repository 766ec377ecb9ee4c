"""Latency of one robot's decisions at 50 Hz: from an observation in memory to an action in memory.

    .venv/bin/python benchmarks/decide.py [--seconds 12] [--threads 1] [--json FILE]

Every 20 ms a new observation arrives; a decision normalises it, searches and hands back the action as a
NumPy array. A decision that ends after the next observation is late, and that observation is skipped.
Between decisions the process sleeps, as a robot's would: latencies include waking up. More threads make
the median shorter and the tail longer: a layer of one decision is small, and waits for the last of them.
"""

from __future__ import annotations

import time
from dataclasses import asdict

import numpy as np
import torch
from networks import add_arguments, experiment, network, planner, positions
from numpy.typing import NDArray
from timing import machine, parser, show, spread, write_json

from ezm_pl.training.hardware import search_dtype

PERIOD = 0.02
"""Seconds between observations: 50 Hz."""
AT_LEAST = 500


def main() -> None:
    arguments = parser(__doc__, 12.0, f"of deciding; at least {AT_LEAST} decisions are made")
    add_arguments(arguments)
    arguments.add_argument("--threads", type=int, default=1, help="on the CPU (default: 1)")
    args = arguments.parse_args()
    torch.set_num_threads(args.threads)
    spec, device = experiment(args), args.device
    dtype = search_dtype(spec.search.dtype)
    model, plan = network(spec, dtype, device, args.seed), planner(spec)
    observations = positions(spec, 64, torch.device("cpu"), args.seed)[0].numpy()
    task = torch.zeros(1, dtype=torch.long, device=device)
    generator = torch.Generator(device).manual_seed(args.seed)
    heads = torch.Generator().manual_seed(args.seed)

    def decide(observation: NDArray[np.float32]) -> NDArray[np.float32]:
        model.draw_heads(heads)
        one = torch.as_tensor(observation, device=device).unsqueeze(0)
        return plan(model, one, task, generator).action[0].cpu().numpy()

    for observation in observations[:20]:
        decide(observation)
    latencies, late = [], 0
    start = time.perf_counter()
    tick = start + PERIOD
    while len(latencies) < AT_LEAST or tick - start < args.seconds:
        time.sleep(max(0.0, tick - time.perf_counter()))
        decide(observations[len(latencies) % len(observations)])
        latency = time.perf_counter() - tick
        latencies.append(latency)
        late += latency > PERIOD
        tick += PERIOD * max(1, np.ceil(latency / PERIOD))

    facts = machine(device) | {"dtype": str(dtype).removeprefix("torch.")}
    p50, p90, p99 = np.percentile(latencies, [50, 90, 99])
    numbers = {"p50": p50, "p90": p90, "p99": p99, "slowest": max(latencies)}
    show(
        f"One decision at 50 Hz: {spec.search.num_simulations} simulations, "
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters",
        ["decisions", *(f"{name}, ms" for name in numbers), "late"],
        [
            [
                str(len(latencies)),
                *(f"{n * 1e3:.1f}" for n in numbers.values()),
                f"{late / len(latencies):.1%}",
            ]
        ],
        facts,
    )
    numbers = {name: float(value) for name, value in numbers.items()}
    write_json(args.json, facts, late=late, seconds=asdict(spread(latencies)), **numbers)


if __name__ == "__main__":
    main()
