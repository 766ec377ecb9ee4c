"""Two Shadow Hands for the H1, as HumanoidBench's `h1hand` has them: 42 more servos.

Figures are the benchmark's (Sferrazza et al., arXiv 2403.10506, MIT), whose hands are MuJoCo Menagerie's
`shadow_hand`, without its forearm. Everything that touches is a box, capsule, cylinder or sphere; the
five fingertip pads are convex hulls built from their measured outline. Tables are of the right hand;
the left is its mirror image in x, but for the few entries marked as such. Metres, kilograms, radians.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from ezm_pl.envs.robots import h1
from ezm_pl.envs.robots.h1 import Servo, Vector, add_servo, set_inertial

WRIST_YAW = (-0.15, 1.57)
CONTACT: dict[str, Any] = {"solref": [0.005, 1], "solimp": [0.5, 0.99, 0.0001, 0.5, 2]}
"""Stiffer contact than the body's."""

BOX = mujoco.mjtGeom.mjGEOM_BOX
CAPSULE = mujoco.mjtGeom.mjGEOM_CAPSULE
CYLINDER = mujoco.mjtGeom.mjGEOM_CYLINDER
SPHERE = mujoco.mjtGeom.mjGEOM_SPHERE
ACROSS = (0.5**0.5, 0.0, 0.5**0.5, 0.0)
TURNED = (0.5**0.5, 0.0, 0.0, 0.5**0.5)

# fmt: off
# A pad's hull: at each height, y from and to, and its half width at these shares of the way between.
PAD_SHARES = (0, 0.05, 0.2, 0.45, 0.7, 0.9, 1)
FINGER_PAD = (
    (0.0047, 0.0070, 0.0070, 0.0033, 0.0033, 0.0033, 0.0033, 0.0033, 0.0033, 0.0033),
    (0.0055, 0.0021, 0.0070, 0.0032, 0.0041, 0.0050, 0.0061, 0.0066, 0.0054, 0.0033),
    (0.0066, -0.0045, 0.0070, 0.0031, 0.0052, 0.0071, 0.0084, 0.0083, 0.0066, 0.0032),
    (0.0074, -0.0073, 0.0070, 0.0027, 0.0057, 0.0079, 0.0086, 0.0085, 0.0069, 0.0032),
    (0.0102, -0.0073, 0.0070, 0.0000, 0.0057, 0.0078, 0.0085, 0.0084, 0.0067, 0.0030),
    (0.0170, -0.0069, 0.0070, 0.0000, 0.0052, 0.0073, 0.0080, 0.0078, 0.0061, 0.0025),
    (0.0238, -0.0057, 0.0066, 0.0000, 0.0044, 0.0064, 0.0073, 0.0071, 0.0056, 0.0014),
    (0.0279, -0.0045, 0.0063, 0.0010, 0.0037, 0.0057, 0.0067, 0.0065, 0.0051, 0.0007),
    (0.0307, -0.0027, 0.0061, 0.0000, 0.0030, 0.0045, 0.0050, 0.0044, 0.0036, 0.0002),
    (0.0317, -0.0008, 0.0055, 0.0000, 0.0023, 0.0030, 0.0029, 0.0019, 0.0010, 0.0000),
    (0.0320, 0.0010, 0.0010, 0.0000, 0.0000, 0.0000, 0.0000, 0.0000, 0.0000, 0.0000),
)
THUMB_PAD = (
    (0.0033, 0.0090, 0.0090, 0.0034, 0.0034, 0.0034, 0.0034, 0.0034, 0.0034, 0.0034),
    (0.0043, 0.0066, 0.0090, 0.0039, 0.0042, 0.0050, 0.0062, 0.0057, 0.0051, 0.0033),
    (0.0056, 0.0033, 0.0090, 0.0046, 0.0053, 0.0072, 0.0094, 0.0080, 0.0062, 0.0033),
    (0.0065, 0.0008, 0.0090, 0.0052, 0.0061, 0.0088, 0.0100, 0.0088, 0.0066, 0.0032),
    (0.0097, -0.0072, 0.0090, 0.0036, 0.0080, 0.0097, 0.0105, 0.0102, 0.0078, 0.0031),
    (0.0176, -0.0083, 0.0090, 0.0000, 0.0062, 0.0090, 0.0102, 0.0099, 0.0074, 0.0027),
    (0.0255, -0.0065, 0.0084, 0.0000, 0.0054, 0.0081, 0.0095, 0.0093, 0.0071, 0.0016),
    (0.0302, -0.0049, 0.0080, 0.0000, 0.0045, 0.0070, 0.0084, 0.0081, 0.0063, 0.0008),
    (0.0334, -0.0025, 0.0076, 0.0000, 0.0025, 0.0045, 0.0053, 0.0055, 0.0055, 0.0002),
    (0.0347, 0.0002, 0.0075, 0.0000, 0.0012, 0.0020, 0.0024, 0.0028, 0.0030, 0.0000),
    (0.0350, 0.0072, 0.0073, 0.0000, 0.0000, 0.0000, 0.0000, 0.0000, 0.0000, 0.0000),
)

