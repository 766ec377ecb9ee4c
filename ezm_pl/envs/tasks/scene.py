"""Small helpers to furnish a scene: boxes, cylinders and walls that touch and show at once."""

from __future__ import annotations

from typing import Any

import mujoco

from ezm_pl.envs.robots.h1 import Vector

GREY = (0.5, 0.5, 0.5, 1.0)
BOX = mujoco.mjtGeom.mjGEOM_BOX
CYLINDER = mujoco.mjtGeom.mjGEOM_CYLINDER
SPHERE = mujoco.mjtGeom.mjGEOM_SPHERE
CAPSULE = mujoco.mjtGeom.mjGEOM_CAPSULE
MESH = mujoco.mjtGeom.mjGEOM_MESH

WOOD = (0.72, 0.55, 0.38, 1.0)
DARK_WOOD = (0.42, 0.3, 0.2, 1.0)
STEEL = (0.7, 0.72, 0.75, 1.0)

Z_TO_X = (0.5**0.5, 0.0, 0.5**0.5, 0.0)
"""Lays a cylinder along x ..."""
Z_TO_Y = (0.5**0.5, -(0.5**0.5), 0.0, 0.0)
"""... or along y."""

HIDDEN_GROUP = 3
"""Geoms of this group touch but are not drawn."""


def add_solid(
    body: mujoco.MjsBody, kind: mujoco.mjtGeom, size: Vector, pos: Vector = (0, 0, 0), **settings: Any
) -> mujoco.MjsGeom:
    """A geom that can be touched; `size` is MuJoCo's (half lengths), padded with zeros to three."""
    settings.setdefault("rgba", GREY)
    return body.add_geom(type=kind, size=[*size, 0.0, 0.0][:3], pos=pos, **settings)


def add_picture(
    body: mujoco.MjsBody, kind: mujoco.mjtGeom, size: Vector, pos: Vector = (0, 0, 0), **settings: Any
) -> mujoco.MjsGeom:
    """A geom that is only seen."""
    return add_solid(body, kind, size, pos, contype=0, conaffinity=0, **settings)


def add_invisible(
    body: mujoco.MjsBody, kind: mujoco.mjtGeom, size: Vector, pos: Vector = (0, 0, 0), **settings: Any
) -> mujoco.MjsGeom:
    """A massless geom that is only touched."""
    return add_solid(body, kind, size, pos, group=HIDDEN_GROUP, mass=0, **settings)
