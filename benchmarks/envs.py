"""Control steps per second of bare MuJoCo, of one environment, and of the vector environment on all cores.

    .venv/bin/python benchmarks/envs.py [TASK ...] [--seconds 3] [--json FILE]

Everything is measured in short blocks, the two sides of a comparison turn about, so that what else the
machine does falls on both. Bare MuJoCo repeats the environment's own blocks: same state, same actions,
same contacts. `overhead` is what the environment's processor time exceeds bare `mj_step` x 10's by;
`speed-up` is the vector environment's wall-clock rate on all cores over its rate on one (not measured where
there is only one). Medians over blocks, with the quartiles. Falls do not end episodes (`ezm` protocol); a
fresh episode starts every 100 steps, as lying robots cost more than standing ones.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import mujoco
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ezm_pl.envs import MultiTaskVectorEnv, make
from ezm_pl.envs.robots.humanoid import SUBSTEPS, HumanoidEnv
from ezm_pl.envs.stepping.vector import available_cores
from ezm_pl.spec import resolve_tasks

BLOCK = 25
"""Control steps of a block."""
BLOCKS_AN_EPISODE = 4

Spread = tuple[float, float, float]
"""Median, lower and upper quartile."""


@dataclass(frozen=True)
class Single:
    """One environment of a task, beside bare MuJoCo.

    Attributes:
        task: its name. blocks: how many were measured.
        bare, ours: control steps per second of processor time.
        overhead: (ours - bare) / bare, of processor time.
        dofs: degrees of freedom. contacts, rows: contacts and constraint rows after a step, means.
    """

    task: str
    blocks: int
    bare: Spread
    ours: Spread
    overhead: Spread
    dofs: int
    contacts: float
    rows: float


@dataclass(frozen=True)
class Vector:
    """The vector environment of a task.

    Attributes:
        task: its name. blocks: how many were measured. rows: environments. mode: its mode on all cores.
        one_core, all_cores: control steps per second of wall-clock time. speed_up: all_cores / one_core.
    """

    task: str
    blocks: int
    rows: int
    mode: str
    one_core: Spread
    all_cores: Spread
    speed_up: Spread


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="tasks or suites (default: hb-all)")
    parser.add_argument("--seconds", type=float, default=3.0, help="per task and comparison (default: 3)")
    parser.add_argument(
        "--envs", type=int, default=8, help="environments per core in the vector (default: 8)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    args = parser.parse_args()
    try:
        tasks = resolve_tasks(args.tasks or ["hb-all"])
    except ValueError as error:
        parser.error(str(error))
    foreign = [task for task in tasks if task.startswith(("dmc-", "gym:"))]
    if foreign:
        parser.error(f"{foreign[0]} is another package's own: only humanoid tasks are measured")

    cores = available_cores()
    machine = f"{cores} cores, load {os.getloadavg()[0]:.1f} at the start, MuJoCo {mujoco.__version__}"
    console = Console() if Console().is_terminal else Console(width=120)
    singles = [single(task, args.seconds, args.seed) for task in tasks]
    console.print(single_table(singles, machine))
    vectors = []
    if cores > 1:
        vectors = [vector(task, args.seconds, cores * args.envs, args.seed) for task in tasks]
        console.print(vector_table(vectors, cores))
    if args.json:
        numbers = {
            "machine": machine,
            "python": platform.python_version(),
            "single": [asdict(row) for row in singles],
            "vector": [asdict(row) for row in vectors],
        }
        args.json.write_text(json.dumps(numbers, indent=1) + "\n")
        print(f"wrote {args.json}")


def single(task: str, seconds: float, seed: int) -> Single:
    """Measures one environment of a task for about `seconds` of processor time."""
    env = make(task, backend="builtin", protocol="ezm", seed=seed).unwrapped
    assert isinstance(env, HumanoidEnv)
    model, data, twin = env.model, env.data, mujoco.MjData(env.model)
    low, high = model.actuator_ctrlrange.T
    rng = np.random.default_rng(seed)
    whole = int(mujoco.mjtState.mjSTATE_INTEGRATION)
    state = np.empty(mujoco.mj_stateSize(model, whole))
    times: list[tuple[float, float]] = []
    counts: list[tuple[int, int]] = []
    end = time.thread_time() + seconds
    while len(times) < 2 * BLOCKS_AN_EPISODE or time.thread_time() < end:
        if len(times) % BLOCKS_AN_EPISODE == 0:
            env.reset()
        actions = rng.uniform(-1, 1, (BLOCK, model.nu))
        controls = 0.5 * (high + low) + 0.5 * (high - low) * actions
        mujoco.mj_getState(model, data, state, whole)
        mujoco.mj_setState(model, twin, state, whole)

        def bare(controls: NDArray[np.float64] = controls) -> None:
            ctrl = twin.ctrl
            for control in controls:
                ctrl[:] = control
                mujoco.mj_step(model, twin, SUBSTEPS)
                counts.append((twin.ncon, twin.nefc))

        def ours(actions: NDArray[np.float64] = actions) -> None:
            for action in actions:
                env.step(action)

        (_, bare_time), (_, our_time) = _turn_about(bare, ours, len(times))
        assert np.array_equal(twin.qpos, data.qpos), "the two sides simulated different things"
        times.append((bare_time, our_time))
    env.close()
    blocks = np.array(times[1:])
    contacts, rows = np.mean(counts, axis=0)
    return Single(
        task=task,
        blocks=len(blocks),
        bare=quartiles(BLOCK / blocks[:, 0]),
        ours=quartiles(BLOCK / blocks[:, 1]),
        overhead=quartiles(blocks[:, 1] / blocks[:, 0] - 1),
        dofs=model.nv,
        contacts=float(contacts),
        rows=float(rows),
    )


def vector(task: str, seconds: float, rows: int, seed: int) -> Vector:
    """Measures the vector environment of a task for about `seconds`, with `rows` environments."""
    one, every = (
        MultiTaskVectorEnv(
            [task], num_envs=rows, seed=seed, mode=mode, episode_steps=BLOCK * BLOCKS_AN_EPISODE
        )
        for mode in ("sync", "auto")
    )
    rng = np.random.default_rng(seed)
    times: list[tuple[float, float]] = []
    try:
        one.reset()
        every.reset()
        end = time.perf_counter() + seconds
        while len(times) < 3 or time.perf_counter() < end:
            actions = rng.uniform(-1, 1, (BLOCK, rows, one.sizes.action_size))

            def run(env: MultiTaskVectorEnv, actions: NDArray[np.float64] = actions) -> None:
                for action in actions:
                    env.step(action)

            one_core, all_cores = functools.partial(run, one), functools.partial(run, every)
            (one_time, _), (all_time, _) = _turn_about(one_core, all_cores, len(times))
            times.append((one_time, all_time))
    finally:
        one.close()
        every.close()
    blocks = np.array(times[1:])
    return Vector(
        task=task,
        blocks=len(blocks),
        rows=rows,
        mode=every.mode,
        one_core=quartiles(BLOCK * rows / blocks[:, 0]),
        all_cores=quartiles(BLOCK * rows / blocks[:, 1]),
        speed_up=quartiles(blocks[:, 0] / blocks[:, 1]),
    )


def _turn_about(
    first: Callable[[], None], second: Callable[[], None], turn: int
) -> list[tuple[float, float]]:
    """(Wall-clock, processor) seconds of both, the second one first on every other turn."""
    times = [(0.0, 0.0), (0.0, 0.0)]
    for index in (0, 1) if turn % 2 == 0 else (1, 0):
        wall, processor = time.perf_counter(), time.thread_time()
        (first, second)[index]()
        times[index] = time.perf_counter() - wall, time.thread_time() - processor
    return times


def quartiles(values: NDArray[np.float64]) -> Spread:
    """Median, lower quartile, upper quartile of values [n]."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return float(middle), float(low), float(high)


