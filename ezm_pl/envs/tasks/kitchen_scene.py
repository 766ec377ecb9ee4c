"""The kitchen of the kitchen task: counters, oven, hood, cabinets, microwave and kettle, as primitives.

Sizes are MuJoCo's half sizes in m, masses in kg, angles in rad. The benchmark's kitchen is that of
Franka Kitchen (Gupta et al., arXiv 1910.11956), whose shapes that touch are primitives too; what is
only seen there (meshes) is drawn here as primitives, without mass.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mujoco
import numpy as np

from ezm_pl.envs.core import FloatArray
from ezm_pl.envs.robots.h1 import Vector, set_inertial
from ezm_pl.envs.tasks.scene import (
    BOX,
    CAPSULE,
    CYLINDER,
    HIDDEN_GROUP,
    SPHERE,
    STEEL,
    add_picture,
    add_solid,
)

Turn = tuple[float, float, float]
"""Turns about the body's own x, then y, then z axis, rad."""

NONE: Turn = (0, 0, 0)
X: Turn = (1.57, 0, 0)
Y: Turn = (0, 1.57, 0)
HIDDEN = (0.0, 0.0, 0.0, 0.0)
FRONT = (0.86, 0.85, 0.82, 1.0)
STONE = (0.36, 0.37, 0.39, 1.0)
TILES = (0.78, 0.83, 0.84, 1.0)
ENAMEL = (0.55, 0.57, 0.6, 1.0)
DARK = (0.12, 0.12, 0.13, 1.0)
GLOW = (0.75, 0.22, 0.12, 1.0)
LAMP = (1.0, 0.95, 0.7, 1.0)
COPPER = (0.72, 0.35, 0.22, 1.0)

HARD: dict[str, Any] = {"contype": 0, "conaffinity": 1, "margin": 0.001}
"""Contact of counters, oven, walls and sliding cabinet: with the robot and the kettle only."""
SOFT: dict[str, Any] = {**HARD, "solimp": [0.8, 0.9, 0.01, 0.5, 2]}
KETTLE: dict[str, Any] = {**SOFT, "contype": 1, "condim": 4}


def quaternion(turn: Turn) -> FloatArray:
    """The orientation `[4]` after a `Turn`."""
    quat = np.zeros(4)
    mujoco.mju_euler2Quat(quat, turn, "xyz")
    return quat


class Shape(NamedTuple):
    """A geom: kind, half sizes, position, orientation, colour; one that is only seen is a `picture`."""

    kind: mujoco.mjtGeom
    size: Vector
    pos: Vector
    turn: Turn = NONE
    rgba: Vector = FRONT
    picture: bool = False


class Hinge(NamedTuple):
    """A joint with one degree of freedom; a `slide` moves along its axis."""

    name: str
    axis: Vector
    limits: tuple[float, float]
    slide: bool = False
    friction: float = 0.0
    stiffness: float = 0.0
    armature: float = 0.001


class Inertial(NamedTuple):
    """Mass properties; of what stands still only the mass is recorded."""

    mass: float
    com: Vector = (0, 0, 0)
    inertia: Vector = (1, 1, 1)
    quat: Vector = (1, 0, 0, 0)


class Part(NamedTuple):
    """A body of the kitchen."""

    name: str
    parent: str
    pos: Vector = (0, 0, 0)
    turn: Turn = NONE
    inertial: Inertial | None = None
    joint: Hinge | None = None
    contact: dict[str, Any] = HARD
    shapes: tuple[Shape, ...] = ()


def picture(
    kind: mujoco.mjtGeom, size: Vector, pos: Vector, turn: Turn = NONE, rgba: Vector = FRONT
) -> Shape:
    """A shape that is only seen."""
    return Shape(kind, size, pos, turn, rgba, picture=True)


# fmt: off
KNOBS = ((-0.148, 0.613), (-0.271, 0.613), (-0.148, 0.727), (-0.271, 0.727))
"""Where the four knobs are on the front of the hood, x and z ..."""
BURNERS = ((0.206, -0.119), (-0.24, -0.119), (0.204, 0.322), (-0.237, 0.322))
"""... and their burners on the oven, x and y."""
KNOB = Inertial(
    0.02, (0, 0, 0.0255), (2.0833333333e-05, 1.8348333333e-05, 1.1321666667e-05), (0.5, 0.5, -0.5, 0.5))
BURNER = Inertial(0.01, (0, 0, 0), (0.001,) * 3)
SWITCH = Inertial(0.1, (-0.0046, 0.35, 0.0131), (0.001,) * 3)


