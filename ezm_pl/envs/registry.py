"""The door: task names to environments, and their sizes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import gymnasium
import numpy as np
from numpy.typing import NDArray

from ezm_pl.envs import rendering
from ezm_pl.envs.core import EpisodeProtocol, Settings
from ezm_pl.spec.errors import SpecError, nearest
from ezm_pl.spec.tasks import DMC, GYM, HUMANOID_BENCH, REGISTERED, TaskFacts, task_facts

if TYPE_CHECKING:
    from ezm_pl.envs.robots.humanoid import Task

Backend = Literal["auto", "builtin", "humanoid_bench"]
BACKENDS: tuple[Backend, ...] = ("auto", "builtin", "humanoid_bench")


def make(
    task: str,
    *,
    backend: Backend = "auto",
    protocol: EpisodeProtocol = "humanoidbench",
    seed: int | None = None,
    render_mode: str | None = None,
    action_repeat: int = 1,
    episode_steps: int | None = None,
    quirks: bool = True,
) -> gymnasium.Env[Any, Any]:
    """One environment of one task: float32 observations, actions in [-1, 1], unpadded.

    Args:
        task: `h1-walk`, `h1hand-reach`, ..., `dmc-<domain>-<task>`, `gym:<id>` (any Gymnasium environment
            with Box spaces), or `<module>:<name>` (see `register`).
        backend: `builtin` (this package's tasks), `humanoid_bench` (the original package, if
            installed), or `auto`, which is `builtin`.
        protocol: `humanoidbench`: falls end the episode; `ezm`: they never do. Both report
            `info["fell"]`.
        seed: seed of the first `reset` that is given none.
        render_mode: `rgb_array` or None.
        action_repeat: control steps that an action is held for; rewards are summed.
        episode_steps: control steps of an episode; the task's own by default.
        quirks: whether a HumanoidBench task keeps the benchmark's obvious bugs (named in its class's
            docstring), with which published numbers were made; without, it does what was meant.

    Raises:
        ValueError: an unknown task (with the nearest name), or a bad setting.
        HumanoidBenchUnavailable: the original package is wanted and does not import.
        RenderingUnavailable: `render_mode` is given and no GL works here.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
    if render_mode is not None:
        rendering.require()
    settings: Settings = {
        "protocol": protocol,
        "seed": seed,
        "render_mode": render_mode,
        "action_repeat": action_repeat,
        "episode_steps": episode_steps,
    }
    if backend == "humanoid_bench" and task not in (*DMC, *REGISTERED) and not task.startswith(GYM):
        from ezm_pl.envs.original import OriginalEnv

        if not quirks:
            raise ValueError("backend 'humanoid_bench' is the original, quirks and all: quirks must be true")
        return OriginalEnv(task, **settings)
    if task.startswith(GYM):
        from ezm_pl.envs.tasks.gym import GymEnv

        return GymEnv(task, **settings)
    if task in DMC:
        from ezm_pl.envs.tasks.dmc import DMControlEnv

        return DMControlEnv(task, **settings)
    facts = task_facts(task)
    if facts is None:
        raise ValueError(f"unknown task {task!r}{nearest(task, (*HUMANOID_BENCH, *DMC, *REGISTERED))}")
    from ezm_pl.envs.catalogue import CATALOGUE
    from ezm_pl.envs.robots.humanoid import HumanoidEnv

    robot, kind = CATALOGUE[task]
    env = HumanoidEnv(robot, kind, quirks=quirks, **settings)
    env.success_return = facts.success_score
    return env


# gymnasium looks here which render modes there are, to wrap others around them.
make.metadata = {"render_modes": ["rgb_array"], "render_fps": 50}  # type: ignore[attr-defined]


def check_tasks(tasks: Sequence[str], backend: Backend = "auto") -> None:
    """Makes each task once.

    Raises:
        SpecError: a line for each one that cannot be made here.
    """
    from ezm_pl.envs.original import HumanoidBenchUnavailable

    problems = []
    for task in tasks:
        try:
            make(task, backend=backend).close()
        except (ValueError, HumanoidBenchUnavailable) as error:
            problems.append(f"tasks: {error}")
    if problems:
        raise SpecError("\n".join(dict.fromkeys(problems)))


def register(
    name: str, robot: str, task: type[Task], *, success_score: float, random_score: float = 0.0
) -> str:
    """Enters a task of one's own, at the top level of the module that defines it.

    From then on it goes by `<module>:<name>` everywhere, specs included: the name says what to import,
    in other processes and later runs too.

    Args:
        name: of the task, such as `h1-wave`. robot: a name of `ROBOTS`. task: its class.
        success_score, random_score: the returns that count as a normalised score of 1 and of 0.

    Returns:
        The full name.

    Raises:
        ValueError: an unknown robot, a name or task that cannot be, or scores that are equal.
    """
    from ezm_pl.envs.catalogue import CATALOGUE
    from ezm_pl.envs.robots.humanoid import HumanoidEnv
    from ezm_pl.envs.robots.simulation import ROBOTS

    if not name or ":" in name:
        raise ValueError(f"a task's name must not be empty or hold a colon: {name!r}")
    if success_score == random_score:
        raise ValueError(f"success_score and random_score must differ, both are {success_score:g}")
    if robot not in ROBOTS:
        raise ValueError(f"unknown robot {robot!r}, not one of {', '.join(ROBOTS)}")
    full = f"{task.__module__}:{name}"
    env = HumanoidEnv(robot, task)
    shapes = env.observation_space.shape, env.action_space.shape
    assert shapes[0] is not None and shapes[1] is not None
    REGISTERED[full] = TaskFacts(
        full,
        obs_size=shapes[0][0],
        action_size=shapes[1][0],
        nq=env.model.nq,
        nv=env.model.nv,
        episode_steps=task.episode_steps,
        random_score=random_score,
        success_score=success_score,
    )
    CATALOGUE[full] = robot, task
    return full


@dataclass(frozen=True)
class TaskSizes:
    """Sizes of a list of T tasks, for padding.

    Attributes:
        obs_sizes: int64 [T].
        action_sizes: int64 [T].
        obs_size: O, the largest observation.
        action_size: A, the largest action.
        action_mask: float32 [T, A], 1 where a task has an actuator.
    """

    obs_sizes: NDArray[np.int64]
    action_sizes: NDArray[np.int64]
    obs_size: int
    action_size: int
    action_mask: NDArray[np.float32]


@functools.cache
def _size(task: str) -> tuple[int, int]:
    """(observation size, action size) of a task."""
    facts = task_facts(task)
    if facts is not None:
        return facts.obs_size, facts.action_size
    env = make(task)
    shapes = env.observation_space.shape, env.action_space.shape
    env.close()
    assert shapes[0] is not None and shapes[1] is not None
    return shapes[0][0], shapes[1][0]


def sizes(tasks: Sequence[str]) -> TaskSizes:
    """Sizes of `tasks`: from the table for HumanoidBench, by building any other task once.

    Raises:
        ValueError: an unknown task, or none.
    """
    if not tasks:
        raise ValueError("no tasks given")
    pairs = np.array([_size(task) for task in tasks], np.int64)
    obs_sizes, action_sizes = pairs[:, 0].copy(), pairs[:, 1].copy()
    mask = np.arange(action_sizes.max())[None, :] < action_sizes[:, None]
    return TaskSizes(
        obs_sizes, action_sizes, int(obs_sizes.max()), int(action_sizes.max()), mask.astype(np.float32)
    )
