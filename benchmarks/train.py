"""Training: updates/s, where the time goes, model FLOP/s, and how cost grows with the number of tasks.

    .venv/bin/python benchmarks/train.py [--preset laptop paper] [--suite hb-medium] [--json FILE]
    .venv/bin/python benchmarks/train.py --spec experiments/h1_laptop.yaml
    .venv/bin/python benchmarks/train.py --tasks 1,8,16,29 [--preset laptop] [--figure FILE.png]

Each row is the beginning of an ordinary run (`ezm_pl.training.fit`: Lightning's Trainer, the collector
thread, replay, reanalysis), at the preset's own sizes and pacing but for a short random warm-up. On a CPU
the C++ programs of a long run are made first (minutes, but once). The first updates are not counted.
Shares are of the learner's and of the collector's own time (`time/*`); some more
updates are profiled, to tell by which operations the learner's is spent (`operations.py`). Model FLOPs are
those of the matrix products of one update, counted by torch on one batch of the same run; `kernels` are the
operations of an update that reach the device (`operations.count_kernels`); `peak` is a plain matrix product
on the same device with as many threads as training has. With `--tasks`, the first so many tasks of hb-29; all
other sizes stay as they are.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from operations import GROUPS, Operations, Watch, count_kernels, update
from timing import Spread, flop_counter, machine, matmul_flops, parser, show, spread, write_json

from ezm_pl.selfplay import shares
from ezm_pl.spec import SpecError, build_experiment, read_document, resolve_tasks
from ezm_pl.spec.presets import merge
from ezm_pl.training import fit
from ezm_pl.training.memory import replay_bytes


@dataclass(frozen=True)
class Row:
    """One configuration.

    Attributes:
        name: what is measured. tasks: how many. parameters: of the world model.
        update: seconds of an update. rate: updates per second, over all that were counted.
        processor: seconds of processor time of an update, by all threads of the process: other work on the
            machine changes it less.
        env_steps: control steps per second over all tasks.
        learner, collector: shares of their time.
        operations: the learner's time by kind of operation, while a profiler watched.
        flops: of one update's matrix products. peak: FLOP/s of a plain one.
        kernels: operations of one update that reach the device, reanalysis included.
        memory: bytes of the process (and of the GPU) at most. replay: bytes of full buffers.
    """

    name: str
    tasks: int
    parameters: int
    update: Spread
    processor: float
    rate: float
    env_steps: float
    learner: dict[str, float]
    collector: dict[str, float]
    operations: Operations
    flops: float
    kernels: int
    peak: float
    memory: int
    gpu_memory: int
    replay: int


PROFILED = 3
"""Updates; one where it takes longer than a second. To read what the profiler saw of many takes minutes."""


@dataclass
class Meter(Callback):
    """Times blocks of updates for `seconds`, and at least `least` of them, after as many that do not count.

    On a GPU the host runs ahead, so a block is longer there and ends with what it has queued. Then up to
    `PROFILED` more updates are profiled, and the run is ended.
    """

    seconds: float
    least: int
    result: dict[str, Any] = field(default_factory=dict)
    _times: list[float] = field(default_factory=list)
    _start: tuple[float, dict[str, float], dict[str, float]] = (0.0, {}, {})
    _processor: float = 0.0
    _watch: Watch | None = None
    _watched: int = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Ends a block, or all of it."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        cuda = pl_module.device.type == "cuda"
        block = 20 if cuda and self._watch is None else 1
        if trainer.global_step == 2:
            get_programs(pl_module)
        if trainer.global_step < self.least or trainer.global_step % block or data.sync.interrupted.is_set():
            return
        if cuda:
            torch.cuda.synchronize(pl_module.device)
        if self._watch is not None:
            self._watched += block
            if self._watched >= PROFILED or self.result["update"].median > 1:
                self.end(trainer, pl_module, self._watch.stop(self._watched))
            return
        self._times.append(time.perf_counter())
        if len(self._times) == 1:
            self._start = float(data.sync.control_steps.sum()), data.timer.read(), data.collector.timer.read()
            self._processor = time.process_time()
        passed = self._times[-1] - self._times[0]
        if len(self._times) <= self.least or passed < self.seconds:
            return
        steps, learner, collector = self._start
        times = zip(self._times, self._times[1:], strict=False)
        self.result |= {
            "update": spread([(end - start) / block for start, end in times]),
            "processor": (time.process_time() - self._processor) / ((len(self._times) - 1) * block),
            "rate": (len(self._times) - 1) * block / passed,
            "env_steps": (float(data.sync.control_steps.sum()) - steps) / passed,
            "learner": shares(learner, data.timer.read()),
            "collector": shares(collector, data.collector.timer.read()),
            "replay": replay_bytes(data.per_rank, data.sizes, 1),
            "parameters": sum(p.numel() for p in pl_module.model.parameters()),  # type: ignore[union-attr]
            "memory": psutil.Process().memory_info().rss,
            "gpu_memory": torch.cuda.max_memory_allocated(pl_module.device) if cuda else 0,
        }
        self._watch = Watch(pl_module.device, data.pipeline)
        self._watch.start()

    def end(self, trainer: Trainer, module: Any, operations: Operations) -> None:
        """Ends the run; what needs its replay, or its processor for itself, comes last."""
        module.compiled_losses = None  # its products would not be seen
        with flop_counter() as flops:
            update(module, module.per_rank.optim.batch_size)
        self.result |= {"operations": operations, "flops": float(flops.get_total_flops())}
        self.result["kernels"] = count_kernels(module)
        dtype = torch.bfloat16 if "bf16" in str(trainer.precision) else torch.float32
        module.data.sync.ask_to_stop()  # as Ctrl-C would: an evaluation, which takes a minute, is cut short
        trainer.should_stop = True
        module.data.collector.stop()
        self.result["peak"] = matmul_flops(dtype, module.device)


def get_programs(module: Any) -> None:
    """Has the C++ programs made that a longer run would have (`ezm_pl/programs/`); minutes, but once."""
    if module.compiled_losses is not None:
        module.compiled_losses.wait()
    if module.planner.compiled is not None:
        spec = module.per_rank
        positions = len(range(spec.targets.unroll_steps + 1)[spec.targets.policy_positions])
        for roots in (len(spec.tasks) * spec.env.num_envs, spec.optim.batch_size * positions):
            module.planner.compiled.wait(module.target, roots)


def measure(name: str, document: dict[str, Any], seconds: float, least: int) -> Row:
    """Begins a run of `document` and times its updates."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    beginning = {
        "name": "benchmark",
        "collect": {"random_steps": 400},
        "replay": {"save": False},
        "eval": {"at_start": False, "every": 1_000_000},
    }
    experiment = build_experiment(merge(beginning, document))
    meter = Meter(seconds, least)
    with tempfile.TemporaryDirectory() as folder:
        fit(experiment, Path(folder), callbacks=[meter], progress=False)
    return Row(name, len(experiment.tasks), **meter.result)