def _cooking() -> tuple[Part, ...]:
    """Knobs and burners."""
    parts = []
    for n, ((knob_x, knob_z), (x, y)) in enumerate(zip(KNOBS, BURNERS, strict=True), start=1):
        turning = Hinge(f"knob_Joint_{n}", (0, 0, 1), (-1.57, 0))
        stiffness = 0 if n == 1 else 1
        heating = Hinge(f"burner_Joint_{n}", (0, 0, -1), (-0.009, 0), slide=True, stiffness=stiffness)
        parts += [
            Part(f"knob {n}", "ovenroot", (knob_x, 0.22, knob_z), X, KNOB, turning, HARD, (
                Shape(BOX, (0.014, 0.048, 0.018), (0, 0, 0.038), NONE, DARK),
                Shape(CYLINDER, (0.05, 0.008), (0, 0, 0.013), NONE, DARK),
                picture(BOX, (0.004, 0.02, 0.019), (0, 0.03, 0.038), NONE, GLOW),
            )),
            Part(f"Burner {n}", "ovenroot", (x, y, -0.02), NONE, BURNER, heating, HARD, (
                picture(CYLINDER, (0.1, 0.01), (0, 0, 0.028), NONE, GLOW),
            )),
        ]
    return tuple(parts)


def _upper_door(name: str, joint: str, side: float, limits: tuple[float, float], inertial: Inertial) -> Part:
    """A door of the hinged cabinet, left (-1) or right (1) of its middle."""
    door = Shape(BOX, (0.193, 0.03, 0.2), (-0.184 if side < 0 else -0.185, -0.015, 0))
    rail = Shape(CYLINDER, (0.022, 0.16), (-0.302, -0.128, 0), NONE, STEEL)
    bar = Shape(CYLINDER, (0.019, 0.053, 0.02), (-0.302, -0.061, -0.114), X, STEEL)
    low, high = bar, bar._replace(pos=(-0.302, -0.061, 0.114))
    order = (door, rail, high, low) if side < 0 else (rail, low, high, door)
    shapes = tuple(shape._replace(pos=(side * shape.pos[0], *shape.pos[1:])) for shape in order)
    hinge = Hinge(joint, (0, 0, 1), limits, friction=2, armature=0.01)
    return Part(name, "hingecab", (0.38 * side, -0.32, 0), NONE, inertial, hinge, SOFT, shapes)


