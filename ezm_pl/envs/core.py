"""What every single-task environment here shares: actions, episode length, protocols, seeds, divergence.

`ControlEnv` is a `gymnasium.Env` over control steps. A subclass simulates one control step
(`_control_step`) and starts an episode (`_start_episode`); everything else is here, once.
"""

from __future__ import annotations

import abc
import copy
import logging
import math
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

import gymnasium
import mujoco
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from ezm_pl.spec.fields import EpisodeProtocol

PROTOCOLS: tuple[EpisodeProtocol, ...] = ("humanoidbench", "ezm")

FloatArray = NDArray[np.float64]
Observation = NDArray[np.float32]

log = logging.getLogger(__name__)


def _on_warning(message: str) -> None:
    """Takes MuJoCo's warnings: otherwise it prints them, and writes MUJOCO_LOG.TXT where the process is."""
    # That a simulation is unstable ends its episode, which `diverged` says; models of other packages
    # use deprecated attributes.
    known = "unstable" in message or "deprecated" in message
    log.log(logging.DEBUG if known else logging.WARNING, "MuJoCo: %s", message)


if mujoco.get_mju_user_warning() is None:  # a user's own, or dm_control's, stays
    mujoco.set_mju_user_warning(_on_warning)

INTEGRATION = mujoco.mjtState.mjSTATE_INTEGRATION
"""What MuJoCo's next steps depend on: time, qpos, qvel, ctrl, applied forces, mocap poses, warm start, ..."""

PLAIN = (np.ndarray, np.generic, list, tuple, dict, set, int, float, str, type(None))
"""Types of attributes that are state to be saved as they are; others are machinery."""


def physics_state(model: mujoco.MjModel, data: mujoco.MjData) -> FloatArray:
    """MuJoCo's full integration state, a vector [S] float64."""
    state = np.empty(mujoco.mj_stateSize(model, INTEGRATION))
    mujoco.mj_getState(model, data, state, INTEGRATION)
    return state


def restore_physics(model: mujoco.MjModel, data: mujoco.MjData, state: FloatArray) -> None:
    """Puts a simulation into a state [S] of `physics_state`, with everything derived from it up to date.

    Raises:
        ValueError: the state is of another model.
    """
    size = mujoco.mj_stateSize(model, INTEGRATION)
    if state.shape != (size,):
        raise ValueError(f"the state has {state.size} numbers, this task's has {size}: it is another task's")
    mujoco.mj_resetData(model, data)
    mujoco.mj_setState(model, data, state, INTEGRATION)
    mujoco.mj_forward(model, data)
    # The solver of `mj_forward` has moved the warm start.
    mujoco.mj_setState(model, data, state, INTEGRATION)


@dataclass(frozen=True)
class EnvState:
    """A saved environment: whatever the rest of its episode, and the episodes after it, depend on.

    It holds copies only, can be pickled, and may be restored as often as wanted, into any environment that
    was made with the same settings.

    Attributes:
        generator: the state of `np_random`.
        elapsed: control steps taken in the episode.
        episode_return: the sum of the episode's rewards so far.
        episode_steps, next_episode_steps: the time limits of this episode and of the next one.
        simulation: what the kind of environment saves.
    """

    generator: dict[str, Any]
    elapsed: int
    episode_return: float
    episode_steps: int
    next_episode_steps: int
    simulation: dict[str, Any]


class ControlStep(NamedTuple):
    """What one control step gave.

    Attributes:
        reward: the reward, finite.
        terms: the reward's named terms.
        fell: the benchmark's own termination condition (for HumanoidBench tasks) held.
        terminal: the task itself ends here, in every protocol (dm_control's discount of 0).
        truncated: the simulation cuts the episode short of a time limit of its own.
        diverged: the physics left the finite numbers; the state is that of before the step.
    """

    reward: float
    terms: dict[str, float]
    fell: bool = False
    terminal: bool = False
    truncated: bool = False
    diverged: bool = False