def alone(name: str, document: dict[str, Any], seconds: float, least: int) -> Row:
    """`measure` in a process of its own, so that its memory is its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(measure, name, document, seconds, least).result()


LEARNER = ("search", "losses", "optimizer", "refresh", "sampling", "waiting", "other")
COLLECTOR = ("search", "physics", "storing", "waiting", "other")


def present(title: str, rows: Sequence[Row], facts: dict[str, Any]) -> None:
    """Tables of rates, sizes, and both sides' shares."""
    names = [(row.name, str(row.tasks)) for row in rows]

    def table(title: str, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
        lines = [[*name, *cell] for name, cell in zip(names, cells, strict=True)]
        show(title, ["", "tasks", *columns], lines, facts)

    table(
        f"{title} (per update: median, quartiles)",
        ["ms", "processor ms", "updates/s", "env steps/s", "kernels", "GFLOP", "GFLOP/s", "of peak"],
        [
            [
                f"{row.update.scaled(1e3):.0f}",
                f"{row.processor * 1e3:.0f}",
                f"{row.rate:.2f}",
                f"{row.env_steps:,.0f}",
                f"{row.kernels:,}",
                f"{row.flops / 1e9:,.1f}",
                f"{row.flops * row.rate / 1e9:,.1f}",
                f"{row.flops * row.rate / row.peak:.1%}",
            ]
            for row in rows
        ],
    )
    table(
        "Memory, GiB",
        ["parameters", "process", "GPU", "replay when full"],
        [
            [f"{row.parameters:,}", *(f"{n / 2**30:.2f}" for n in (row.memory, row.gpu_memory, row.replay))]
            for row in rows
        ],
    )
    for side, parts in (("learner", LEARNER), ("collector", COLLECTOR)):
        # A collector that waited all the time has finished no part of it.
        found = [getattr(row, side) or {"waiting": 1.0} for row in rows]
        cells = [[f"{given.get(part, 0.0):.1%}" for part in parts] for given in found]
        table(f"Shares of the {side}'s time", parts, cells)


def present_operations(rows: Sequence[Row], facts: dict[str, Any]) -> None:
    """A table per row: its learner's time by part and kind of operation."""
    for row in rows:
        found = row.operations
        parts = [part for part in ("reanalysis", *LEARNER) if part in found.seconds] or list(found.seconds)
        lines = [
            [group, *(f"{found.share(group, part):.1%}" for part in parts), f"{found.share(group):.1%}"]
            for group in GROUPS
        ]
        caption = (
            f"{found.updates} updates; one took {found.update * 1e3:,.0f} ms while profiled, otherwise "
            f"{row.update.median * 1e3:,.0f} ms: what profiling adds counts as the host's"
        )
        title = f"The learner's time by kind of operation, {row.name}, {row.tasks} tasks"
        show(title, ["", *parts, "all"], lines, facts, caption)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Updates/s and memory against the number of tasks, side by side."""
    figure = Figure(figsize=(7.2, 2.7), layout="constrained")
    FigureCanvasAgg(figure)
    rate, memory = figure.subplots(1, 2)
    tasks = [row.tasks for row in rows]
    rate.plot(tasks, [row.rate for row in rows], color="#0072B2", marker="o")
    rate.set_ylabel("updates/s")
    memory.plot(
        tasks,
        [row.memory / 2**30 for row in rows],
        color="#0072B2",
        marker="o",
        label="process, replay nearly empty",
    )
    memory.plot(
        tasks,
        [row.replay / 2**30 for row in rows],
        color="#D55E00",
        marker="s",
        linestyle="--",
        label="replay when full",
    )
    memory.set_ylabel("GiB")
    memory.legend(fontsize="small", frameon=False)
    for axis in (rate, memory):
        axis.set(xlabel="tasks", xlim=(0, None), ylim=(0, None))
        axis.set_xticks(tasks)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")


def main() -> None:
    arguments = parser(__doc__, 10.0, "a row")
    arguments.add_argument(
        "--preset", nargs="+", choices=("laptop", "paper", "smoke"), help="default: laptop paper"
    )
    arguments.add_argument("--spec", nargs="+", type=Path, metavar="FILE", help="rows for specs instead")
    arguments.add_argument("--suite", default="hb-medium", help="tasks of each row (default: hb-medium)")
    arguments.add_argument("--tasks", metavar="N,N", help="rows for the first N tasks of hb-29 instead")
    arguments.add_argument("--least", type=int, default=3, help="updates counted at least (default: 3)")
    arguments.add_argument("--figure", type=Path, metavar="FILE", help="with --tasks: draw them here (PNG)")
    args = arguments.parse_args()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler tells of its every start
    changes = {"seed": args.seed}
    if args.tasks:
        preset = (args.preset or ["laptop"])[0]
        names = resolve_tasks("hb-29")
        documents = [
            (preset, {"preset": preset, "tasks": list(names[: int(n)])}) for n in args.tasks.split(",")
        ]
        title = f"Training as tasks grow, preset {preset}"
    elif args.spec:
        try:
            documents = [(path.stem, read_document(path)) for path in args.spec]
        except SpecError as error:
            raise SystemExit(str(error)) from None
        title = "Training"
    else:
        presets = args.preset or ["laptop", "paper"]
        documents = [(preset, {"preset": preset, "tasks": args.suite}) for preset in presets]
        title = f"Training, {args.suite}"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = machine(device)
    rows = [alone(name, merge(document, changes), args.seconds, args.least) for name, document in documents]
    present(title, rows, facts)
    present_operations(rows, facts)
    if args.figure and args.tasks:
        draw(rows, args.figure)
    write_json(args.json, facts, rows=[asdict(row) for row in rows])


if __name__ == "__main__":
    main()
