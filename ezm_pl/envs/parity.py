"""How near the built-in tasks are to the original package: recorded rollouts, replayed here.

A recording is `<task>.npz`, numbers only (see TASKS.md, "Parity"): the state before each control
step, the action, and what the original package on its pinned MuJoCo made of them. Each step is
replayed from its own recorded state, so that errors do not pile up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from ezm_pl.envs.registry import make
from ezm_pl.envs.robots.humanoid import SUBSTEPS, HumanoidEnv
from ezm_pl.spec.tasks import BUILTIN, HUMANOID_BENCH

QPOS_MEDIAN_FACTOR = 2.0
QPOS_P90_FACTOR = 2.5
"""Bounds on errors of qpos, as multiples of `floor.json`: the original model's own, moved to MuJoCo 3.17."""
REWARD_MEDIAN = 5e-3
REWARD_P90 = 5e-2
TERMINATED_AGREEMENT = 0.98
RELATIVE = 1e-6
"""Facts are equal when they agree to this share of the largest entry."""

OWN_HULLS = ("ankle_link", "distal")
"""Geoms of bodies so named are built from measured outlines: their frames are their own."""


NOT_TERMS = frozenset({"terminated_reason"})
"""Recorded beside the reward terms, but none."""
PAPER_SUCCESS = {"h1hand-crawl": 700.0}
"""Success bars that the package's code gives otherwise than its paper, which the task table follows."""
STAND_INS = "_vision"
"""Bodies so named are pictures of goals, which the original moves about in the model itself."""


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
        terminated: share of steps on which the termination agrees.
        obs_median: of the max abs error of the observation's entries after qpos and qvel; 0 if none.
        terms: reward terms whose names differ.
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
    terminated: float
    obs_median: float
    terms: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every bound of TASKS.md holds."""
        return (
            not self.facts
            and not self.terms
            and self.qpos_median <= self.qpos_median_bound
            and self.qpos_p90 <= self.qpos_p90_bound
            and self.reward_median <= REWARD_MEDIAN
            and self.reward_p90 <= REWARD_P90
            and self.terminated >= TERMINATED_AGREEMENT
        )


def recorded_tasks(directory: Path | str) -> tuple[str, ...]:
    """Built-in tasks that have a recording in `directory`, in canonical order."""
    return tuple(t for t in HUMANOID_BENCH if t in BUILTIN and (Path(directory) / f"{t}.npz").is_file())


def check(directory: Path | str, tasks: Sequence[str] | None = None) -> list[ParityRow]:
    """Replays recordings and compares.

    Args:
        directory: holds `<task>.npz` and `floor.json`.
        tasks: which; by default every built-in task with a recording.

    Raises:
        FileNotFoundError: the folder, its `floor.json` or a task's recording is missing.
        ValueError: a task that is unknown or not built in.
    """
    folder = Path(directory)
    if not (folder / "floor.json").is_file():
        raise FileNotFoundError(f"no parity recordings in {folder}: floor.json is missing")
    floor = json.loads((folder / "floor.json").read_text())["tasks"]
    return [_check_task(folder, task, floor[task]) for task in tasks or recorded_tasks(folder)]


def _check_task(folder: Path, task: str, floor: dict[str, float]) -> ParityRow:
    path = folder / f"{task}.npz"
    if not path.is_file():
        raise FileNotFoundError(f"no recording of {task}: {path} is missing")
    env = make(task, backend="builtin")
    assert isinstance(env, HumanoidEnv)
    with np.load(path) as recording:
        record = {key: recording[key] for key in recording}
    facts = json.loads(str(record["facts"]))
    internal = json.loads(str(record["internal"]))
    parts = json.loads(str(record["reward_parts"]))
    env.reset(seed=0)

    steps = len(record["qpos"])
    qpos, reward, obs = np.zeros(steps), np.zeros(steps), np.zeros(steps)
    agree = np.zeros(steps, bool)
    state_size = sum(part.size for part in env.task.state())
    odd_terms: set[str] = set()
    for i in range(steps):
        env.restore(record["qpos"][i], record["qvel"][i], record["warmstart"][i], internal[i])
        got, got_reward, terminated, _, info = env.step(record["action"][i])
        qpos[i] = np.abs(env.data.qpos - record["qpos_next"][i]).max()
        reward[i] = abs(got_reward - record["reward"][i])
        agree[i] = terminated == record["terminated"][i]
        if got.size > state_size:
            obs[i] = np.abs(got[state_size:] - record["obs"][i][state_size:]).max()
        odd_terms |= (set(info["reward_terms"]) ^ set(parts[i])) - NOT_TERMS
    mismatches = compare_facts(env, task, facts)
    env.close()
    return ParityRow(
        task=task,
        steps=steps,
        facts=tuple(mismatches),
        qpos_median=float(np.median(qpos)),
        qpos_p90=float(np.percentile(qpos, 90)),
        qpos_median_bound=QPOS_MEDIAN_FACTOR * floor["median"],
        qpos_p90_bound=QPOS_P90_FACTOR * floor["p90"],
        reward_median=float(np.median(reward)),
        reward_p90=float(np.percentile(reward, 90)),
        terminated=float(agree.mean()),
        obs_median=float(np.median(obs)),
        terms=tuple(sorted(odd_terms)),
    )


def compare_facts(env: HumanoidEnv, task: str, facts: dict[str, Any]) -> list[str]:
    """One line for every recorded fact that the compiled model does not share.

    Of geoms, those that can be touched are compared, in order: the original draws each twice.
    """
    model = env.model
    names = _names
    bodies = names(model.body, model.nbody)
    ours: dict[str, Any] = {
        "task": task,
        "nq": model.nq,
        "nv": model.nv,
        "nu": model.nu,
        "nbody": model.nbody,
        "obs_dim": env.observation_space.shape[0] if env.observation_space.shape else None,
        "frame_skip": SUBSTEPS,
        "max_episode_steps": env.episode_steps,
        "actuators": names(model.actuator, model.nu),
        "joints": names(model.joint, model.njnt),
        "bodies": bodies,
        "timestep": model.opt.timestep,
        "total_mass": model.body_mass.sum(),
        "success_bar": PAPER_SUCCESS.get(task, HUMANOID_BENCH[task].success_score),
        "reset_randomness": env.task.reset_noise,
        "gainprm": model.actuator_gainprm[:, 0],
        "biasprm": model.actuator_biasprm[:, :3],
        "ctrlrange": model.actuator_ctrlrange,
        "forcerange": model.actuator_forcerange,
    }
    for key in ("body_mass", "jnt_axis", "jnt_range"):
        ours[key] = getattr(model, key)
    for key in ("dof_damping", "dof_armature", "dof_frictionloss"):
        ours[key] = getattr(model, key)
    lines = [_difference(key, ours[key], facts[key]) for key in ours]
    lines.append(_placement_difference("key_qpos", env.initial_qpos, facts["key_qpos"]))

    # What stands still, or weighs nothing, has no inertia that matters (and MuJoCo 3.1.6 sums it oddly).
    moving = (model.body_weldid > 0) & (model.body_mass > 0)
    if len(facts["body_mass"]) == model.nbody:
        ours_ipos, recorded_ipos = model.body_ipos[moving], np.array(facts["body_ipos"])[moving]
        lines.append(_placement_difference("body_ipos", ours_ipos, recorded_ipos))
        tensors = [
            _inertia_tensors(np.asarray(inertia)[moving], np.asarray(quat)[moving])
            for inertia, quat in (
                (model.body_inertia, model.body_iquat),
                (facts["body_inertia"], facts["body_iquat"]),
            )
        ]
        # Body by body: a share of the heaviest body's inertia would be a lot for a fingertip.
        for name, a, b in zip(np.array(bodies)[moving], *tensors, strict=True):
            largest = np.abs(b).max()
            lines.append(_placement_difference(f"inertia of {name}", a / largest, b / largest))
        placed = np.array([not name.endswith(STAND_INS) for name in bodies])
        for key, compare in (("body_pos", _placement_difference), ("body_quat", _rotation_difference)):
            lines.append(compare(key, getattr(model, key)[placed], np.array(facts[key])[placed]))
    lines += _compare_geoms(model, facts, bodies)
    lines += _compare_sites(model, facts, bodies)
    return [line for line in lines if line]


def _inertia_tensors(inertia: NDArray[Any], quat: NDArray[Any]) -> NDArray[np.float64]:
    """Principal inertias [n, 3] and axes [n, 4] -> tensors [n, 3, 3]: the same however axes are ordered."""
    tensors = np.zeros((len(inertia), 3, 3))
    for tensor, principal, q in zip(tensors, inertia, quat, strict=True):
        rotation = np.zeros(9)
        mujoco.mju_quat2Mat(rotation, np.asarray(q, float))
        axes = rotation.reshape(3, 3)
        tensor[...] = axes @ np.diag(principal) @ axes.T
    return tensors


def _compare_geoms(model: Any, facts: dict[str, Any], bodies: list[str]) -> list[str]:
    mine = np.flatnonzero(model.geom_contype | model.geom_conaffinity)
    theirs = np.flatnonzero(np.array(facts["geom_contype"]) | np.array(facts["geom_conaffinity"]))
    if len(mine) != len(theirs):
        return [f"touchable geoms: {len(mine)}, recorded {len(theirs)}"]
    at = np.array(facts["geom_bodyid"])[theirs]
    lines = []
    for key in ("type", "bodyid", "friction", "solref", "solimp", "contype", "conaffinity"):
        recorded = np.array(facts[f"geom_{key}"])[theirs]
        lines.append(_difference(f"geom_{key}", getattr(model, f"geom_{key}")[mine], recorded))
    framed = np.array([not facts["bodies"][body].endswith(OWN_HULLS) for body in at])
    for key, compare in (
        ("size", _placement_difference),
        ("pos", _placement_difference),
        ("quat", _rotation_difference),
    ):
        recorded = np.array(facts[f"geom_{key}"])[theirs][framed]
        lines.append(compare(f"geom_{key}", getattr(model, f"geom_{key}")[mine][framed], recorded))
    return lines


def _compare_sites(model: Any, facts: dict[str, Any], bodies: list[str]) -> list[str]:
    lines = []
    own = {name: i for i, name in enumerate(_names(model.site, model.nsite))}
    for name, body, pos in zip(facts["sites"], facts["site_bodyid"], facts["site_pos"], strict=True):
        if name in own:
            lines.append(_placement_difference(f"site {name}", model.site_pos[own[name]], pos))
            mine, theirs = bodies[model.site_bodyid[own[name]]], facts["bodies"][body]
            if mine != theirs:
                lines.append(f"site {name}: in {mine}, recorded in {theirs}")
    return lines


def _names(accessor: Callable[[int], Any], count: int) -> list[str]:
    return [accessor(i).name for i in range(count)]


def _difference(name: str, ours: Any, recorded: Any, absolute: float = 1e-9) -> str:
    """An empty string where equal: names exactly, numbers to a share of `RELATIVE` or `absolute`."""
    if isinstance(recorded, str):
        return "" if ours == recorded else f"{name}: {ours!r}, recorded {recorded!r}"
    if isinstance(recorded, list) and recorded and isinstance(recorded[0], str):
        recorded = [text or "" for text in recorded]
        odd = [(a, b) for a, b in zip(ours, recorded, strict=False) if a != b]
        if len(ours) != len(recorded):
            return f"{name}: {len(ours)}, recorded {len(recorded)}"
        return f"{name}: {odd[0][0]!r}, recorded {odd[0][1]!r} ({len(odd)} differ)" if odd else ""
    a, b = np.asarray(ours, float), np.asarray(recorded, float)
    if a.shape != b.shape:
        return f"{name}: shape {a.shape}, recorded {b.shape}"
    error = np.abs(a - b)
    far = error > np.maximum(absolute, RELATIVE * np.abs(b))
    if not far.any():
        return ""
    worst = np.unravel_index(np.argmax(np.where(far, error, 0)), a.shape)
    where = f"[{', '.join(map(str, worst))}]" if worst else ""
    return f"{name}{where}: {a[worst]:.9g}, recorded {b[worst]:.9g} ({int(far.sum())} differ)"


def _placement_difference(name: str, ours: Any, recorded: Any) -> str:
    """As `_difference`, for places and sizes: equal to a micrometre."""
    return _difference(name, ours, recorded, absolute=1e-6)


def _rotation_difference(name: str, ours: NDArray[Any], recorded: NDArray[Any]) -> str:
    """As `_placement_difference`, for quaternions [n, 4], whose sign means nothing."""
    ours = np.asarray(ours, float)
    sign = np.where((ours * recorded).sum(axis=1, keepdims=True) < 0, -1.0, 1.0)
    return _placement_difference(name, ours * sign, recorded)
