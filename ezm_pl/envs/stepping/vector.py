"""Many environments of many tasks, stepped together, padded to one size.

Rows are task-major: `num_envs` rows of the first task, then of the second, and so on. Whatever the
mode, the work is done by `EnvGroup`s, each a run of rows: one group in the calling thread (`sync`), the
same with threads that take rows beside the caller (`threads`), or groups in processes of their own, as
the sub-environments of a `gymnasium.vector.AsyncVectorEnv` whose shared memory carries observations,
rewards and flags (`async`). Row seeds do not depend on the grouping, so every mode gives the same
numbers, bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import Any, Literal

import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from ezm_pl.envs.core import EpisodeProtocol, positive_int
from ezm_pl.envs.registry import Backend, sizes
from ezm_pl.envs.stepping.env_group import Batch, EnvGroup
from ezm_pl.envs.stepping.thread_pool import ThreadPool
from ezm_pl.envs.stepping.workers import Workers
from ezm_pl.spec import Experiment

Mode = Literal["auto", "threads", "async", "sync"]
MODES: tuple[Mode, ...] = ("auto", "threads", "async", "sync")

THREADS_UP_TO_CORES = 4
"""`auto` uses threads up to this many cores. MuJoCo releases the GIL, the Python around it does not:
with more cores the GIL becomes the bottleneck, and processes pay off their start-up and memory."""


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class MultiTaskVectorEnv(VectorEnv[NDArray[np.float32], NDArray[np.float32], NDArray[Any]]):
    """N = T x `num_envs` environments, task-major, zero-padded, with autoreset in the same step.

    Args:
        tasks: T names.
        num_envs: environments per task.
        backend, protocol, action_repeat, episode_steps: as in `make`.
        without_quirks: the tasks that are made with `quirks=False`.
        seed: of everything; row seeds derive from it.
        mode: `sync`, `threads`, `async`, or `auto`: `sync` on one core or for one row, `threads` up
            to `THREADS_UP_TO_CORES` cores, `async` (processes) beyond. Processes import the main
            script afresh: it must guard its work with `if __name__ == "__main__":`.
        render_mode: `rgb_array` or None; with it, `mode` is `sync`.
        workers: threads or processes; by default one per core, and never more than rows.
        worker_timeout: seconds after which a worker process that has not answered a step counts as hung.
        max_worker_restarts: how often worker processes that died or hang are replaced, over all of them.
            A thread cannot be ended from outside: without processes a hanging step hangs.

    Attributes:
        tasks: the T names. sizes: their `TaskSizes`. task_ids: int64 [N]. action_mask: float32 [N, A].
        mode: the mode in use. workers: threads or processes in use.

    Raises:
        ValueError: no tasks, an unknown one, or a bad setting.
        WorkerError: worker processes died or hung too often.
        RuntimeError: an environment in a worker process raised; its traceback is in the message.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        *,
        num_envs: int,
        seed: int,
        backend: Backend = "auto",
        protocol: EpisodeProtocol = "ezm",
        mode: Mode = "auto",
        action_repeat: int = 1,
        episode_steps: int | None = None,
        without_quirks: Collection[str] = (),
        render_mode: Literal["rgb_array"] | None = None,
        workers: int | None = None,
        worker_timeout: float = 300.0,
        max_worker_restarts: int = 0,
    ) -> None:
        self._groups: list[EnvGroup] = []
        self._pool: ThreadPool | None = None
        self._processes: Workers | None = None
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
        self.tasks = tuple(tasks)
        self.sizes = sizes(self.tasks)
        each = positive_int("num_envs", num_envs)
        self.num_envs = len(self.tasks) * each
        self.task_ids = np.repeat(np.arange(len(self.tasks), dtype=np.int64), each)
        self.action_mask = self.sizes.action_mask[self.task_ids]
        self.render_mode = render_mode
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}
        self.single_observation_space = Box(-np.inf, np.inf, (self.sizes.obs_size,), np.float32)
        self.single_action_space = Box(-1.0, 1.0, (self.sizes.action_size,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

        cores = available_cores()
        wanted = cores if workers is None else positive_int("workers", workers)
        if render_mode is not None:
            mode = "sync"
        elif mode == "auto":
            few = "threads" if cores <= THREADS_UP_TO_CORES else "async"
            mode = "sync" if min(wanted, self.num_envs) == 1 else few  # type: ignore[assignment]
        self.mode: Mode = mode
        workers = min(wanted, self.num_envs)
        rows = -(-self.num_envs // workers) if mode == "async" else self.num_envs
        starts = range(0, self.num_envs, rows)
        self._slices = [slice(start, min(start + rows, self.num_envs)) for start in starts]
        self.workers = workers if mode == "threads" else len(self._slices)

        seeds = self._row_seeds(seed)
        settings = {
            "backend": backend,
            "protocol": protocol,
            "action_repeat": action_repeat,
            "episode_steps": episode_steps,
            "render_mode": render_mode,
        }
        names = [self.tasks[i] for i in self.task_ids]
        arguments = [
            (names[s], seeds[s], s.start, self.sizes, settings, tuple(without_quirks)) for s in self._slices
        ]
        if mode == "async":
            self._processes = Workers(arguments, timeout=worker_timeout, max_restarts=max_worker_restarts)
        else:
            self._groups = [EnvGroup(*a) for a in arguments]
            if render_mode is not None:
                self.metadata |= self._groups[0].metadata
            if mode == "threads":
                self._pool = ThreadPool(self.num_envs, workers - 1)
        self.closed = False

    def _row_seeds(self, seed: int) -> list[int]:
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise ValueError(f"seed must be a whole number of at least 0, not {seed!r}")
        state = np.random.SeedSequence(int(seed)).generate_state(self.num_envs)
        return [int(word) for word in state]

    @classmethod
    def of(cls, experiment: Experiment, *, num_envs: int, seed: int, **other: Any) -> MultiTaskVectorEnv:
        """The environments that a spec describes; `other` arguments take the place of the spec's."""
        env = experiment.env
        settings: dict[str, Any] = {
            "tasks": experiment.tasks,
            "backend": env.backend,
            "protocol": env.protocol,
            "mode": env.workers,
            "action_repeat": env.action_repeat,
            "without_quirks": experiment.without_quirks,
            "worker_timeout": env.worker_timeout,
            "max_worker_restarts": env.max_worker_restarts,
        }
        return cls(num_envs=num_envs, seed=seed, **(settings | other))

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Resets every row; observations [N, O] float32 and the same info arrays as `step`'s.

        Args:
            seed: one number to derive all row seeds from, or one per row; None goes on with the
                generators as they are (the constructor's seed at the first reset).
            options: not used.
        """
        if seed is None or isinstance(seed, (int, np.integer)):
            seeds: Sequence[int | None] | None = None if seed is None else self._row_seeds(int(seed))
        else:
            seeds = list(seed)
            if len(seeds) != self.num_envs:
                raise ValueError(f"{len(seeds)} seeds for {self.num_envs} environments")
        if self._processes is not None:
            out = _joined(self._processes.reset(seeds))
        else:
            (group,) = self._groups
            group.reset(options={"seeds": seeds})
            out = _joined([group.out])
        self._observed = out["obs"]
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
            `diverged` [N] bool, `lost` [N] bool (the row's worker process died or hung within this
            step and was replaced: the episode is truncated at the observation before it, reward 0),
            `steps` [N] int64 (control steps consumed).

        Raises:
            ValueError: actions of the wrong shape, or with a NaN in an actuator's entry.
        """
        given = np.asarray(actions, np.float32)
        if given.shape != (self.num_envs, self.sizes.action_size):
            raise ValueError(
                f"actions have shape {given.shape}, expected {(self.num_envs, self.sizes.action_size)}"
            )
        if self._processes is not None:
            batches, lost = self._processes.step([given[s] for s in self._slices])
            out = _joined(batches)
            for rows in (self._slices[n] for n in lost):
                # What became of the step is not known: the episodes end where it began.
                out["final_obs"][rows] = self._observed[rows]
                out["truncated"][rows] = out["lost"][rows] = 1
        else:
            (group,) = self._groups
            if self._pool is not None:
                self._pool.each(lambda row: group.step_row(row, given[row]))
            else:
                group.step(given)
            out = _joined([group.out])
        self._observed = out["obs"]
        infos = self._infos(out)
        return out["obs"], out["reward"], out["terminated"] != 0, out["truncated"] != 0, infos

    def render(self) -> tuple[NDArray[np.uint8], ...]:
        """RGB frames `[H, W, 3]` of all rows; with `render_mode` only."""
        return tuple(frame for group in self._groups for frame in group.frames())

    def set_episode_steps(self, steps: int | None) -> None:
        """Changes the time limit, in control steps, from each next reset on; None for the full length."""
        if steps is not None:
            steps = positive_int("episode_steps", steps)
        if self._processes is not None:
            self._processes.set_episode_steps(steps)
        for group in self._groups:
            group.set_episode_steps(steps)

    def close_extras(self, **kwargs: Any) -> None:
        """Ends every thread and process."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        for group in self._groups:
            group.close()
        if self._processes is not None:
            self._processes.close()

    @property
    def worker_restarts(self) -> int:
        """How many worker processes have been replaced because they died or hung."""
        return self._processes.restarts if self._processes is not None else 0

    @staticmethod
    def _infos(out: dict[str, NDArray[Any]]) -> dict[str, Any]:
        return {
            "final_obs": out["final_obs"],
            "fell": out["fell"] != 0,
            "reward_before_fall": out["reward_before_fall"],
            "diverged": out["diverged"] != 0,
            "lost": out["lost"] != 0,
            "steps": out["steps"].astype(np.int64),
        }


def _joined(batches: Sequence[Batch]) -> Batch:
    """The batches of all groups as fresh [N, ...] arrays."""
    out = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    out["lost"] = np.zeros(len(out["reward"]), np.int8)
    return out
