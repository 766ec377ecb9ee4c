"""Replay: drawing a batch, setting priorities, adding steps, and memory; against lists of trajectories.

    .venv/bin/python benchmarks/replay.py [--tasks 29] [--transitions 100000] [--batch 512]
        [--observation-dtype float16] [--json FILE]

The padded sizes are those of the 29 HumanoidBench tasks together. Three buffers hold as much and draw
the same batch (per task, by priority, 11 observations a position):

- `ours`: `ezm_pl.replay.ReplayBuffer`;
- `lists`: what one writes first, in plain Python. A task's trajectories are lists of the steps that were
  appended to them, its priorities a list; positions are drawn by running sums and bisection;
- `arrays`: the careful version. Trajectories are arrays, windows are slices of them, priorities are numpy
  arrays and drawn from by `Generator.choice`.

All take turns, so that what else the machine does falls on each. Every task has its own trajectories,
too many for any cache. `lists` and `arrays` have the same ones, a list's steps being rows of the arrays:
that needs the memory once, and lies better in it than steps appended one at a time would. `lists` are
measured twice: as they were made, the priorities in their order in memory, and after training has set each
of them at random positions, which leaves them anywhere.
"""

from __future__ import annotations

import bisect
import copy
import itertools
import random
import time
from dataclasses import asdict

import numpy as np
import psutil
from numpy.typing import NDArray
from timing import Spread, machine, parser, rounds, show, spread, write_json

from ezm_pl.envs import TaskSizes, sizes
from ezm_pl.replay import ReplayBuffer
from ezm_pl.spec import resolve_tasks
from ezm_pl.spec.experiment import ReplaySpec, TargetSpec

UNROLL, TD, BLOCK, EPISODE, ENVS = 5, 5, 100, 1_000, 4
"""Published unroll and TD steps, block and episode length; environments per task."""


Array = NDArray[np.float32]
Steps = list[tuple[Array, Array, float]]
"""Observation, action and reward of every step; the last observation of all has no action."""
Trajectory = tuple[Array, Array, Array]
"""Observations `[L + 1, O]`, actions `[L, A]` and rewards `[L]`."""
STEP_BYTES = 700
"""What Python's objects of a step take in `lists` and `arrays` together, beside its numbers."""


class TrajectoryLists:
    """Lists of trajectories, drawn from in plain Python.

    Args:
        trajectories: of every task.
        seed: of the priorities and draws.
    """

    def __init__(self, trajectories: list[list[Steps]], seed: int) -> None:
        self.trajectories = trajectories
        self.where = [[(t, k) for t in mine for k in range(len(t) - 1)] for mine in trajectories]
        self.random = random.Random(seed)
        self.priorities = [[self.random.expovariate(1.0) for _ in where] for where in self.where]

    def used(self, seed: int) -> TrajectoryLists:
        """The same after every priority has been set as training sets them: at random positions."""
        used = copy.copy(self)
        used.priorities = [list(priorities) for priorities in self.priorities]
        sizes = [len(priorities) for priorities in used.priorities]
        task, first = np.repeat(np.arange(len(sizes)), sizes), np.cumsum([0, *sizes])
        for place in np.random.default_rng(seed).permutation(len(task)):
            mine = int(task[place])
            used.priorities[mine][place - int(first[mine])] = self.random.expovariate(1.0)
        return used

    def sample(self, batch: int) -> tuple[Array, Array, Array, Array]:
        """Observations, actions, rewards and importance weights of `batch` windows."""
        observations, actions, rewards, weights = [], [], [], []
        tasks = len(self.trajectories)
        for task, (where, priorities) in enumerate(zip(self.where, self.priorities, strict=True)):
            sums = list(itertools.accumulate(priorities))
            count = batch // tasks + (task < batch % tasks)
            drawn = [bisect.bisect(sums, self.random.random() * sums[-1]) for _ in range(count)]
            least = min(priorities[i] for i in drawn)
            weights += [least / priorities[i] for i in drawn]
            for steps, k in (where[i] for i in drawn):
                window = steps[k : k + UNROLL + TD + 1]
                window += [(window[-1][0], 0 * window[-1][1], 0.0)] * (UNROLL + TD + 1 - len(window))
                observations.append(np.stack([step[0] for step in window]))
                actions.append(np.stack([step[1] for step in window[:UNROLL]]))
                rewards.append([step[2] for step in window[:-1]])
        return (
            np.stack(observations),
            np.stack(actions),
            np.array(rewards, np.float32),
            np.array(weights, np.float32),
        )