# Boxes of the palm: size, position, orientation.
PALM_BOXES: tuple[tuple[Vector, Vector, Vector], ...] = (
    ((0.031, 0.0035, 0.049), (0.011, 0.0085, 0.038), h1.UNIT_QUATERNION),
    ((0.018, 0.0085, 0.049), (-0.002, -0.0035, 0.038), h1.UNIT_QUATERNION),
    ((0.013, 0.0085, 0.005), (0.029, -0.0035, 0.082), h1.UNIT_QUATERNION),
    ((0.013, 0.007, 0.009), (0.0265, -0.001, 0.07), (0.987241, 0.0990545, 0.0124467, 0.124052)),
    ((0.0105, 0.0135, 0.012), (0.0315, -0.0085, 0.001), h1.UNIT_QUATERNION),
    ((0.011, 0.0025, 0.015), (0.0125, -0.015, 0.004), (0.971338, 0, 0, -0.237703)),
    ((0.009, 0.012, 0.002), (0.011, 0, 0.089), h1.UNIT_QUATERNION),
    ((0.01, 0.012, 0.02), (-0.03, 0, 0.009), h1.UNIT_QUATERNION),
)
# Where the left palm is not the right one's mirror image.
LEFT_PALM_BOXES: dict[int, tuple[Vector, Vector, Vector]] = {
    3: ((0.013, 0.007, 0.009), (-0.0265, -0.001, 0.07), (0.987241, 0.0990545, 0.0124467, -0.124052)),
    4: ((0.0105, 0.0135, 0.0112), (-0.0315, -0.0085, 0.001), h1.UNIT_QUATERNION),
}

# Finger -> knuckle position, the y axis (+-1) it spreads about. The little finger is on a metacarpal.
FINGERS: dict[str, tuple[Vector, float]] = {
    "ff": ((0.033, 0, 0.095), -1.0),
    "mf": ((0.011, 0, 0.099), -1.0),
    "rf": ((-0.011, 0, 0.095), 1.0),
    "lf": ((0, 0, 0.06579), 1.0),
}

# Servo (or tendon, those ending in 0) -> gains, limits of its target, in the order of the actuators.
SERVOS: dict[str, tuple[Servo, tuple[float, float]]] = {
    "WRJ2": (Servo(10, 0, 10), (-0.523599, 0.174533)),
    "WRJ1": (Servo(8, 0, 5), (-0.698132, 0.488692)),
    "THJ5": (Servo(0.4, 0, 3), (-1.0472, 1.0472)),
    "THJ4": (Servo(1, 0, 2), (0, 1.22173)),
    "THJ3": (Servo(0.5, 0, 1), (-0.20944, 0.20944)),
    "THJ2": (Servo(1.5, 0, 1), (-0.698132, 0.698132)),
    "THJ1": (Servo(1, 0, 1), (-0.261799, 1.5708)),
    **{
        name: value
        for finger in ("FF", "MF", "RF", "LF")
        for name, value in (
            *([("LFJ5", (Servo(1, 0, 1), (0, 0.785398)))] if finger == "LF" else []),
            (f"{finger}J4", (Servo(1, 0, 1), (-0.349066, 0.349066))),
            (f"{finger}J3", (Servo(1, 0, 1), (-0.261799, 1.5708))),
            (f"{finger}J0", (Servo(0.5, 0, 1), (0, 3.1415))),
        )
    },
}
# fmt: on
STRONG = Servo(50, 0, 50)
"""Gain and limit of every servo of `h1strong`'s hands but the outer wrist's (WRJ2)."""
CURL = (0.0, 1.5708)
"""Range of a finger's two outer joints, which one tendon pulls together."""


