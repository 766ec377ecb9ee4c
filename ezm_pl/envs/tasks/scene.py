"""Small helpers to furnish a scene: solid shapes, bodies that move, joints, cameras."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

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
CARDBOARD = (0.76, 0.6, 0.42, 1.0)
TAPE = (0.9, 0.85, 0.72, 1.0)
GOLD = (0.83, 0.67, 0.25, 1.0)
GLASS = (0.75, 0.88, 0.97, 0.6)
RED = (0.8, 0.25, 0.2, 1.0)
GREEN = (0.3, 0.6, 0.3, 1.0)
BLUE = (0.2, 0.4, 0.75, 1.0)
YELLOW = (0.9, 0.75, 0.2, 1.0)

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


def add_free_body(
    spec: mujoco.MjSpec, name: str, pos: Vector, quat: Vector = (1, 0, 0, 0), joint: str = ""
) -> mujoco.MjsBody:
    """A body that moves freely, by `joint`, or else by one called `free_<name>`."""
    body = spec.worldbody.add_body(name=name, pos=pos, quat=quat)
    body.add_freejoint(name=joint or f"free_{name}")
    return body


def add_hinge(
    body: mujoco.MjsBody, name: str, axis: Vector, limits: Vector, pos: Vector = (0, 0, 0), **settings: Any
) -> mujoco.MjsJoint:
    """A hinge limited to `limits`, rad."""
    hinge = mujoco.mjtJoint.mjJNT_HINGE
    return body.add_joint(name=name, type=hinge, axis=axis, pos=pos, limited=True, range=limits, **settings)


def add_slide(
    body: mujoco.MjsBody, name: str, axis: Vector, limits: Vector, pos: Vector = (0, 0, 0), **settings: Any
) -> mujoco.MjsJoint:
    """A slide limited to `limits`, m."""
    slide = mujoco.mjtJoint.mjJNT_SLIDE
    return body.add_joint(name=name, type=slide, axis=axis, pos=pos, limited=True, range=limits, **settings)


def add_camera(spec: mujoco.MjSpec, name: str, pos: Vector, target: Vector) -> None:
    """A camera that stands at `pos` and looks at `target`, upright."""
    forward = np.subtract(target, pos)
    right = np.cross(forward, (0.0, 0.0, 1.0))
    camera = spec.worldbody.add_camera(name=name, pos=pos)
    camera.alt.type = mujoco.mjtOrientation.mjORIENTATION_XYAXES
    camera.alt.xyaxes = [*right, *np.cross(right, forward)]


def add_package(body: mujoco.MjsBody, size: Vector, **settings: Any) -> None:
    """A box of cardboard (half sizes) with a strip of tape round it."""
    add_solid(body, BOX, size, rgba=CARDBOARD, **settings)
    x, y, z = size
    add_picture(body, BOX, (x + 0.001, 0.2 * y, z + 0.001), mass=0, rgba=TAPE)


def add_chair(chair: mujoco.MjsBody) -> None:
    """A wooden chair with its back towards -x: what is seen gives it its mass, two boxes its contact."""
    for x in (0.19, -0.19):
        for y in (0.19, -0.19):
            add_picture(chair, BOX, (0.02, 0.02, 0.225), (x, y, 0.225), rgba=DARK_WOOD)
    add_picture(chair, BOX, (0.21, 0.21, 0.025), (0, 0, 0.45), rgba=WOOD)
    for y in (0.19, -0.19):
        add_picture(chair, BOX, (0.02, 0.02, 0.2125), (-0.23, y, 0.6375), rgba=DARK_WOOD)
    add_picture(chair, BOX, (0.02, 0.21, 0.08), (-0.23, 0, 0.77), rgba=WOOD)
    add_invisible(chair, BOX, (0.02, 0.21, 0.2), (-0.23, 0, 0.65))
    add_invisible(chair, BOX, (0.21, 0.21, 0.2375), (0, 0, 0.2375))


def add_low_table(spec: mujoco.MjSpec, pos: Vector, half_width: float, leg_y: float) -> None:
    """A fixed table, 0.9 m high where `pos` is 0.45 m up, with legs at `leg_y` on both sides."""
    table = spec.worldbody.add_body(name="table", pos=pos)
    add_solid(table, BOX, (0.5, half_width, 0.05), (0, 0, 0.4), rgba=WOOD)
    for x in (0.4, -0.4):
        for y in (leg_y, -leg_y):
            add_solid(table, BOX, (0.05, 0.05, 0.4), (x, y, -0.05), rgba=DARK_WOOD)


def add_table(spec: mujoco.MjSpec, pos: Vector) -> None:
    """A fixed square table, 0.95 m high where `pos` is 0.45 m up."""
    table = spec.worldbody.add_body(name="table", pos=pos)
    add_solid(table, BOX, (0.5, 0.5, 0.05), (0, 0, 0.45), rgba=WOOD)
    for x in (0.4, -0.4):
        for y in (0.4, -0.4):
            # Legs are seen (and weigh) a little shorter than they touch.
            add_picture(table, BOX, (0.05, 0.05, 0.45), (x, y, 0), rgba=DARK_WOOD)
            add_invisible(table, BOX, (0.05, 0.05, 0.5), (x, y, 0))