PARTS: tuple[Part, ...] = (
    Part("vive_controller", "world", (-0.44, -0.092, 2.026), (-1.57, 0, -0.785)),  # left over in the original
    Part("desk", "world", (-0.1, 0.75, 0)),
    Part("counters1", "desk"),
    Part("counters", "counters1", inertial=Inertial(10.54), shapes=(
        *(shape for z in (0.87, 0.64) for shape in (
            Shape(CYLINDER, (0.022, 0.28), (0.909, -0.695, z), Y, STEEL),
            Shape(CYLINDER, (0.018, 0.03), (0.71, -0.665, z), X, STEEL),
            Shape(CYLINDER, (0.018, 0.03), (1.108, -0.665, z), X, STEEL),
        )),
        Shape(BOX, (0.46, 1.07, 0.46), (-0.86, -0.5, 0.46)),
        Shape(BOX, (0.304, 0.606, 0.46), (0.907, -0.045, 0.46)),
        Shape(BOX, (0.463, 1.08, 0.03), (-0.855, -0.508, 0.95), NONE, STONE),
        Shape(BOX, (0.051, 0.611, 0.03), (1.159, -0.045, 0.95), NONE, STONE),
        Shape(BOX, (0.051, 0.611, 0.03), (0.649, -0.045, 0.95), NONE, STONE),
        Shape(BOX, (0.204, 0.165, 0.03), (0.904, 0.4, 0.95), NONE, STONE),
        Shape(BOX, (0.204, 0.039, 0.03), (0.904, -0.617, 0.95), NONE, STONE),
        Shape(BOX, (0.05, 0.61, 0.076), (1.158, -0.04, 0.95), NONE, HIDDEN),
        Shape(BOX, (0.05, 0.61, 0.076), (0.652, -0.04, 0.95), NONE, HIDDEN),
        Shape(BOX, (0.204, 0.166, 0.076), (0.904, 0.401, 0.95), NONE, HIDDEN),
        Shape(BOX, (0.206, 0.034, 0.076), (0.904, -0.611, 0.95), NONE, HIDDEN),
        Shape(CYLINDER, (0.035, 0.05), (0.9, 0.085, 1.24), NONE, STEEL),
        Shape(CAPSULE, (0.025, 0.08), (0.9, 0.085, 1.33), NONE, STEEL),
        Shape(CAPSULE, (0.025, 0.11), (0.9, 0.2, 1.41), X, STEEL),
        Shape(CAPSULE, (0.025, 0.2), (0.9, 0.317, 1.21), NONE, STEEL),
        Shape(CYLINDER, (0.032, 0.07), (0.9, 0.317, 1.08), NONE, STEEL),
        Shape(CYLINDER, (0.029, 0.03), (0.947, 0.318, 1.09), Y, STEEL),
        Shape(CYLINDER, (0.035, 0.013), (0.99, 0.318, 1.09), Y, STEEL),
        Shape(CAPSULE, (0.01, 0.03), (0.99, 0.26, 1.09), X, STEEL),
        picture(BOX, (0.204, 0.407, 0.004), (0.904, -0.171, 0.921), NONE, STEEL),  # the sink, and its drain
        picture(CYLINDER, (0.03, 0.005), (0.904, -0.171, 0.922), NONE, DARK),
        *(picture(BOX, (0.295, 0.008, 0.1), (0.907, -0.65, z), NONE, TILES) for z in (0.81, 0.58)),
    )),
    Part("oven", "desk"),
    Part("ovenroot", "oven", (0.115, -0.2921, 0.9834), inertial=Inertial(6.2), shapes=(
        Shape(BOX, (0.5, 0.602, 0.51), (-0.017, 0.28, -0.5), NONE, ENAMEL),
        *(shape for z in (-0.85, -0.17) for shape in (
            Shape(CYLINDER, (0.018, 0.03), (-0.215, -0.36, z), X, STEEL),
            Shape(CYLINDER, (0.018, 0.03), (0.184, -0.36, z), X, STEEL),
            Shape(CYLINDER, (0.022, 0.28), (-0.015, -0.39, z), Y, STEEL),
        )),
        picture(BOX, (0.35, 0.016, 0.22), (-0.011, -0.331, -0.535), NONE, DARK),
        picture(BOX, (0.5, 0.016, 0.105), (-0.017, -0.326, -0.17), NONE, FRONT),
        picture(BOX, (0.5, 0.016, 0.25), (-0.017, -0.326, -0.535), NONE, ENAMEL),
        picture(BOX, (0.5, 0.016, 0.095), (-0.017, -0.326, -0.89), NONE, FRONT),
        *(picture(CYLINDER, (0.135, 0.004), (x, y, 0.009), NONE, DARK) for x, y in BURNERS),
    )),
    *_cooking(),
    Part("hoodroot", "oven", (0.1, 0.188, 1.7), inertial=Inertial(2), shapes=(
        Shape(BOX, (0.502, 0.336, 0.12), (0, 0.073, -0.046), NONE, STEEL),
        picture(BOX, (0.41, 0.31, 0.003), (-0.0124, 0.1, -0.167), NONE, LAMP),
    )),
    Part("lightswitchbaseroot", "hoodroot", (-0.4, -0.2473, -0.05), shapes=(
        picture(CYLINDER, (0.0417, 0.008), (0, -0.02, 0), X, DARK),
    )),
    Part("lightswitchroot", "lightswitchbaseroot", inertial=SWITCH,
         joint=Hinge("lightswitch_joint", (0, 0, 1), (-0.7, 0), friction=1), shapes=(
        Shape(CAPSULE, (0.021, 0.03), (0.0263, -0.065, 0), (-1.57, -0.4, 0), GLOW),
    )),
    # A block that covers the lamp until it slides up into the hood.
    Part("lightblock_hinge", "hoodroot", (-0.0044, -0.3, -0.1361),
         inertial=SWITCH._replace(mass=0.01),
         joint=Hinge("light_joint", (0, 0, -1), (-0.05, 0), slide=True, friction=1), shapes=(
        picture(BOX, (0.42, 0.32, 0.015), (-0.008, 0.4, -0.03), NONE, DARK),
    )),
    Part("backwall", "desk", (0, 0, -0.605)),
    Part("wallroot", "backwall", (0.059, 0.584, 1.587), inertial=Inertial(0.4), shapes=(
        Shape(BOX, (1.26, 0.07, 0.6), (-0.11, 0.06, 0.6), NONE, TILES),
        Shape(BOX, (1.26, 0.08, 0.145), (-0.11, 0.06, 0.145), NONE, TILES),
    )),
    Part("wall2", "backwall", (-1.305, -0.546, 1.587), (0, 0, 1.57), Inertial(0.4), shapes=(
        Shape(BOX, (1.079, 0.07, 0.6), (0.044, 0.06, 0.6), NONE, TILES),
        Shape(BOX, (1.079, 0.08, 0.145), (0.044, 0.06, 0.145), NONE, TILES),
    )),
    Part("slidecabinet", "desk", (0.4, 0.3, 1.98)),
    Part("slide", "slidecabinet", inertial=Inertial(1.8), shapes=(
        Shape(BOX, (0.223, 0.3, 0.02), (-0.225, 0, -0.18)),
        Shape(BOX, (0.226, 0.3, 0.2), (0.224, 0, 0)),
        Shape(BOX, (0.223, 0.3, 0.02), (-0.225, 0, 0.18)),
        Shape(BOX, (0.022, 0.3, 0.16), (-0.426, 0, 0)),
        Shape(BOX, (0.2, 0.024, 0.16), (-0.2, 0.276, 0)),
    )),
    Part("slidelink", "slide", (-0.225, -0.32, 0), inertial=Inertial(
        0.34, (-0.0753529411764706, -0.055, 0),
        (0.010341632279990895, 0.006966580958740405, 0.004427248722053015),
        (0.4409789309072938, 0.4409842740989143, 0.5527513444500946, 0.5527534746176878)),
         joint=Hinge("slidedoor_joint", (1, 0, 0), (0, 0.44), slide=True, friction=2, armature=0.01), shapes=(
        Shape(BOX, (0.225, 0.03, 0.195), (0, -0.02, 0), NONE, TILES),
        *(Shape(CYLINDER, (0.019, 0.053, 0.019), (-0.183, -0.06, z), X, STEEL) for z in (-0.114, 0.114)),
        Shape(CYLINDER, (0.022, 0.159), (-0.183, -0.123, 0), NONE, STEEL),
    )),
    Part("hingecabinet", "desk", (-0.504, 0.28, 1.98)),
    Part("hingecab", "hingecabinet", inertial=Inertial(1.9), contact=SOFT, shapes=(
        Shape(BOX, (0.04, 0.3, 0.2), (0, 0, 0)),
        *(Shape(BOX, (0.02, 0.3, 0.2), (x, 0, 0)) for x in (0.38, -0.38)),
        *(Shape(BOX, (0.16, 0.3, 0.02), (x, 0, z)) for x, z in
          ((-0.2, 0.18), (-0.2, -0.18), (0.2, -0.18), (0.2, 0.18))),
        *(Shape(BOX, (0.16, 0.02, 0.16), (x, 0.28, 0)) for x in (-0.2, 0.2)),
    )),
    _upper_door("hingeleftdoor", "leftdoorhinge", -1, (-1.57, 0), Inertial(
        0.34, (0.23258823529411762, -0.053647058823529395, 0),
        (0.007969850331752983, 0.004725979690442748, 0.004608929977804281),
        (0.8044207788860164, 2.9520262640145013e-05, 1.7036928674349542e-05, 0.5940599374934429))),
    _upper_door("hingerightdoor", "rightdoorhinge", 1, (0, 1.57), Inertial(
        0.34, (-0.23317647058823524, -0.053647058823529416, 0),
        (0.007947826057495708, 0.004728651023437823, 0.004589577036713529),
        (0.5941786398030368, -1.383549488883928e-05, -2.5183808071758317e-05, 0.8043331046128647))),
    Part("microwave", "desk", (-0.75, -0.025, 0.99), (0, 0, 0.25)),
    Part("microroot", "microwave", inertial=Inertial(3), contact=SOFT, shapes=(
        Shape(BOX, (0.029, 0.199, 0.187), (-0.316, 0.023, 0.187), NONE, STEEL),
        Shape(BOX, (0.109, 0.199, 0.187), (0.236, 0.023, 0.187), NONE, STEEL),
        Shape(BOX, (0.207, 0.03, 0.187), (-0.081, 0.191, 0.187), NONE, STEEL),
        Shape(BOX, (0.207, 0.169, 0.019), (-0.08, -0.007, 0.355), NONE, STEEL),
        Shape(BOX, (0.207, 0.168, 0.024), (-0.08, -0.008, 0.024), NONE, STEEL),
        Shape(BOX, (0.085, 0.024, 0.187), (0.26, -0.197, 0.187), NONE, STEEL),
        picture(BOX, (0.0643, 0.003, 0.0185), (0.252, -0.221, 0.042), NONE, DARK),
        picture(BOX, (0.0643, 0.003, 0.03), (0.252, -0.221, 0.3), NONE, (0.2, 0.45, 0.4, 1)),
    )),
    Part("microdoorroot", "microroot", (-0.345, -0.176, 0.192), inertial=Inertial(
        0.26, (0.3088461538461539, -0.039846153846153844, 0),
        (0.009785521612860606, 0.006878081464676558, 0.003290210208091929),
        (0.5226089556794064, 0.5226118334730302, 0.4763159366575486, 0.47631909414139645)),
         joint=Hinge("microjoint", (0, 0, 1), (-2.094, 0), friction=2, armature=0.01), contact=SOFT, shapes=(
        Shape(CAPSULE, (0.02, 0.13), (0.475, -0.108, 0), NONE, DARK),
        *(Shape(CAPSULE, (0.02, 0.03), (0.475, -0.075, z), X, DARK) for z in (0.13, -0.13)),
        Shape(BOX, (0.259, 0.024, 0.185), (0.259, -0.026, 0), NONE, STEEL),
        picture(BOX, (0.174, 0.0245, 0.1225), (0.259, -0.028, 0), NONE, DARK),
    )),
    Part("kettle", "world", (-0.269, 0.35, 1)),
    Part("kettleroot", "kettle", inertial=Inertial(
        0.88, (-0.0028636363636363638, 0, 0.06838636363636363),
        (0.008718186187251648, 0.007033909262224502, 0.0062834956301286125),
        (0, 0.7085268486481306, 0, 0.705683856089078)), contact=KETTLE, shapes=(
        Shape(CAPSULE, (0.032, 0.1), (0, 0, 0.259), Y, DARK),
        *(Shape(CAPSULE, (0.023, 0.06), (x, 0, 0.18), NONE, STEEL) for x in (0.092, -0.092)),
        Shape(CYLINDER, (0.031, 0.05), (-0.126, 0, 0.07), (0, 2.25, 0), COPPER),
        Shape(BOX, (0.122, 0.122, 0.058), (0, 0, 0.058), NONE, HIDDEN),
        picture(CYLINDER, (0.122, 0.058), (0, 0, 0.058), NONE, COPPER),
        picture(CYLINDER, (0.1, 0.008), (0, 0, 0.122), NONE, COPPER),
        picture(SPHERE, (0.02,), (0, 0, 0.14), NONE, DARK),
    )),
)
# fmt: on

