"""Control steps per second of bare MuJoCo, of one environment, and of the vector environment on all cores.

    .venv/bin/python benchmarks/envs.py [TASK ...] [--seconds 10] [--json FILE]

Everything is measured in short blocks, the two sides of a comparison turn about, so that what else the
machine does falls on both. Bare MuJoCo repeats the environment's own blocks: same state, same actions,
same contacts. `overhead` is what the environment's processor time exceeds bare `mj_step` x 10's by;
`speed-up` is the vector environment's wall-clock rate on all cores over its rate on one. Medians over
blocks, with the quartiles. Falls do not end episodes (`ezm` protocol); a fresh episode starts every 100
steps, as lying robots cost more than standing ones.
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
class Row:
    """One task.

    Attributes:
        task: its name. blocks: of the single environment, and of the vector environment.
        bare, ours, one_core, all_cores: control steps per second of wall-clock time.
        overhead: (ours - bare) / bare, of processor time.
        speed_up: all_cores / one_core. rows: environments in the vector environment. mode: its mode.
    """

    task: str
    blocks: tuple[int, int]
    bare: Spread
    ours: Spread
    overhead: Spread
    one_core: Spread
    all_cores: Spread
    speed_up: Spread
    rows: int
    mode: str


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="tasks or suites (default: hb-29)")
    parser.add_argument("--seconds", type=float, default=10.0, help="per task (default: 10)")
    parser.add_argument(
        "--envs", type=int, default=8, help="environments per core in the vector (default: 8)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    args = parser.parse_args()
    try:
        tasks = resolve_tasks(args.tasks or ["hb-29"])
    except ValueError as error:
        parser.error(str(error))
    dmc = [task for task in tasks if task.startswith("dmc-")]
    if dmc:
        parser.error(f"{dmc[0]} is dm_control's own: only humanoid tasks are measured")

    cores = available_cores()
    machine = f"{cores} cores, load {os.getloadavg()[0]:.1f} at the start, MuJoCo {mujoco.__version__}"
    rows = [measure(task, args.seconds, cores * args.envs, args.seed) for task in tasks]
    table = Table(title=f"Control steps per second ({machine})", caption="median (quartiles)")
    table.add_column("task", no_wrap=True)
    for name in ("mj_step x 10", "ours", "overhead", "vector, 1 core", f"vector, {cores} cores", "speed-up"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.task,
            f"{row.bare[0]:,.0f}",
            f"{row.ours[0]:,.0f}",
            _spread(row.overhead, "{:.1%}"),
            f"{row.one_core[0]:,.0f}",
            f"{row.all_cores[0]:,.0f}",
            _spread(row.speed_up, "{:.2f}"),
        )
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(table)
    if args.json:
        numbers = {
            "machine": machine,
            "python": platform.python_version(),
            "tasks": [asdict(r) for r in rows],
        }
        args.json.write_text(json.dumps(numbers, indent=1) + "\n")
        print(f"wrote {args.json}")


def measure(task: str, seconds: float, rows: int, seed: int) -> Row:
    """Measures one task for about `seconds`, half of it single, half of it vectorised with `rows` rows."""
    single = _single(task, seconds / 2, seed)
    vector, mode = _vector(task, seconds / 2, rows, seed)
    return Row(
        task=task,
        blocks=(len(single), len(vector)),
        bare=quartiles(BLOCK / single[:, 0]),
        ours=quartiles(BLOCK / single[:, 1]),
        overhead=quartiles(single[:, 3] / single[:, 2] - 1),
        one_core=quartiles(BLOCK * rows / vector[:, 0]),
        all_cores=quartiles(BLOCK * rows / vector[:, 1]),
        speed_up=quartiles(vector[:, 0] / vector[:, 1]),
        rows=rows,
        mode=mode,
    )


def _single(task: str, seconds: float, seed: int) -> NDArray[np.float64]:
    """Blocks [n, 4]: wall-clock seconds of bare MuJoCo and of ours, then processor seconds of each."""
    env = make(task, backend="builtin", protocol="ezm", seed=seed).unwrapped
    assert isinstance(env, HumanoidEnv)
    model, data, twin = env.model, env.data, mujoco.MjData(env.model)
    low, high = model.actuator_ctrlrange.T
    rng = np.random.default_rng(seed)
    whole = int(mujoco.mjtState.mjSTATE_INTEGRATION)
    state = np.empty(mujoco.mj_stateSize(model, whole))
    blocks: list[tuple[float, ...]] = []
    end = time.perf_counter() + seconds
    while len(blocks) < 2 * BLOCKS_AN_EPISODE or time.perf_counter() < end:
        if len(blocks) % BLOCKS_AN_EPISODE == 0:
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

        def ours(actions: NDArray[np.float64] = actions) -> None:
            for action in actions:
                env.step(action)

        times = _turn_about(bare, ours, len(blocks))
        assert np.array_equal(twin.qpos, data.qpos), "the two sides simulated different things"
        blocks.append((times[0][0], times[1][0], times[0][1], times[1][1]))
    env.close()
    return np.array(blocks[1:])


def _vector(task: str, seconds: float, rows: int, seed: int) -> tuple[NDArray[np.float64], str]:
    """Blocks [n, 2]: wall-clock seconds of the vector environment on one core and on all; its mode on all."""
    one, every = (
        MultiTaskVectorEnv(
            [task], num_envs=rows, seed=seed, mode=mode, episode_steps=BLOCK * BLOCKS_AN_EPISODE
        )
        for mode in ("sync", "auto")
    )
    rng = np.random.default_rng(seed)
    blocks: list[tuple[float, float]] = []
    try:
        one.reset()
        every.reset()
        end = time.perf_counter() + seconds
        while len(blocks) < 3 or time.perf_counter() < end:
            actions = rng.uniform(-1, 1, (BLOCK, rows, one.sizes.action_size))

            def run(env: MultiTaskVectorEnv, actions: NDArray[np.float64] = actions) -> None:
                for action in actions:
                    env.step(action)

            one_core, all_cores = functools.partial(run, one), functools.partial(run, every)
            times = _turn_about(one_core, all_cores, len(blocks))
            blocks.append((times[0][0], times[1][0]))
    finally:
        one.close()
        every.close()
    return np.array(blocks[1:]), every.mode


def _turn_about(first: Callable[[], None], second: Callable[[], None], turn: int) -> list[Sequence[float]]:
    """(Wall-clock, processor) seconds of both, the second one first on every other turn."""
    times: list[Sequence[float]] = [(), ()]
    for index in (0, 1) if turn % 2 == 0 else (1, 0):
        wall, processor = time.perf_counter(), time.thread_time()
        (first, second)[index]()
        times[index] = time.perf_counter() - wall, time.thread_time() - processor
    return times


def quartiles(values: NDArray[np.float64]) -> Spread:
    """Median, lower quartile, upper quartile of values [n]."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return float(middle), float(low), float(high)


def _spread(values: Spread, form: str) -> str:
    middle, low, high = (form.format(value) for value in values)
    return f"{middle} ({low}-{high})"


if __name__ == "__main__":
    main()
