"""Worker processes that step environments: started, watched, restarted where they die or hang, ended."""

from __future__ import annotations

import functools
import logging
import multiprocessing
import signal
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker
from typing import Any

import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from numpy.typing import NDArray

from ezm_pl.envs.stepping.env_group import Batch, EnvGroup, group_spaces

log = logging.getLogger(__name__)

START_SECONDS = 300.0
"""A new worker imports MuJoCo and compiles its tasks' models, maybe beside many others that do the same."""


class WorkerError(RuntimeError):
    """Worker processes died or hung more often than they may be restarted."""


class WorkerGroup(EnvGroup):
    """An `EnvGroup` that lives in a process of its own, and builds its environments only there."""

    def __init__(self, *arguments: Any) -> None:
        self._arguments: tuple[Any, ...] | None = arguments
        tasks, _, _, task_sizes, *_ = arguments
        spaces = group_spaces(len(tasks), task_sizes)
        self.observation_space, self.action_space = spaces  # type: ignore[assignment]

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


class Workers:
    """`EnvGroup`s, each in a process of its own.

    Each is the one sub-environment of an `AsyncVectorEnv`: one can be replaced while the others go on.

    Args:
        groups: the arguments of each `EnvGroup`.
        timeout: seconds after which a worker that has not answered a step counts as hung.
        max_restarts: how many restarts there may be in all.

    Attributes:
        restarts: how many there have been.

    Raises:
        RuntimeError: a worker does not start.
    """

    def __init__(self, groups: Sequence[tuple[Any, ...]], *, timeout: float, max_restarts: int) -> None:
        self.restarts = 0
        self._arguments = list(groups)
        self._timeout, self._max_restarts = timeout, max_restarts
        self._episode_steps: int | None = None
        self._limited = False
        # Died or timed out: gymnasium refuses them a request, or takes a late answer for the next one's.
        self._silent: set[int] = set()
        self._workers: list[AsyncVectorEnv] = []
        with ThreadPoolExecutor(len(groups)) as pool:
            starts = [pool.submit(_start, arguments) for arguments in groups]
        self._workers = [start.result() for start in starts if start.exception() is None]
        failure = next((start.exception() for start in starts if start.exception() is not None), None)
        if failure is not None:
            self.close()
            raise failure

    def reset(self, seeds: Sequence[int | None] | None) -> list[Batch]:
        """Resets every row (`seeds` [N] of all groups, or None); a batch of each worker."""
        for n in range(len(self._workers)):
            self._send(n, "reset", options={"seeds": seeds})
        deadline = time.monotonic() + max(START_SECONDS, self._timeout)
        found = [self._receive(n, "reset", deadline) for n in range(len(self._workers))]
        return [self._restart(n, seeds) if batch is None else batch for n, batch in enumerate(found)]

    def step(self, actions: Sequence[NDArray[np.float32]]) -> tuple[list[Batch], list[int]]:
        """Steps every row.

        Args:
            actions: [R, A] of each worker.

        Returns:
            A batch of each worker, and which workers had to be restarted: their batches are a reset's.

        Raises:
            WorkerError: there have been too many restarts.
            RuntimeError: an environment raised; its traceback is in the message.
        """
        for n, action in enumerate(actions):
            self._send(n, "step", action[None])
        deadline = time.monotonic() + self._timeout
        found = [self._receive(n, "step", deadline) for n in range(len(self._workers))]
        lost = [n for n, batch in enumerate(found) if batch is None]
        return [self._restart(n) if batch is None else batch for n, batch in enumerate(found)], lost

    def set_episode_steps(self, steps: int | None) -> None:
        """Changes every row's time limit from its next reset on, also in workers yet to be restarted.

        A worker that dies or does not answer is restarted by the next `reset` or `step`.

        Raises:
            RuntimeError: an environment raised; its traceback is in the message.
        """
        self._episode_steps, self._limited = steps, True
        for n in range(len(self._workers)):
            self._send(n, "call", "set_episode_steps", steps)
        deadline = time.monotonic() + max(START_SECONDS, self._timeout)
        for n in range(len(self._workers)):
            self._receive(n, "call", deadline)

    def close(self) -> None:
        """Ends every process, also those that do not answer."""
        for worker in self._workers:
            for pipe in worker.parent_pipes:
                if pipe is not None and not pipe.closed:
                    try:
                        pipe.send(("close", None))
                    except OSError:
                        continue  # it is dead already
        deadline = time.monotonic() + 5.0
        for worker in self._workers:
            for process in worker.processes:
                process.join(max(0.0, deadline - time.monotonic()))
            _end(worker)
        self._workers = []

    def _send(self, n: int, request: str, *arguments: Any, **named: Any) -> None:
        if n in self._silent:
            return
        try:
            getattr(self._workers[n], f"{request}_async")(*arguments, **named)
        except OSError:
            self._silent.add(n)

    def _receive(self, n: int, request: str, deadline: float) -> Batch | None:
        """A worker's answer; None, until it is replaced, where it has died or did not answer in time."""
        if n in self._silent:
            return None
        left = max(0.0, deadline - time.monotonic())
        try:
            answer = getattr(self._workers[n], f"{request}_wait")(left)[0]
        except (EOFError, OSError, multiprocessing.TimeoutError):
            self._silent.add(n)
            return None
        return {name: array[0] for name, array in answer.items()} if request != "call" else {}

    def _restart(self, n: int, seeds: Sequence[int | None] | None = None) -> Batch:
        """Replaces a worker, as often as need be, and resets its rows with new seeds (or those given)."""
        reason = _end(self._workers[n])
        while True:
            tasks, old, first, *rest = self._arguments[n]
            where = f"environment worker {n} ({', '.join(dict.fromkeys(tasks))})"
            if self.restarts == self._max_restarts:
                raise WorkerError(
                    f"{where} {reason}, and workers have been restarted {self.restarts} times already, the "
                    "limit (env.max_worker_restarts). One killed by SIGKILL was most likely killed for want "
                    "of memory (see dmesg; fewer env.num_envs need less); one that does not answer within "
                    f"{self._timeout:g} seconds (env.worker_timeout) hangs, or the machine is overloaded"
                )
            self.restarts += 1
            log.warning(
                "%s %s: restarted, its episodes cut (restart %d of at most %d)",
                where,
                reason,
                self.restarts,
                self._max_restarts,
            )
            fresh = [int(np.random.SeedSequence((s, self.restarts)).generate_state(1)[0]) for s in old]
            try:
                self._workers[n] = _start((tasks, fresh, first, *rest))
            except RuntimeError:
                reason = "died as it started"
                continue
            self._silent.discard(n)
            if self._limited:
                self._send(n, "call", "set_episode_steps", self._episode_steps)
                self._receive(n, "call", time.monotonic() + START_SECONDS)
            self._send(n, "reset", options={"seeds": seeds})
            batch = self._receive(n, "reset", time.monotonic() + START_SECONDS)
            if batch is not None:
                return batch
            reason = _end(self._workers[n])


