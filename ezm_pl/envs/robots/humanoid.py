"""The simulation behind the built-in HumanoidBench tasks, and the environment around it.

A task is a class (`Task`) that says what it adds to the scene, how it resets, what it pays (named
terms) and when the benchmark ends the episode. `HumanoidEnv` does the rest. To add one, subclass
`Task` and `ezm_pl.envs.register` it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack
from weakref import WeakValueDictionary

import mujoco
import numpy as np
from numpy.typing import NDArray

from ezm_pl.envs import rendering
from ezm_pl.envs.core import (
    ControlEnv,
    ControlStep,
    FloatArray,
    Observation,
    Settings,
    physics_state,
    restore_physics,
)
from ezm_pl.envs.robots import h1
from ezm_pl.envs.robots.simulation import ROBOTS, Simulation

TIMESTEP = 0.002
SUBSTEPS = 10
"""A control step is 10 physics steps of 2 ms."""

Terms = dict[str, float]


class Task:
    """What a HumanoidBench task is, beyond the robot. One instance per simulation.

    Attributes:
        quirks: whether the benchmark's obvious bugs are kept, named in docs/tasks.md.
        reset_noise: half width of the uniform noise on every entry of the initial qpos.

    Class attributes:
        name: for a task of HumanoidBench, its name there, without the robot's.
        own_state: names of the attributes that change from step to step or episode to episode. They are
            saved and restored with the environment.
        episode_steps: control steps of a full episode.
        start: where the pelvis starts, before noise, m.
        start_quaternion: how the pelvis is turned there.
        pose: joint angles that episodes start from, before noise, rad; all others are 0.
        extra_qpos: initial qpos of what the task adds, after the robot's.
        several_contacts: whether a pair of convex shapes may touch in several points at once. The
            benchmark has that off but for the bookshelf, MuJoCo from 3.17 on has it on by default.
        native_ccd: whether MuJoCo's own collision detection between convex shapes is used, not libccd as
            in the benchmark: faster by a tenth, but it pushes deeply overlapping shapes apart otherwise.
        camera: which camera renders it.
    """

    quirks: bool = True
    reset_noise: float = 0.01
    name: ClassVar[str]
    own_state: ClassVar[tuple[str, ...]] = ()
    episode_steps: ClassVar[int] = 1000
    start: ClassVar[Sequence[float]] = (0.0, 0.0, h1.STANDING_HEIGHT)
    start_quaternion: ClassVar[Sequence[float]] = h1.UNIT_QUATERNION
    pose: ClassVar[Mapping[str, float]] = h1.STANDING_POSE
    extra_qpos: ClassVar[Sequence[float]] = ()
    several_contacts: ClassVar[bool] = False
    native_ccd: ClassVar[bool] = True
    camera: ClassVar[str] = "cam_default"

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.robot = sim.robot

    @classmethod
    def build(cls, spec: mujoco.MjSpec) -> None:
        """Adds the task's own things to the scene; nothing, unless overridden."""

    def forget(self) -> None:
        """Drops what outlives an episode: before the first reset and before every one with a seed."""

    def reset(self, rng: np.random.Generator) -> None:
        """Starts an episode from the noisy initial state that the simulation is in already.

        May change `sim.data.qpos`; kinematics are brought up to date afterwards.
        """

    def restore(self, internal: Mapping[str, Sequence[float]]) -> None:
        """Takes over task-side state as recorded (`internal` of `parity/*.npz`), or as of `internal()`."""

    def internal(self) -> dict[str, list[float]]:
        """The task-side state of staged events, as `restore` takes it; empty where there are none."""
        return {}

    def base_observation(self) -> Sequence[FloatArray]:
        """Live views that the observation begins with: all of `qpos` and `qvel`, unless overridden."""
        return self.sim.data.qpos, self.sim.data.qvel

    def observation(self) -> Sequence[FloatArray]:
        """The parts after `base_observation`; asked for before the reward, as in the benchmark."""
        return ()

    def markers(self) -> Sequence[FloatArray]:
        """Points [3] to mark in a frame: targets that are nowhere else to be seen."""
        return ()

    def reward(self) -> tuple[float, Terms]:
        """The reward of the control step just made, and its named terms."""
        raise NotImplementedError

    def fallen(self) -> bool:
        """The benchmark's termination condition, but for `solved`."""
        return False

    def solved(self) -> bool:
        """Whether the task is done, which ends the episode in every protocol."""
        return False


