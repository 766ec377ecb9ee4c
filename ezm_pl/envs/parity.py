"""How near the built-in tasks are to the original package: recorded rollouts, replayed here.

A recording is `<task>.npz`, numbers only (docs/parity.md, "Recordings"): the state before each control
step, the action, and what the original package on its pinned MuJoCo made of them. Each step is
replayed from its own recorded state, so that errors do not pile up. `events/<task>.npz`, where there
is one, holds staged steps in which the rare branches of a reward fire; there, every step must agree.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ezm_pl.envs.parity_facts import compare_facts
from ezm_pl.envs.registry import make
from ezm_pl.envs.robots.humanoid import HumanoidEnv
from ezm_pl.spec.files import read_json
from ezm_pl.spec.tasks import HUMANOID_BENCH

QPOS_MEDIAN_FACTOR = 2.0
QPOS_P90_FACTOR = 2.5
"""Bounds on errors of qpos, as multiples of `floor.json`: the original model's own, moved to MuJoCo 3.17."""
REWARD_BOUNDS = (5e-3, 5e-2)
"""Bounds on the median and the 90th percentile of the reward's error ..."""
OBJECT_REWARD_BOUNDS = (1e-3, 5e-3)
"""... and those of `OBJECT_TASKS`."""
OBJECT_TASKS = tuple(HUMANOID_BENCH)[tuple(HUMANOID_BENCH).index("h1hand-push") :]
"""The tasks with objects: the end of the canonical order."""
TERMINATED_AGREEMENT = 0.98
FIRST_OBSERVATION = 1e-5
"""Bound on the error of an episode's first observation."""
EVENT_REWARD = 1e-2
EVENT_STATE = 1e-2
"""Bounds on the reward's and the task-side state's error in every step of the events."""
FINGERS = ("lh_", "rh_")
"""Joints so named are left out where the floor is given for the body alone (`body_median`)."""
NOT_TERMS = frozenset({"terminated_reason", "success"})
"""Recorded beside the reward terms in some tasks, but none."""


@dataclass(frozen=True)
class ParityRow:
    """One task's parity.

    Attributes:
        task: its name.
        steps: control steps replayed.
        facts: one line for each recorded fact that differs.
        qpos_median, qpos_p90: of the max abs error of `qpos_next` over the steps.
        qpos_median_bound, qpos_p90_bound: what they may be.
        reward_median, reward_p90: of the reward's abs error.
        reward_bounds: what they may be.
        terminated: share of steps on which the termination agrees.
        first_obs: the largest error of an episode's first observation.
        terms: reward terms whose names differ.
        events: staged steps replayed, 0 where none are recorded.
        odd_events: one line for each of them that differs.
    """

    task: str
    steps: int
    facts: tuple[str, ...]
    qpos_median: float
    qpos_p90: float
    qpos_median_bound: float
    qpos_p90_bound: float
    reward_median: float
    reward_p90: float
    reward_bounds: tuple[float, float]
    terminated: float
    first_obs: float
    terms: tuple[str, ...]
    events: int
    odd_events: tuple[str, ...]

    @property
    def differences(self) -> tuple[str, ...]:
        """One line for each fact, term and staged step that differs."""
        return (*self.facts, *(f"term {term}" for term in self.terms), *self.odd_events)

    @property
    def passed(self) -> bool:
        """Whether every bound holds (docs/parity.md, "Bounds")."""
        return (
            not self.differences
            and self.qpos_median <= self.qpos_median_bound
            and self.qpos_p90 <= self.qpos_p90_bound
            and self.reward_median <= self.reward_bounds[0]
            and self.reward_p90 <= self.reward_bounds[1]
            and self.terminated >= TERMINATED_AGREEMENT
            and self.first_obs <= FIRST_OBSERVATION
        )


class Recording:
    """A recording, read: arrays by name, and its JSON texts as what they hold.

    Raises:
        ValueError: the file is none, or an entry that is asked for is not in it.
    """

    def __init__(self, path: Path) -> None:
        try:
            with np.load(path) as stored:
                self.arrays: dict[str, NDArray[Any]] = {key: stored[key] for key in stored}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is no recording: it cannot be read as .npz") from error
        self.path = path
        self.internal: list[dict[str, Any]] = self.json("internal")
        self.steps = len(self["qpos"])

    def __getitem__(self, key: str) -> NDArray[Any]:
        if key not in self.arrays:
            raise ValueError(f"{self.path} is no recording: it has no entry {key!r}")
        return self.arrays[key]

    def json(self, key: str) -> Any:
        """The text of an entry, parsed."""
        return json.loads(str(self[key]))

    def restore(self, env: HumanoidEnv, step: int) -> None:
        """Puts `env` where the original was before a step."""
        env.restore_recorded(
            self["qpos"][step], self["qvel"][step], self["warmstart"][step], self.internal[step]
        )


def recorded_tasks(directory: Path | str) -> tuple[str, ...]:
    """Built-in tasks that have a recording in `directory`, in canonical order."""
    return tuple(t for t in HUMANOID_BENCH if (Path(directory) / f"{t}.npz").is_file())