class Settings(TypedDict, total=False):
    """What every environment takes as keyword arguments; see `ezm_pl.envs.make`."""

    protocol: EpisodeProtocol
    seed: int | None
    render_mode: str | None
    action_repeat: int
    episode_steps: int | None


def positive_int(name: str, value: Any) -> int:
    """`value` if it is a whole number of at least 1.

    Raises:
        ValueError: it is not, in one line that names it.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
    return int(value)


class ControlEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """A gymnasium environment over control steps with float32 observations and actions in [-1, 1].

    Args:
        observation_size: length of the observation.
        action_size: number of actuators.
        full_episode_steps: control steps of an episode, unless `episode_steps` says otherwise.
        frames_per_second: control steps per second.
        protocol: `humanoidbench` (falls end the episode) or `ezm` (they never do).
        seed: seed of the first `reset` that is given none.
        render_mode: `rgb_array` or None.
        action_repeat: control steps an action is held for; rewards are summed.
        episode_steps: control steps after which the episode is truncated.

    Attributes:
        success_return: the return that counts as success, if the task has one.

    Raises:
        ValueError: a setting out of range.
    """

    def __init__(
        self,
        *,
        observation_size: int,
        action_size: int,
        full_episode_steps: int,
        frames_per_second: float,
        protocol: EpisodeProtocol = "humanoidbench",
        seed: int | None = None,
        render_mode: str | None = None,
        action_repeat: int = 1,
        episode_steps: int | None = None,
    ) -> None:
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, not {protocol!r}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be 'rgb_array' or None, not {render_mode!r}")
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": round(frames_per_second)}
        self.observation_space = Box(-math.inf, math.inf, (observation_size,), np.float32)
        self.action_space = Box(-1.0, 1.0, (action_size,), np.float32)
        self.render_mode = render_mode
        self.protocol: EpisodeProtocol = protocol
        self.action_repeat = positive_int("action_repeat", action_repeat)
        steps = full_episode_steps if episode_steps is None else episode_steps
        self._full_episode_steps = self._next_episode_steps = positive_int("episode_steps", steps)
        self._episode_steps = self._next_episode_steps
        self._elapsed = 0
        self._return = 0.0
        self.success_return: float | None = None
        self._started = False
        self._pending_seed = seed

    @property
    def episode_steps(self) -> int:
        """Control steps after which the present episode is truncated."""
        return self._episode_steps

    def set_episode_steps(self, steps: int | None) -> None:
        """Changes the time limit, in control steps, from the next `reset` on; None for the full length.

        An episode never gets longer than the full length that the environment was made with.
        """
        full = self._full_episode_steps
        self._next_episode_steps = full if steps is None else min(full, positive_int("episode_steps", steps))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode.

        Args:
            seed: re-seeds the environment's generator; the same seed gives the same episode.
            options: not used.

        Returns:
            The observation [O] float32 and an empty info.
        """
        if seed is None:
            seed = self._pending_seed
        self._pending_seed = None
        reseeded = seed is not None or not self._started
        super().reset(seed=seed)
        self._episode_steps = self._next_episode_steps
        self._elapsed = 0
        self._return = 0.0
        self._started = True
        self._start_episode(reseeded)
        return self._observation(), {}

    def step(
        self, action: NDArray[np.floating[Any]]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Holds an action for `action_repeat` control steps, or fewer where the episode ends sooner.

        Args:
            action: [A], clipped to [-1, 1].

        Returns:
            Observation [O] float32, summed reward, terminated, truncated, and an info with
            `fell` (the benchmark's termination condition held at one of the control steps),
            `reward_before_fall` (the reward up to and including the first such control step),
            `diverged`, `steps` (control steps taken) and `reward_terms` (of the last control step);
            for a task with a success bar also `success` (the episode's return so far has reached it).

        Raises:
            gymnasium.error.ResetNeeded: no episode has been started.
            ValueError: an action of the wrong size, or with a NaN in it.
        """
        if not self._started:
            raise gymnasium.error.ResetNeeded("step() before reset(): call reset() first")
        held = self._checked_action(action)
        total, before_fall, fell, steps = 0.0, 0.0, False, 0
        terminated = truncated = False
        while steps < self.action_repeat and not (terminated or truncated):
            outcome = self._control_step(held)
            steps += 1
            self._elapsed += 1
            total += outcome.reward
            before_fall += 0.0 if fell else outcome.reward
            fell = fell or outcome.fell
            terminated = outcome.terminal or (outcome.fell and self.protocol == "humanoidbench")
            truncated = outcome.diverged or outcome.truncated or self._elapsed >= self._episode_steps
        info = {
            "fell": fell,
            "reward_before_fall": before_fall,
            "diverged": outcome.diverged,
            "steps": steps,
            "reward_terms": outcome.terms,
        }
        self._return += total
        if self.success_return is not None:
            info["success"] = self._return >= self.success_return
        return self._observation(), total, terminated, truncated, info

    def state(self) -> EnvState:
        """Saves the environment. `restore` continues from here exactly, episodes to come included.

        Raises:
            gymnasium.error.ResetNeeded: no episode has been started.
        """
        if not self._started:
            raise gymnasium.error.ResetNeeded("state() before reset(): call reset() first")
        return EnvState(
            generator=copy.deepcopy(dict(self.np_random.bit_generator.state)),
            elapsed=self._elapsed,
            episode_return=self._return,
            episode_steps=self._episode_steps,
            next_episode_steps=self._next_episode_steps,
            simulation=copy.deepcopy(self._saved()),
        )

    def restore(self, state: EnvState) -> Observation:
        """Goes back to a saved state; returns its observation [O] float32.

        Raises:
            ValueError: the state is another task's.
        """
        self._load(copy.deepcopy(state.simulation))
        self.np_random.bit_generator.state = copy.deepcopy(state.generator)
        self._elapsed = state.elapsed
        self._return = state.episode_return
        self._episode_steps = state.episode_steps
        self._next_episode_steps = state.next_episode_steps
        self._pending_seed = None
        self._started = True
        return self._observation()

    def render(self) -> Any:
        """A frame [H, W, 3] uint8, or None without `render_mode`."""
        return None if self.render_mode is None else self._frame()

    def _checked_action(self, action: Any) -> FloatArray:
        """`action` as float64 [A], clipped to [-1, 1]."""
        values = np.asarray(action, dtype=np.float64)
        if values.shape != self.action_space.shape:
            raise ValueError(f"action has shape {values.shape}, this task takes {self.action_space.shape}")
        # The sum of squares is NaN if and only if an entry is; plain ufuncs cost least on few numbers.
        if math.isnan(values.dot(values)):
            raise ValueError("action holds a NaN")
        return np.minimum(np.maximum(values, -1.0), 1.0)

    @abc.abstractmethod
    def _start_episode(self, reseeded: bool) -> None:
        """Puts the simulation into an initial state; `reseeded` says that `np_random` is new."""

    @abc.abstractmethod
    def _control_step(self, action: FloatArray) -> ControlStep:
        """Simulates one control step under `action` [A] in [-1, 1]."""

    @abc.abstractmethod
    def _observation(self) -> Observation:
        """The present observation, a fresh array [O] float32."""

    @abc.abstractmethod
    def _frame(self) -> NDArray[np.uint8]:
        """A picture of the present state [H, W, 3]."""

    @abc.abstractmethod
    def _saved(self) -> dict[str, Any]:
        """The simulation's state, and what the task keeps beside it (`state` copies them)."""

    @abc.abstractmethod
    def _load(self, saved: dict[str, Any]) -> None:
        """Takes over what `_saved` gave, which is its own to keep."""