_models: WeakValueDictionary[tuple[str, type[Task]], mujoco.MjModel] = WeakValueDictionary()
_models_lock = threading.Lock()


def build_spec(robot: str, task: type[Task]) -> mujoco.MjSpec:
    """Floor, robot and the task's scene, not yet compiled."""
    spec = mujoco.MjSpec()
    spec.modelname = f"{robot} {task.__name__}"
    spec.option.timestep = TIMESTEP
    spec.visual.global_.offwidth, spec.visual.global_.offheight = 640, 480
    # Multisampling and shadows take most of the time of a frame where there is no GPU.
    spec.visual.quality.offsamples = spec.visual.quality.shadowsize = 0
    h1.add_floor(spec)
    if task.several_contacts:
        spec.option.enableflags |= getattr(mujoco.mjtEnableBit, "mjENBL_MULTICCD", 0)
    else:
        spec.option.disableflags |= getattr(mujoco.mjtDisableBit, "mjDSBL_MULTICCD", 0)
    if not task.native_ccd:
        spec.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_NATIVECCD
    ROBOTS[robot].build(spec)
    task.build(spec)
    return spec


def compiled_model(robot: str, task: type[Task]) -> mujoco.MjModel:
    """The compiled model of a robot in a task's scene, which no task changes: its environments share one.

    It takes 50 MB, most of them the robot's meshes, as long as there is such an environment.
    """
    with _models_lock:
        model = _models.get((robot, task))
        if model is None:
            model = _models[robot, task] = build_spec(robot, task).compile()
        return model


def standing_qpos(model: mujoco.MjModel, task: type[Task], robot_nq: int) -> FloatArray:
    """The initial qpos [nq] before noise: the robot in the task's pose, its things in their places."""
    qpos = np.zeros(model.nq)
    qpos[:3] = task.start
    qpos[3:7] = task.start_quaternion
    for joint, angle in task.pose.items():
        qpos[model.joint(joint).qposadr[0]] = angle
    if len(task.extra_qpos) != model.nq - robot_nq:
        wanted = model.nq - robot_nq
        raise ValueError(f"{task.__name__}: extra_qpos has {len(task.extra_qpos)} numbers, not {wanted}")
    qpos[robot_nq:] = task.extra_qpos
    return qpos


