"""Many environments of many tasks, stepped together, padded to one size.

Rows are task-major: `num_envs` rows of the first task, then of the second, and so on. Whatever the
mode, the work is done by `RowGroup`s, each a run of rows: one group in the calling thread (`sync`), the
same with threads that take rows beside the caller (`threads`), or groups in processes of their own, as
the sub-environments of a `gymnasium.vector.AsyncVectorEnv` whose shared memory carries observations,
rewards and flags (`async`). Row seeds do not depend on the grouping, so every mode gives the same
numbers, bit for bit.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import traceback
from collections.abc import Sequence
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.spaces import Dict as DictSpace
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from ezm_pl.envs.core import Protocol, positive_int
from ezm_pl.envs.crew import Crew
from ezm_pl.envs.registry import Backend, TaskSizes, make, sizes

Mode = Literal["auto", "threads", "async", "sync"]
MODES: tuple[Mode, ...] = ("auto", "threads", "async", "sync")

THREADS_UP_TO_CORES = 4
"""`auto` uses threads up to this many cores. MuJoCo releases the GIL, the Python around it does not:
with more cores the GIL becomes the narrow place, and processes pay off their start-up and memory."""


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class RowGroup(gymnasium.Env[dict[str, NDArray[Any]], NDArray[np.float32]]):
    """A run of R padded environments that step and reset together, each on its own.

    To `AsyncVectorEnv` it looks like one environment that never ends: everything per row travels in
    the observation, a dict of `obs` and `final_obs` [R, O] float32, `reward` and
    `reward_before_fall` [R] float32, `terminated`, `truncated`, `fell`,
    `diverged` [R] int8 and `steps` [R] int32.

    Args:
        tasks: the task of each row; fewer than `rows` leaves the rest as zeros.
        seeds: the seed of each row.
        first: which row of the whole the group starts at.
        rows: R.
        task_sizes: what to pad to.
        settings: keyword arguments of `make`.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        seeds: Sequence[int],
        first: int,
        rows: int,
        task_sizes: TaskSizes,
        settings: dict[str, Any],
    ) -> None:
        self._envs = [make(task, seed=seed, **settings) for task, seed in zip(tasks, seeds, strict=True)]
        self._first = first
        self._shapes = [(_length(env.observation_space), _length(env.action_space)) for env in self._envs]
        width = task_sizes.obs_size
        space = group_space(rows, width)
        self.observation_space = space  # type: ignore[assignment]
        self.action_space = Box(-1.0, 1.0, (rows, task_sizes.action_size), np.float32)
        self.out: dict[str, NDArray[Any]] = {
            name: np.zeros(part.shape or (), part.dtype) for name, part in space.spaces.items()
        }

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Resets every row; `options={"seeds": [N]}` (of all groups' rows) re-seeds; `seed` is not used."""
        given = (options or {}).get("seeds")
        rows = slice(self._first, self._first + len(self._envs))
        seeds = [None] * len(self._envs) if given is None else given[rows]
        for array in self.out.values():
            array[...] = 0
        for row, (env, (width, _)) in enumerate(zip(self._envs, self._shapes, strict=True)):
            self.out["obs"][row, :width] = env.reset(seed=seeds[row])[0]
        self.out["final_obs"][...] = self.out["obs"]
        return self.out, {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[dict[str, NDArray[Any]], float, bool, bool, dict[str, Any]]:
        """Steps every row under `action` [R, A] and resets those that ended."""
        for row in range(len(self._envs)):
            self.step_row(row, action[row])
        return self.out, 0.0, False, False, {}

    def step_row(self, row: int, action: NDArray[np.float32]) -> None:
        """Steps one row under `action` [A] and resets it if it ended. Rows may be stepped by any thread."""
        out, env, (width, actions) = self.out, self._envs[row], self._shapes[row]
        obs, reward, terminated, truncated, info = env.step(action[:actions])
        out["final_obs"][row, :width] = obs
        out["reward"][row] = reward
        out["terminated"][row] = terminated
        out["truncated"][row] = truncated
        out["fell"][row] = info["fell"]
        out["reward_before_fall"][row] = info["reward_before_fall"]
        out["diverged"][row] = info["diverged"]
        out["steps"][row] = info["steps"]
        if terminated or truncated:
            obs, _ = env.reset()
        out["obs"][row, :width] = obs

    def set_episode_steps(self, steps: int | None) -> None:
        """Changes every row's time limit from its next reset on."""
        for env in self._envs:
            env.unwrapped.set_episode_steps(steps)  # type: ignore[attr-defined]

    def close(self) -> None:
        for env in self._envs:
            env.close()


class WorkerGroup(RowGroup):
    """A `RowGroup` that lives in a process of its own, and builds its environments only there."""

    def __init__(self, *arguments: Any) -> None:
        self._arguments: tuple[Any, ...] | None = arguments
        _, _, _, rows, task_sizes, _ = arguments
        self.observation_space = group_space(rows, task_sizes.obs_size)  # type: ignore[assignment]
        self.action_space = Box(-1.0, 1.0, (rows, task_sizes.action_size), np.float32)

    def _build(self) -> None:
        """Builds the environments, once: in the worker, where a failure can be reported."""
        if self._arguments is not None:
            # Ctrl-C goes to the whole process group: the parent decides what to do, and closes us.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            arguments, self._arguments = self._arguments, None
            super().__init__(*arguments)

    def reset(self, **arguments: Any) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        with _traceback_in_message():
            self._build()
            return super().reset(**arguments)

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[dict[str, NDArray[Any]], float, bool, bool, dict[str, Any]]:
        with _traceback_in_message():
            self._build()
            return super().step(action)

    def set_episode_steps(self, steps: int | None) -> None:
        with _traceback_in_message():
            self._build()
            super().set_episode_steps(steps)

    def close(self) -> None:
        if self._arguments is None:
            super().close()


class _traceback_in_message:
    """Re-raises an exception as a RuntimeError with its traceback as text: only that can be piped."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        if isinstance(value, Exception):
            text = "".join(traceback.format_exception(kind, value, trace))
            raise RuntimeError(f"an environment's worker process failed:\n{text}") from value


class _worker_deaths:
    """Says in words what a broken pipe to a worker means."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        if isinstance(value, (EOFError, OSError)):
            raise RuntimeError(
                "an environment's worker process died without a word (killed, out of memory, or a script "
                "without `if __name__ == '__main__':` around its work, which mode 'async' needs)"
            ) from value


def _length(space: gymnasium.Space[Any]) -> int:
    assert space.shape is not None and len(space.shape) == 1
    return space.shape[0]


def group_space(rows: int, width: int) -> DictSpace:
    """The space of a `RowGroup`'s observation: R rows, O wide."""

    def box(shape: tuple[int, ...], dtype: Any) -> Box:
        if np.issubdtype(dtype, np.integer):
            limits = np.iinfo(dtype)
            return Box(limits.min, limits.max, shape, dtype)
        return Box(-np.inf, np.inf, shape, dtype)

    flags = {name: box((rows,), np.int8) for name in ("terminated", "truncated", "fell", "diverged")}
    return DictSpace(
        {
            "obs": box((rows, width), np.float32),
            "final_obs": box((rows, width), np.float32),
            "reward": box((rows,), np.float32),
            "reward_before_fall": box((rows,), np.float32),
            "steps": box((rows,), np.int32),
            **flags,
        }
    )


class MultiTaskVectorEnv(VectorEnv[NDArray[np.float32], NDArray[np.float32], NDArray[Any]]):
    """N = T x `num_envs` environments, task-major, zero-padded, with autoreset in the same step.

    Args:
        tasks: T names.
        num_envs: environments a task.
        backend, protocol, action_repeat, episode_steps: as in `make`.
        seed: of everything; row seeds derive from it.
        mode: `sync`, `threads`, `async`, or `auto`: `sync` on one core or for one row, `threads` up
            to `THREADS_UP_TO_CORES` cores, `async` (processes) beyond. Processes import the main
            script afresh: it must guard its work with `if __name__ == "__main__":`.
        workers: threads or processes; by default one a core, and never more than rows.

    Attributes:
        tasks: the T names. sizes: their `TaskSizes`. task_ids: int64 [N]. action_mask: float32 [N, A].
        mode: the mode in use. workers: threads or processes in use.

    Raises:
        ValueError: no tasks, an unknown one, or a bad setting.
        RuntimeError: a worker process failed (its traceback is in the message) or died.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        *,
        num_envs: int,
        seed: int,
        backend: Backend = "auto",
        protocol: Protocol = "ezm",
        mode: Mode = "auto",
        action_repeat: int = 1,
        episode_steps: int | None = None,
        workers: int | None = None,
    ) -> None:
        self._groups: list[RowGroup] = []
        self._crew: Crew | None = None
        self._processes: AsyncVectorEnv | None = None
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
        self.tasks = tuple(tasks)
        self.sizes = sizes(self.tasks)
        each = positive_int("num_envs", num_envs)
        self.num_envs = len(self.tasks) * each
        self.task_ids = np.repeat(np.arange(len(self.tasks), dtype=np.int64), each)
        self.action_mask = self.sizes.action_mask[self.task_ids]
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}
        self.single_observation_space = Box(-np.inf, np.inf, (self.sizes.obs_size,), np.float32)
        self.single_action_space = Box(-1.0, 1.0, (self.sizes.action_size,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

        cores = available_cores()
        wanted = cores if workers is None else positive_int("workers", workers)
        if mode == "auto":
            few = "threads" if cores <= THREADS_UP_TO_CORES else "async"
            mode = "sync" if min(wanted, self.num_envs) == 1 else few  # type: ignore[assignment]
        self.mode: Mode = mode
        workers = min(wanted, self.num_envs)
        rows = -(-self.num_envs // workers) if mode == "async" else self.num_envs
        self._rows = rows
        starts = range(0, self.num_envs, rows)
        self._slices = [slice(start, min(start + rows, self.num_envs)) for start in starts]
        self.workers = workers if mode == "threads" else len(self._slices)

        seeds = self._row_seeds(seed)
        settings = {
            "backend": backend,
            "protocol": protocol,
            "action_repeat": action_repeat,
            "episode_steps": episode_steps,
        }
        names = [self.tasks[i] for i in self.task_ids]
        arguments = [(names[s], seeds[s], s.start, rows, self.sizes, settings) for s in self._slices]
        if mode == "async":
            # Never fork a process that may hold threads (and their locks): start afresh.
            method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
            # Workers inherit the mask: Ctrl-C is the parent's to answer, also while they are starting.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                self._processes = AsyncVectorEnv(
                    [functools.partial(WorkerGroup, *a) for a in arguments],
                    shared_memory=True,
                    copy=False,
                    context=method,
                    autoreset_mode=AutoresetMode.DISABLED,
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        else:
            self._groups = [RowGroup(*a) for a in arguments]
            if mode == "threads":
                self._crew = Crew(self.num_envs, workers - 1)
        self.closed = False

    def _row_seeds(self, seed: int) -> list[int]:
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise ValueError(f"seed must be a whole number of at least 0, not {seed!r}")
        state = np.random.SeedSequence(int(seed)).generate_state(self.num_envs)
        return [int(word) for word in state]

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Resets every row; observations [N, O] float32 and the same info arrays as `step`'s.

        Args:
            seed: one number to derive all row seeds from, or one a row; None goes on with the
                generators as they are (the constructor's seed at the first reset).
            options: not used.
        """
        if seed is None or isinstance(seed, (int, np.integer)):
            seeds: Sequence[int | None] | None = None if seed is None else self._row_seeds(int(seed))
        else:
            seeds = list(seed)
            if len(seeds) != self.num_envs:
                raise ValueError(f"{len(seeds)} seeds for {self.num_envs} environments")
        row_seeds = {"seeds": seeds}
        if self._processes is not None:
            with _worker_deaths():
                batch = self._processes.reset(options=row_seeds)[0]
            out = self._flatten(batch)
        else:
            (group,) = self._groups
            group.reset(options=row_seeds)
            out = _copy(group.out)
        return out["obs"], self._infos(out)

    def step(
        self, actions: NDArray[np.floating[Any]]
    ) -> tuple[
        NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]
    ]:
        """Steps every row, resetting those that ended within the same call.

        Args:
            actions: [N, A]; entries beyond a task's own actuators are ignored.

        Returns:
            obs [N, O] float32 (of the new episode where one ended), reward [N] float32,
            terminated [N] bool, truncated [N] bool, and infos: `final_obs` [N, O] (the ended
            episode's last observation; elsewhere equal to obs), `fell` [N] bool,
            `reward_before_fall` [N] float32 (up to and including a fall within this step),
            `diverged` [N] bool, `steps` [N] int64 (control steps consumed).

        Raises:
            ValueError: actions of the wrong shape, or with a NaN in an actuator's entry.
        """
        given = np.asarray(actions, np.float32)
        if given.shape != (self.num_envs, self.sizes.action_size):
            raise ValueError(
                f"actions have shape {given.shape}, expected {(self.num_envs, self.sizes.action_size)}"
            )
        if self._processes is not None:
            padded = np.zeros((self.workers * self._rows, self.sizes.action_size), np.float32)
            padded[: self.num_envs] = given
            with _worker_deaths():
                batch = self._processes.step(padded.reshape(self.workers, self._rows, -1))[0]
            out = self._flatten(batch)
        else:
            (group,) = self._groups
            if self._crew is not None:
                self._crew.each(lambda row: group.step_row(row, given[row]))
            else:
                group.step(given)
            out = _copy(group.out)
        infos = self._infos(out)
        return out["obs"], out["reward"], out["terminated"] != 0, out["truncated"] != 0, infos

    def set_episode_steps(self, steps: int | None) -> None:
        """Changes the time limit, in control steps, from each next reset on; None for the full length."""
        if steps is not None:
            steps = positive_int("episode_steps", steps)
        if self._processes is not None:
            with _worker_deaths():
                self._processes.call("set_episode_steps", steps)
        for group in self._groups:
            group.set_episode_steps(steps)

    def close_extras(self, **kwargs: Any) -> None:
        """Ends every thread and process."""
        if self._crew is not None:
            self._crew.close()
            self._crew = None
        for group in self._groups:
            group.close()
        if self._processes is not None:
            processes, self._processes = self._processes, None
            try:
                processes.close(terminate=kwargs.get("terminate", False))
            except (EOFError, OSError):  # a worker is dead already: end the others
                for process in processes.processes:
                    process.terminate()
                    process.join()
                processes.closed = True

    def _flatten(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """[workers, R, ...] arrays of shared memory -> fresh [N, ...] arrays."""
        return {
            name: array.reshape(self.workers * self._rows, *array.shape[2:])[: self.num_envs].copy()
            for name, array in batch.items()
        }

    @staticmethod
    def _infos(out: dict[str, NDArray[Any]]) -> dict[str, Any]:
        return {
            "final_obs": out["final_obs"],
            "fell": out["fell"] != 0,
            "reward_before_fall": out["reward_before_fall"],
            "diverged": out["diverged"] != 0,
            "steps": out["steps"].astype(np.int64),
        }


def _copy(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: array.copy() for name, array in arrays.items()}