class TrajectoryArrays:
    """Lists of trajectories that are arrays, drawn from with numpy.

    Args:
        trajectories: of every task.
        seed: of the priorities and draws.
    """

    def __init__(self, trajectories: list[list[Trajectory]], seed: int) -> None:
        self.trajectories = trajectories
        self.where = [[(t, k) for t in mine for k in range(len(t[2]))] for mine in trajectories]
        self.generator = np.random.default_rng(seed)
        self.priorities = [self.generator.exponential(size=len(where)) for where in self.where]

    def sample(self, batch: int) -> tuple[Array, Array, Array, Array]:
        """Observations, actions, rewards and importance weights of `batch` windows."""
        windows, weights = [], []
        tasks = len(self.trajectories)
        for task, (where, priorities) in enumerate(zip(self.where, self.priorities, strict=True)):
            probability = priorities / priorities.sum()
            drawn = self.generator.choice(len(where), batch // tasks + (task < batch % tasks), p=probability)
            weights.append(probability[drawn].min() / probability[drawn])
            windows += [_window(*where[i]) for i in drawn]
        observation, action, reward = (np.stack(part) for part in zip(*windows, strict=True))
        return observation, action, reward, np.concatenate(weights).astype(np.float32)


def _window(trajectory: Trajectory, k: int) -> tuple[Array, Array, Array]:
    observation, action, reward = trajectory
    observation = observation[k : k + UNROLL + TD + 1]
    action, reward = action[k : k + UNROLL], reward[k : k + UNROLL + TD]
    missing = UNROLL + TD + 1 - len(observation)
    if missing > 0:
        observation = np.concatenate([observation, np.repeat(observation[-1:], missing, 0)])
        action = np.concatenate([action, np.zeros((UNROLL - len(action), action.shape[1]), np.float32)])
        reward = np.concatenate([reward, np.zeros(missing, np.float32)])
    return observation, action, reward


def fill(buffer: ReplayBuffer, tasks: int, transitions: int, seed: int) -> Spread:
    """Plays episodes of noise into the buffer; seconds of an `add` of one step of every environment."""
    generator = np.random.default_rng(seed)
    rows, size, actions = tasks * ENVS, buffer.blocks.observation.shape[-1], buffer.blocks.action.shape[-1]
    observation = generator.standard_normal((64, rows, size)).astype(np.float32)
    action = generator.uniform(-1, 1, (64, rows, actions)).astype(np.float32)
    reward = generator.random((64, rows)).astype(np.float32)
    never = np.zeros(rows, bool)
    times = []
    for step in range(transitions // ENVS):
        truncated = np.full(rows, step % EPISODE == EPISODE - 1)
        i, j = step % 64, (step + 1) % 64
        start = time.perf_counter()
        buffer.add(observation[i], action[i], reward[i], never, truncated, observation[j])
        times.append(time.perf_counter() - start)
    return spread(times)


def play(tasks: int, transitions: int, size: TaskSizes, seed: int) -> list[list[Trajectory]]:
    """Episodes of every task: of the same noise, but each in memory of its own."""
    noise = np.random.default_rng(seed)
    observation = noise.standard_normal((EPISODE + 1, size.obs_size)).astype(np.float32)
    action = noise.uniform(-1, 1, (EPISODE, size.action_size)).astype(np.float32)
    reward = noise.random(EPISODE).astype(np.float32)
    episodes = -(-transitions // EPISODE)
    return [
        [(observation.copy(), action.copy(), reward.copy()) for _ in range(episodes)] for _ in range(tasks)
    ]


def as_steps(observation: Array, action: Array, reward: Array) -> Steps:
    """The rows of a trajectory, step by step."""
    steps = zip(observation[:-1], action, reward.tolist(), strict=True)
    return [*steps, (observation[-1], 0 * action[-1], 0.0)]


def main() -> None:
    arguments = parser(__doc__, 20.0, "of drawing, over all sides")
    arguments.add_argument("--tasks", type=int, default=29, help="first tasks of hb-29 (default: all 29)")
    arguments.add_argument("--transitions", type=int, default=100_000, help="per task (default: 100000)")
    arguments.add_argument("--batch", type=int, default=512, help="positions (default: 512)")
    arguments.add_argument(
        "--observation-dtype", choices=["float32", "float16"], default="float32", help="that ours stores"
    )
    args = arguments.parse_args()
    names = resolve_tasks(["hb-29"])[: args.tasks]
    tasks, size = len(names), sizes(names)
    shape = {"observation_size": size.obs_size, "action_size": size.action_size}
    facts = machine()
    specs = (
        ReplaySpec(capacity=args.transitions, block_size=BLOCK, observation_dtype=args.observation_dtype),
        TargetSpec(unroll_steps=UNROLL, td_steps=TD, discount=0.99),
    )
    estimate = ReplayBuffer.estimate_bytes(*specs, **shape, tasks=tasks)
    needed = estimate + tasks * args.transitions * (4 * (size.obs_size + size.action_size + 1) + STEP_BYTES)
    there = psutil.virtual_memory().available
    if needed > there:
        raise SystemExit(
            f"{needed / 2**30:.1f} GiB are needed and {there / 2**30:.1f} GiB are free: lower --transitions"
        )

    before = psutil.Process().memory_info().rss
    buffer = ReplayBuffer(
        np.repeat(np.arange(tasks), ENVS),
        *specs,
        **shape,
        seed=args.seed,
    )
    added = fill(buffer, tasks, args.transitions, args.seed)
    resident = psutil.Process().memory_info().rss - before
    noise = np.random.default_rng(args.seed)
    priorities = buffer.tree.front(buffer.blocks.num_blocks * BLOCK)
    for task in range(tasks):
        index = np.flatnonzero(priorities[task])
        error = noise.exponential(size=len(index)).astype(np.float32)
        ids = buffer.blocks.transition_id[task].ravel()[index]
        buffer.update_priorities(np.full(len(index), task), index, ids, error)

    trajectories = play(tasks, args.transitions, size, args.seed)
    lists = TrajectoryLists([[as_steps(*one) for one in mine] for mine in trajectories], args.seed)
    used_lists = lists.used(args.seed)
    arrays = TrajectoryArrays(trajectories, args.seed)
    error = noise.exponential(size=args.batch).astype(np.float32)

    def update() -> None:
        buffer.update_priorities(drawn.task, drawn.replay_index, drawn.transition_id, error)

    drawn = buffer.sample(args.batch)
    times = rounds(
        {
            "ours": lambda: buffer.sample(args.batch),
            "update": update,
            "arrays": lambda: arrays.sample(args.batch),
            "lists": lambda: lists.sample(args.batch),
            "used lists": lambda: used_lists.sample(args.batch),
        },
        args.seconds,
        at_least=10,
    )
    milliseconds = {name: spread(values).scaled(1e3) for name, values in times.items()}
    rows, ratios = [], {}
    for name in ("ours", "arrays", "lists", "used lists"):
        ratios[name] = spread(times[name] / times["ours"])
        rate = f"{args.batch / times[name].mean():,.0f}"
        rows.append([f"draw, {name}", f"{milliseconds[name]:.2f}", rate, f"{ratios[name]:.1f}"])
    rate = f"{args.batch / times['update'].mean():,.0f}"
    rows.append(["set priorities, ours", f"{milliseconds['update']:.2f}", rate, ""])
    rate = f"{tasks * ENVS / added.median:,.0f}"
    rows.append([f"add a step of {tasks * ENVS} rows, ours", f"{added.scaled(1e3):.2f}", rate, ""])
    gib = {"estimated": estimate / 2**30, "arrays": buffer.nbytes / 2**30, "resident": resident / 2**30}
    show(
        f"Replay: {args.batch} positions x {UNROLL + TD + 1} steps, {tasks} tasks x {args.transitions:,}, "
        f"ours in {args.observation_dtype}",
        ["", "ms", "positions/s", "time / ours"],
        rows,
        facts,
        "medians (quartiles); memory: " + ", ".join(f"{name} {value:.2f} GiB" for name, value in gib.items()),
    )
    write_json(
        args.json,
        facts,
        milliseconds={name: asdict(value) for name, value in milliseconds.items()},
        ratios={name: asdict(value) for name, value in ratios.items()},
        add_milliseconds=asdict(added.scaled(1e3)),
        memory_gib=gib,
    )


if __name__ == "__main__":
    main()