class HumanoidEnv(ControlEnv):
    """A humanoid in a task. Settings are `ControlEnv`'s; see `ezm_pl.envs.make`.

    Args:
        robot: a name of `ROBOTS`.
        task: the task's class.
        quirks: whether the benchmark's obvious bugs are kept (its published numbers were made with them).
    """

    def __init__(
        self, robot: str, task: type[Task], *, quirks: bool = True, **settings: Unpack[Settings]
    ) -> None:
        model = compiled_model(robot, task)
        self.sim = Simulation(model, ROBOTS[robot].nq)
        self.task = task(self.sim)
        self.task.quirks = quirks
        self.initial_qpos = standing_qpos(model, task, self.sim.robot_nq)
        low, high = model.actuator_ctrlrange.T
        self._ctrl_middle, self._ctrl_half = 0.5 * (high + low), 0.5 * (high - low)
        # Views of the state, made once: an attribute of MjData costs a new array each time.
        self._qpos, self._qvel, self._ctrl = self.sim.data.qpos, self.sim.data.qvel, self.sim.data.ctrl
        self._frames = rendering.Frames(model)
        mujoco.mj_forward(model, self.sim.data)
        self._base = tuple(self.task.base_observation())
        self._extra = self.task.observation()
        super().__init__(
            observation_size=sum(part.size for part in (*self._base, *self._extra)),
            action_size=model.nu,
            full_episode_steps=task.episode_steps,
            frames_per_second=1.0 / (TIMESTEP * SUBSTEPS),
            **settings,
        )

    @property
    def model(self) -> mujoco.MjModel:
        """The compiled model. It is shared: do not change it."""
        return self.sim.model

    @property
    def data(self) -> mujoco.MjData:
        """The simulation's state."""
        return self.sim.data

    def _start_episode(self, reseeded: bool) -> None:
        model, data = self.sim.model, self.sim.data
        mujoco.mj_resetData(model, data)
        if reseeded:
            self.task.forget()
        noise = self.task.reset_noise
        data.qpos[:] = self.initial_qpos + self.np_random.uniform(-noise, noise, model.nq)
        self._forward_kinematics()
        self.task.reset(self.np_random)
        self._forward_kinematics()
        self._extra = self.task.observation()

    def _forward_kinematics(self) -> None:
        """Brings everything up to date with qpos, whose quaternions may be off unit length."""
        # The benchmark's MuJoCo normalised them in place as a side effect; today's does not.
        mujoco.mj_normalizeQuat(self.sim.model, self.sim.data.qpos)
        mujoco.mj_forward(self.sim.model, self.sim.data)

    def _saved(self) -> dict[str, Any]:
        return {
            "physics": physics_state(self.sim.model, self.sim.data),
            "task": {name: getattr(self.task, name) for name in self.task.own_state},
            "extra": [np.array(part) for part in self._extra],
        }

    def _load(self, saved: dict[str, Any]) -> None:
        restore_physics(self.sim.model, self.sim.data, saved["physics"])
        for name, value in saved["task"].items():
            setattr(self.task, name, value)
        self._extra = saved["extra"]

    def restore_recorded(
        self,
        qpos: NDArray[Any],
        qvel: NDArray[Any],
        warmstart: NDArray[Any] | None = None,
        internal: Mapping[str, Any] | None = None,
    ) -> Observation:
        """Puts the simulation into a recorded state, ready for `step`; `restore` takes what `state()` gave.

        Args:
            qpos: [nq].
            qvel: [nv].
            warmstart: [nv], the constraint solver's starting point (`qacc_warmstart`).
            internal: task-side state, each a flat list; see docs/parity.md, "Recordings".

        Returns:
            The observation of that state [O] float32.

        Raises:
            ValueError: arrays of the wrong size.
        """
        model, data = self.sim.model, self.sim.data
        for name, given, size in (("qpos", qpos, model.nq), ("qvel", qvel, model.nv)):
            if np.shape(given) != (size,):
                raise ValueError(f"{name} has shape {np.shape(given)}, this task's is {(size,)}")
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.qvel[:] = qpos, qvel
        mujoco.mj_forward(model, data)
        if warmstart is not None:
            if np.shape(warmstart) != (model.nv,):
                raise ValueError(f"warmstart has shape {np.shape(warmstart)}, this task's is {(model.nv,)}")
            data.qacc_warmstart[:] = warmstart
        self._episode_steps = self._next_episode_steps
        self._elapsed = 0
        self._return = 0.0
        self._started = True
        self.task.restore(internal or {})
        self._extra = self.task.observation()
        return self._observation()

    def _control_step(self, action: FloatArray) -> ControlStep:
        model, data = self.sim.model, self.sim.data
        qpos, qvel, start = self._qpos.copy(), self._qvel.copy(), data.time
        self._ctrl[:] = self._ctrl_middle + self._ctrl_half * action
        mujoco.mj_step(model, data, SUBSTEPS)
        # On a bad state MuJoCo resets itself, clock and all. (A sum of squares is finite only if all are.)
        kept_time = data.time > start + (SUBSTEPS - 0.5) * TIMESTEP
        if kept_time and math.isfinite(self._qpos.dot(self._qpos) + self._qvel.dot(self._qvel)):
            self._extra = self.task.observation()
            reward, terms = self.task.reward()
            if math.isfinite(reward):
                terms["per_timestep_reward"] = reward
                return ControlStep(reward, terms, fell=self.task.fallen(), terminal=self.task.solved())
        mujoco.mj_resetData(model, data)
        self._qpos[:], self._qvel[:] = qpos, qvel
        mujoco.mj_forward(model, data)
        return ControlStep(0.0, {"per_timestep_reward": 0.0}, diverged=True)

    def _observation(self) -> Observation:
        return np.concatenate((*self._base, *self._extra), dtype=np.float32)

    def _frame(self) -> NDArray[np.uint8]:
        return self._frames.draw(self.sim.data, self.task.camera, self.task.markers())

    def close(self) -> None:
        self._frames.close()