def pad_vertices(table: tuple[tuple[float, ...], ...]) -> NDArray[np.float64]:
    """Vertices [V, 3] whose convex hull is a fingertip's pad, in the fingertip's frame."""
    points = []
    for z, start, end, *widths in table:
        for share, width in zip(PAD_SHARES, widths, strict=True):
            y = start + share * (end - start)
            points += [(width, y, z), (-width, y, z)]
    return np.unique(np.array(points), axis=0)


class HandBuilder:
    """Builds one hand below a body of `spec`.

    Args:
        spec: the model under construction.
        side: `left` or `right`.
    """

    def __init__(self, spec: mujoco.MjSpec, side: str) -> None:
        self.spec = spec
        self.left = side == "left"
        self.prefix = "lh_" if self.left else "rh_"

    def at(self, pos: Vector) -> Vector:
        """A position of the right hand, on this hand."""
        return (-pos[0], pos[1], pos[2]) if self.left else pos

    def turned(self, quat: Vector) -> Vector:
        """An orientation of the right hand, on this hand."""
        return (quat[0], quat[1], -quat[2], -quat[3]) if self.left else quat

    def body(
        self,
        parent: mujoco.MjsBody,
        name: str,
        mass: float,
        inertia: Vector,
        com: float = 0.0,
        pos: Vector = (0, 0, 0),
        quat: Vector = h1.UNIT_QUATERNION,
        inertia_quat: Vector = h1.UNIT_QUATERNION,
    ) -> mujoco.MjsBody:
        """A body whose centre of mass lies `com` up its z axis."""
        body = parent.add_body(name=self.prefix + name, pos=self.at(pos), quat=quat)
        set_inertial(body, mass, (0, 0, com), inertia, inertia_quat)
        return body

    def joint(
        self,
        body: mujoco.MjsBody,
        name: str,
        axis: Vector,
        limits: tuple[float, float] | None = None,
        damping: float = 0.05,
        mirrored: bool = True,
    ) -> None:
        """A hinge; its range is its servo's unless given, and a mirrored axis turns the other way."""
        if mirrored and self.left:
            axis = (axis[0], -axis[1], -axis[2])
        body.add_joint(
            name=self.prefix + name,
            axis=axis,
            limited=True,
            range=limits or SERVOS[name][1],
            damping=damping,
            armature=0.0002,
            frictionloss=0.01,
        )

    def shape(
        self,
        body: mujoco.MjsBody,
        kind: mujoco.mjtGeom,
        size: Vector,
        pos: Vector = (0, 0, 0),
        quat: Vector = h1.UNIT_QUATERNION,
    ) -> None:
        """A geom, placed as given."""
        body.add_geom(
            type=kind, size=[*size, 0, 0][:3], pos=pos, quat=quat, group=2, rgba=h1.BLACK, **CONTACT
        )

    def pad(self, body: mujoco.MjsBody, mesh: str) -> None:
        """The pad of a fingertip: the same shape on both hands."""
        body.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname=mesh, group=2, rgba=h1.BLACK, **CONTACT)

    def finger(self, parent: mujoco.MjsBody, name: str) -> None:
        """A finger: knuckle, proximal, middle and distal phalanx."""
        pos, spread = FINGERS[name]
        joint = name.upper()
        knuckle = self.body(
            parent,
            f"{name}knuckle",
            0.008,
            (3.2e-07, 2.6e-07, 2.6e-07),
            pos=pos,
            inertia_quat=(0.5, 0.5, -0.5, 0.5),
        )
        self.joint(knuckle, f"{joint}J4", (0, spread, 0))
        self.shape(knuckle, CYLINDER, (0.009, 0.009), quat=ACROSS)
        proximal = self.body(
            knuckle, f"{name}proximal", 0.03, (1e-05, 9.8e-06, 1.8e-06), 0.0225, inertia_quat=TURNED
        )
        self.joint(proximal, f"{joint}J3", (1, 0, 0))
        self.shape(proximal, CAPSULE, (0.009, 0.02), (0, 0, 0.025))
        middle = self.body(
            proximal,
            f"{name}middle",
            0.017,
            (2.7e-06, 2.6e-06, 8.7e-07),
            0.0125,
            pos=(0, 0, 0.045),
            inertia_quat=TURNED,
        )
        self.joint(middle, f"{joint}J2", (1, 0, 0), CURL)
        self.shape(middle, CAPSULE, (0.009, 0.0125), (0, 0, 0.0125))
        distal = self.body(
            middle,
            f"{name}distal",
            0.013,
            (1.28092e-06, 1.12092e-06, 5.3e-07),
            0.0130769,
            pos=(0, 0, 0.025),
            inertia_quat=TURNED,
        )
        self.joint(distal, f"{joint}J1", (1, 0, 0), CURL)
        self.pad(distal, "finger_pad")

    def thumb(self, palm: mujoco.MjsBody) -> None:
        """The thumb. The left one's base is turned about, and its bends about x with it."""
        bend = (-1.0 if self.left else 1.0, 0.0, 0.0)
        quat = (0, -0.382683, 0, 0.92388) if self.left else (0.92388, 0, 0.382683, 0)
        base = self.body(
            palm, "thbase", 0.01, (1.6e-07, 1.6e-07, 1.6e-07), pos=(0.034, -0.00858, 0.029), quat=quat
        )
        self.joint(base, "THJ5", (0, 0, -1))
        self.shape(base, SPHERE, (0.013,))
        proximal = self.body(base, "thproximal", 0.04, (1.36e-05, 1.36e-05, 3.13e-06), 0.019)
        self.joint(proximal, "THJ4", bend, mirrored=False)
        self.shape(proximal, CAPSULE, (0.0105, 0.009), (0, 0, 0.02))
        hub = self.body(proximal, "thhub", 0.005, (1e-06, 1e-06, 3e-07), pos=(0, 0, 0.038))
        self.joint(hub, "THJ3", bend, mirrored=False)
        self.shape(hub, SPHERE, (0.011,))
        middle = self.body(hub, "thmiddle", 0.02, (5.1e-06, 5.1e-06, 1.21e-06), 0.016)
        self.joint(middle, "THJ2", (0, -1, 0), mirrored=False)
        self.shape(middle, CAPSULE, (0.009, 0.009), (0, 0, 0.012))
        self.shape(middle, SPHERE, (0.01,), (0, 0, 0.03))
        distal = self.body(
            middle,
            "thdistal",
            0.017,
            (2.37794e-06, 2.27794e-06, 1e-06),
            0.0145588,
            pos=(0, 0, 0.032),
            quat=(0.5**0.5, 0, 0, -(0.5**0.5)),
            inertia_quat=TURNED,
        )
        self.joint(distal, "THJ1", (1, 0, 0), mirrored=False)
        self.pad(distal, "thumb_pad")

    def build(self, parent: mujoco.MjsBody) -> None:
        """The hand from the wrist on."""
        # The wrist itself is in the same place on both sides: the bodies it hangs from mirror it.
        wrist = parent.add_body(name=f"{self.prefix}wrist", pos=[0.01, 0, 0.15301], quat=TURNED)
        set_inertial(wrist, 0.1, (0, 0, 0.029), (6.4e-05, 4.38e-05, 3.5e-05), (0.5, 0.5, 0.5, 0.5))
        self.joint(wrist, "WRJ2", (0, 1, 0), damping=0.5)
        pos: Vector
        quat: Vector
        for x in (-0.026, 0.031):
            self.shape(wrist, CYLINDER, (0.011, 0.005), self.at((x, 0, 0.034)), ACROSS)
        for pos, quat in (
            ((-0.021, 0, 0.011), (-0.923879, 0, -0.382684, 0)),
            ((0.026, 0, 0.01), (-0.923879, 0, 0.382684, 0)),
        ):
            self.shape(wrist, BOX, (0.0135, 0.009, 0.005), self.at(pos), self.turned(quat))
        palm = self.body(
            wrist,
            "palm",
            0.3,
            (0.0005287, 0.0003581, 0.000191),
            0.035,
            pos=(0, 0, 0.034),
            inertia_quat=TURNED,
        )
        self.joint(palm, "WRJ1", (1, 0, 0), damping=0.5)
        for i, (size, pos, quat) in enumerate(PALM_BOXES):
            if self.left and i in LEFT_PALM_BOXES:
                self.shape(palm, BOX, *LEFT_PALM_BOXES[i])
            else:
                self.shape(palm, BOX, size, self.at(pos), self.turned(quat))
        for finger in ("ff", "mf", "rf"):
            self.finger(palm, finger)
        metacarpal = self.body(
            palm,
            "lfmetacarpal",
            0.03,
            (1.638e-05, 1.45e-05, 4.272e-06),
            0.04,
            pos=(-0.033, 0, 0.02071),
            inertia_quat=TURNED,
        )
        self.joint(metacarpal, "LFJ5", (0.573576, 0, 0.819152))
        self.shape(metacarpal, BOX, (0.011, 0.012, 0.025), self.at((0.002, 0, 0.033)))
        self.finger(metacarpal, "lf")
        self.thumb(palm)

    def actuate(self, strong: bool) -> None:
        """Tendons and servos, all but one of them `STRONG` if wanted."""
        for finger in ("FF", "MF", "RF", "LF"):
            tendon = self.spec.add_tendon(name=f"{self.prefix}{finger}J0")
            for joint in ("J2", "J1"):
                tendon.wrap_joint(f"{self.prefix}{finger}{joint}", 1.0)
        for name, (servo, limits) in SERVOS.items():
            kind = mujoco.mjtTrn.mjTRN_TENDON if name.endswith("0") else mujoco.mjtTrn.mjTRN_JOINT
            servo = STRONG if strong and name != "WRJ2" else servo
            add_servo(self.spec, f"{self.prefix}A_{name}", self.prefix + name, servo, limits, kind)

    def exclude(self, elbow: str) -> None:
        """Pairs of bodies that overlap by design."""
        for one, other in (
            (f"{self.prefix}wrist", elbow),
            (f"{self.prefix}thproximal", f"{self.prefix}thmiddle"),
        ):
            self.spec.add_exclude(bodyname1=one, bodyname2=other)


