"""Whether a built-in task's compiled model is the original's: every recorded fact, compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from ezm_pl.envs.robots.humanoid import SUBSTEPS, HumanoidEnv
from ezm_pl.spec.tasks import HUMANOID_BENCH

RELATIVE = 1e-6
"""Facts are equal when they agree to this share of the largest entry."""
OWN_HULLS = ("ankle_link", "distal")
"""Geoms of bodies so named are built from measured outlines: their frames are their own."""
PAPER_SUCCESS = {"h1hand-crawl": 700.0}
"""Success bars that the package's code gives otherwise than its paper, which the task table follows."""
STAND_INS = "_vision"
"""Bodies so named are pictures of goals, which the original moves about in the model itself."""


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
        "reset_randomness": type(env.task).reset_noise,
        "gainprm": model.actuator_gainprm[:, 0],
        "biasprm": model.actuator_biasprm[:, :3],
        "ctrlrange": model.actuator_ctrlrange,
        "forcerange": model.actuator_forcerange,
    }
    for key in ("body_mass", "jnt_axis", "jnt_range"):
        ours[key] = getattr(model, key)
    for key in ("dof_damping", "dof_armature", "dof_frictionloss"):
        ours[key] = getattr(model, key)
    for key in ("jnt_type", "jnt_pos", "jnt_stiffness", "body_parentid", "body_gravcomp", "qpos_spring"):
        if key in facts:  # newer recordings hold more
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
    lines += _compare_geoms(model, facts)
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


def _compare_geoms(model: Any, facts: dict[str, Any]) -> list[str]:
    mine = np.flatnonzero(model.geom_contype | model.geom_conaffinity)
    theirs = np.flatnonzero(np.array(facts["geom_contype"]) | np.array(facts["geom_conaffinity"]))
    if len(mine) != len(theirs):
        return [f"touchable geoms: {len(mine)}, recorded {len(theirs)}"]
    at = np.array(facts["geom_bodyid"])[theirs]
    lines = []
    keys = ["type", "bodyid", "friction", "solref", "solimp", "contype", "conaffinity"]
    for key in (*keys, *(key for key in ("condim", "margin", "gap", "priority") if f"geom_{key}" in facts)):
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
