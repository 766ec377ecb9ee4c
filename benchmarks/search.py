"""One search at several numbers of roots: ours one simulation at a time, in waves, compiled, and mctx.

    .venv/bin/python benchmarks/search.py [--preset laptop] [--roots 1 9 64 256] [--clock cpu]

All sides search with the same network (published size, random weights) for the same observations, turn
about in one process. mctx (float32, compiled by JAX, on the processor) has our weights, and before
anything is timed its network's outputs must equal ours to 1e-3 of their spread. Compilation and first
calls are not timed; to compile our search takes minutes once per machine. `floor` is the matrix products of
a float32 search alone, run again one after the other.
Medians with quartiles; ratios are medians over rounds of the two times side by side.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from networks import add_arguments, experiment, network, planner, positions
from timing import flop_counter, machine, matmul_flops, parser, rounds, show, spread, write_json
from torch.utils._python_dispatch import TorchDispatchMode

from ezm_pl.training.hardware import search_dtype

SEQUENTIAL, WAVES, BFLOAT16, MCTX = "sequential", "waves", "waves bf16", "mctx"
COMPILED = "compiled"
FLOOR = "floor"
PRODUCTS = ("addmm", "_addmm_activation", "mm", "bmm", "baddbmm", "_linear_pointwise")


class Products(TorchDispatchMode):
    """Keeps the matrix products made inside, to make them again."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Callable[[], object]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = partial(func, *args, **(kwargs or {}))
        if func.overloadpacket.__name__ in PRODUCTS:
            self.made.append(call)
        return call()

    def again(self) -> None:
        """All of them."""
        with torch.inference_mode():
            for call in self.made:
                call()


def main() -> None:
    arguments = parser(__doc__, 8.0, "of measuring for each number of roots")
    arguments.add_argument("--roots", type=int, nargs="+", default=[1, 9, 64, 256], metavar="B")
    arguments.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: the process's time, beside other work"
    )
    add_arguments(arguments)
    args = arguments.parse_args()
    spec, device = experiment(args), args.device

    dtypes = {SEQUENTIAL: torch.float32, WAVES: torch.float32}
    if search_dtype("auto") == torch.bfloat16:
        dtypes[BFLOAT16] = torch.bfloat16
    models = {dtype: network(spec, dtype, device, args.seed) for dtype in set(dtypes.values())}
    by_default = planner(spec)
    spec = spec.model_copy(update={"search": spec.search.model_copy(update={"compiled": False})})
    one = spec.model_copy(update={"search": spec.search.model_copy(update={"wave": 1})})
    planners = {name: planner(one if name == SEQUENTIAL else spec) for name in dtypes}
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    mctx_search = None
    if importlib.util.find_spec("mctx"):
        import mctx_search as with_mctx

        reference = network(spec, torch.float32, torch.device("cpu"), args.seed)
        difference = with_mctx.check(reference, *positions(spec, 64, torch.device("cpu"), args.seed))
        print(f"the JAX network differs from ours by at most {difference:.1e} of an output's spread")
        if difference > 1e-3:
            raise SystemExit("the two networks are not the same")
        mctx_search = with_mctx.mctx_search(reference, spec, planners[WAVES].proposal)

    facts = machine(device)
    facts["parameters"] = f"{sum(p.numel() for p in models[torch.float32].parameters()) / 1e6:.1f}M"
    peaks = {dtype: matmul_flops(dtype, device) for dtype in models}
    with flop_counter() as counter:
        planners[WAVES](models[torch.float32], *positions(spec, 1, device, 0), torch.Generator(device))
    flops = counter.get_total_flops()
    rows, results = [], []
    for roots in args.roots:
        observation, task = positions(spec, roots, device, args.seed)
        generator = torch.Generator(device).manual_seed(args.seed)
        sides: dict[str, Callable[[], object]] = {
            name: partial(planners[name].act, models[dtype], observation, task, generator)
            for name, dtype in dtypes.items()
        }
        model = models[max(dtypes.values(), key=lambda dtype: dtype == torch.bfloat16)]
        if device.type == "cpu" and by_default.compiled and by_default.compiled.wait(model, roots):
            sides[COMPILED] = partial(by_default.act, model, observation, task, generator)
        if mctx_search is not None:
            sides[MCTX] = partial(mctx_search, observation.cpu(), task.cpu())
        with Products() as products:
            planners[WAVES](models[torch.float32], observation, task, generator)
        sides[FLOOR] = products.again
        times = rounds(sides, args.seconds, device=device, clock=clock)
        for name in sides:
            rate = roots * flops / float(np.median(times[name]))
            share = rate / peaks[dtypes.get(name, torch.float32)]
            over = {base: spread(times[name] / times[base]) for base in (SEQUENTIAL, MCTX) if base in sides}
            taken = spread(times[name])
            ratios = [f"{ratio.median:.2f}" for ratio in over.values()]
            rows.append(
                [str(roots), name, f"{taken.scaled(1e3):.1f}", *ratios, f"{rate / 1e9:,.0f}", f"{share:.0%}"]
            )
            results.append(
                {"roots": roots, "search": name, "seconds": asdict(taken)}
                | {"model_flops": rate, "share_of_peak": share}
                | {f"over_{base}": asdict(ratio) for base, ratio in over.items()}
            )

    over_columns = [f"/ {base}" for base in (SEQUENTIAL, MCTX) if base != MCTX or mctx_search is not None]
    peak = ", ".join(f"{str(d).removeprefix('torch.')} {p / 1e9:,.0f}" for d, p in peaks.items())
    show(
        f"One search: {spec.search.num_simulations} simulations, "
        f"{spec.search.num_root_actions} root actions, {len(spec.tasks)} tasks",
        ["roots", "search", "ms", *over_columns, "GFLOP/s", "of peak"],
        rows,
        facts,
        f"median (quartiles); {flops / 1e9:.2f} GFLOP per root in ours; matrix product, GFLOP/s: {peak}",
    )
    write_json(args.json, facts, peaks={str(d): p for d, p in peaks.items()}, rows=results)


if __name__ == "__main__":
    main()