def add_h1hand(spec: mujoco.MjSpec, strong: bool = False) -> None:
    """The H1 with two Shadow Hands: links, hands, 61 servos, sensors."""
    h1.add_body(spec)
    spec.add_mesh(name="finger_pad", uservert=pad_vertices(FINGER_PAD).ravel())
    spec.add_mesh(name="thumb_pad", uservert=pad_vertices(THUMB_PAD).ravel())
    hands = {side: HandBuilder(spec, side) for side in ("left", "right")}
    for side, hand in hands.items():
        elbow = f"{side}_elbow_link"
        carrier = spec.body(elbow).add_body(name=f"{side}_hand", pos=[0.169, 0, -0.02912], quat=(0, 1, 0, 1))
        set_inertial(carrier, 0.001, (0, 0, 0.001), (1e-05, 1e-05, 1e-05))
        carrier.add_joint(
            name=f"{side}_wrist_yaw",
            axis=(0, 0, 1.0 if side == "left" else -1.0),
            limited=True,
            range=WRIST_YAW,
            damping=h1.JOINT_DAMPING,
            armature=h1.JOINT_ARMATURE,
        )
        hand.build(carrier)
        hand.exclude(elbow)
    for link in h1.LINKS:
        add_servo(spec, link.joint, link.joint, link.servo, link.limits)
        if link.name.endswith("elbow_link"):
            name = link.name.replace("elbow_link", "wrist_yaw")
            add_servo(spec, name, name, h1.ARM, WRIST_YAW)
    for hand in hands.values():
        hand.actuate(strong)
    h1.add_velocity_sensor(spec, "pelvis")


def add_h1strong(spec: mujoco.MjSpec) -> None:
    """As `add_h1hand`, with hands strong enough to hold the robot."""
    add_h1hand(spec, strong=True)