def _start(arguments: tuple[Any, ...]) -> AsyncVectorEnv:
    """Starts a worker.

    Raises:
        RuntimeError: it died at once.
    """
    # Never fork a process that may hold threads (and their locks): start afresh.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    # What every worker needs is imported once, by the server that they are forked from.
    multiprocessing.set_forkserver_preload(["__main__", "ezm_pl.envs"])
    # Workers inherit the mask: Ctrl-C is the parent's to answer, also while they are starting. (Starting
    # multiprocessing's resource tracker lifts the block, so that comes first.)
    resource_tracker.ensure_running()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return AsyncVectorEnv(
            [functools.partial(WorkerGroup, *arguments)],
            shared_memory=True,
            copy=False,
            context=method,
            autoreset_mode=AutoresetMode.DISABLED,
        )
    except (EOFError, OSError) as error:
        raise RuntimeError(
            "an environment's worker process died as it started (killed, out of memory, or a script "
            "without `if __name__ == '__main__':` around its work, which mode 'async' needs)"
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _end(worker: AsyncVectorEnv) -> str:
    """Ends a worker, by force if it is still there; what was the matter with it, in words."""
    (process,) = worker.processes
    process.join(0.5)
    hung = process.is_alive()
    if hung:
        process.kill()  # SIGTERM would not reach one that is stopped
        process.join()
    for pipe in worker.parent_pipes:
        if pipe is not None:
            pipe.close()
    worker.closed = True
    code = process.exitcode or 0
    if hung:
        return "did not answer"
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