def single_table(singles: Sequence[Single], machine: str) -> Table:
    """Rates of single environments, beside bare MuJoCo's."""
    table = Table(
        title=f"Control steps per second of processor time ({machine})", caption="median (quartiles)"
    )
    table.add_column("task", no_wrap=True)
    for name in ("mj_step x 10", "ours", "overhead", "dofs", "contacts", "rows"):
        table.add_column(name, justify="right")
    for row in singles:
        table.add_row(
            row.task,
            f"{row.bare[0]:,.0f}",
            f"{row.ours[0]:,.0f}",
            _spread(row.overhead, "{:.1%}"),
            str(row.dofs),
            f"{row.contacts:.0f}",
            f"{row.rows:.0f}",
        )
    return table


def vector_table(vectors: Sequence[Vector], cores: int) -> Table:
    """Rates of vector environments on one core and on all."""
    table = Table(title="Control steps per second of wall-clock time", caption="median (quartiles)")
    table.add_column("task", no_wrap=True)
    for name in ("1 core", f"{cores} cores", "speed-up"):
        table.add_column(name, justify="right")
    for row in vectors:
        one, every = f"{row.one_core[0]:,.0f}", f"{row.all_cores[0]:,.0f}"
        table.add_row(row.task, one, every, _spread(row.speed_up, "{:.2f}"))
    return table


def _spread(values: Spread, form: str) -> str:
    middle, low, high = (form.format(value) for value in values)
    return f"{middle} ({low}-{high})"


if __name__ == "__main__":
    main()