def check(directory: Path | str, tasks: Sequence[str] | None = None) -> list[ParityRow]:
    """Replays recordings and compares.

    Args:
        directory: holds `<task>.npz`, `floor.json` and maybe `events/<task>.npz`.
        tasks: which; by default every built-in task with a recording.

    Raises:
        FileNotFoundError: the folder, its `floor.json` or a task's recording is missing.
        ValueError: a file is not what it should be.
    """
    folder = Path(directory)
    path = folder / "floor.json"
    if not path.is_file():
        raise FileNotFoundError(f"no parity recordings in {folder}: floor.json is missing")
    try:
        floors = read_json(path)["tasks"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no table of floors: JSON with an entry 'tasks' expected") from error
    wanted = tasks or recorded_tasks(folder)
    if not wanted:
        raise FileNotFoundError(f"no parity recordings in {folder}: no built-in task has a .npz file there")
    for task in wanted:
        if not (folder / f"{task}.npz").is_file():
            raise FileNotFoundError(f"no recording of {task}: {folder / f'{task}.npz'} is missing")
        if not {"median", "p90"} <= set(floors.get(task, ())):
            raise ValueError(f"{path} has no median and p90 of {task}")
    return [_check_task(folder, task, floors[task]) for task in wanted]


def _check_task(folder: Path, task: str, floor: dict[str, float]) -> ParityRow:
    path = folder / f"{task}.npz"
    env = make(task, backend="builtin", seed=0)
    assert isinstance(env, HumanoidEnv)
    env.reset()
    record = Recording(path)
    facts = record.json("facts")
    mismatches = compare_facts(env, task, facts)
    parts = record.json("reward_parts")
    median, p90, compared = floor["median"], floor["p90"], np.ones(env.model.nq, bool)
    if "body_median" in floor:
        median, p90, compared = floor["body_median"], floor["body_p90"], _body_entries(env)

    qpos, reward = np.zeros(record.steps), np.zeros(record.steps)
    agree = np.zeros(record.steps, bool)
    odd_terms: set[str] = set()
    for i in range(record.steps):
        record.restore(env, i)
        _, got_reward, terminated, _, info = env.step(record["action"][i])
        qpos[i] = np.abs(env.data.qpos - record["qpos_next"][i])[compared].max()
        reward[i] = abs(got_reward - record["reward"][i])
        agree[i] = terminated == record["terminated"][i]
        odd_terms |= (set(info["reward_terms"]) ^ set(parts[i])) - NOT_TERMS
    first_obs = _first_observations(env, record)
    events = folder / "events" / path.name
    steps, odd_events = _check_events(env, Recording(events)) if events.is_file() else (0, [])
    env.close()
    return ParityRow(
        task=task,
        steps=record.steps,
        facts=tuple(mismatches),
        qpos_median=float(np.median(qpos)),
        qpos_p90=float(np.percentile(qpos, 90)),
        qpos_median_bound=QPOS_MEDIAN_FACTOR * median,
        qpos_p90_bound=QPOS_P90_FACTOR * p90,
        reward_median=float(np.median(reward)),
        reward_p90=float(np.percentile(reward, 90)),
        reward_bounds=OBJECT_REWARD_BOUNDS if task in OBJECT_TASKS else REWARD_BOUNDS,
        terminated=float(agree.mean()),
        first_obs=first_obs,
        terms=tuple(sorted(odd_terms)),
        events=steps,
        odd_events=tuple(odd_events),
    )


def _body_entries(env: HumanoidEnv) -> NDArray[np.bool_]:
    """Which entries of qpos [nq] are not the fingers'."""
    entries = np.ones(env.model.nq, bool)
    for i in range(env.model.njnt):
        joint = env.model.joint(i)
        if joint.name.startswith(FINGERS):
            entries[joint.qposadr[0]] = False
    return entries


def _first_observations(env: HumanoidEnv, record: Recording) -> float:
    """The largest error of an observation that a reset returned, from the state it was made of."""
    begins = np.flatnonzero(np.diff(record["episode"], prepend=-1))
    internal = record.json("first_internal") if "first_internal" in record.arrays else None
    worst = 0.0
    for episode, step in enumerate(begins):
        state = record.internal[step] if internal is None else internal[episode]
        got = env.restore_recorded(record["qpos"][step], record["qvel"][step], internal=state)
        worst = max(worst, float(np.abs(got - record["first_obs"][episode]).max()))
    return worst


def _check_events(env: HumanoidEnv, record: Recording) -> tuple[int, list[str]]:
    """The number of staged steps, and one line for each that differs."""
    lines = []
    for i in range(record.steps):
        record.restore(env, i)
        _, reward, terminated, _, _ = env.step(record["action"][i])
        odd = []
        if abs(reward - record["reward"][i]) > EVENT_REWARD:
            odd.append(f"reward {reward:.4f}, recorded {record['reward'][i]:.4f}")
        if terminated != record["terminated"][i]:
            odd.append(f"terminated {terminated}, recorded {record['terminated'][i]}")
        # What comes after is recorded with the next step, where that is of the same episode.
        if i + 1 < record.steps and record["episode"][i + 1] == record["episode"][i]:
            odd += _state_differences(env.task.internal(), record.internal[i + 1])
        if odd:
            lines.append(f"event {i} ({record['label'][i]}): {'; '.join(odd)}")
    return record.steps, lines


def _state_differences(ours: Mapping[str, Any], recorded: Mapping[str, Any]) -> list[str]:
    """One line for each entry of the task-side state that differs."""
    lines = []
    for key, value in recorded.items():
        mine, theirs = np.asarray(ours.get(key, []), float), np.asarray(value, float)
        if mine.shape != theirs.shape or (np.abs(mine - theirs) > EVENT_STATE).any():
            lines.append(f"{key} {mine.tolist()}, recorded {theirs.tolist()}")
    return lines