GEARS = (
    *((f"knob_Joint_{n}", f"burner_Joint_{n}", 174.0) for n in (1, 2, 3, 4)),
    ("lightswitch_joint", "light_joint", 14.0),
)
"""Pairs of joints coupled by a constraint: the first one's angle is so many times the other's."""


def add_kitchen(spec: mujoco.MjSpec) -> None:
    """Adds the kitchen to the scene, its counters in front of the origin (along y)."""
    bodies = {"world": spec.worldbody}
    for part in PARTS:
        body = bodies[part.parent].add_body(name=part.name, pos=part.pos, quat=quaternion(part.turn))
        bodies[part.name] = body
        if part.name == "kettle":
            body.add_freejoint(name="free_kettle")
        if part.inertial is not None:
            set_inertial(body, *part.inertial)
        if part.joint is not None:
            _add_joint(body, part.joint)
        for shape in part.shapes:
            _add_shape(body, shape, part.contact)
    for driven, driver, ratio in GEARS:
        gear = spec.add_equality(type=mujoco.mjtEq.mjEQ_JOINT, name1=driven, name2=driver)
        gear.objtype = mujoco.mjtObj.mjOBJ_JOINT
        gear.data[:5] = 0, ratio, 0, 0, 0


def _add_joint(body: mujoco.MjsBody, joint: Hinge) -> None:
    kinds = mujoco.mjtJoint
    body.add_joint(
        name=joint.name,
        type=kinds.mjJNT_SLIDE if joint.slide else kinds.mjJNT_HINGE,
        axis=joint.axis,
        limited=True,
        range=joint.limits,
        damping=2,
        armature=joint.armature,
        frictionloss=joint.friction,
        stiffness=joint.stiffness,
    )


def _add_shape(body: mujoco.MjsBody, shape: Shape, contact: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"quat": quaternion(shape.turn), "mass": 0, "rgba": shape.rgba}
    if shape.picture:
        add_picture(body, shape.kind, shape.size, shape.pos, **settings)
    else:
        group = HIDDEN_GROUP if shape.rgba is HIDDEN else 0
        add_solid(body, shape.kind, shape.size, shape.pos, group=group, **settings, **contact)
