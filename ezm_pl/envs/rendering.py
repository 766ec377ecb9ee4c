"""Frames without a window: EGL or OSMesa, whichever the system has."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from ezm_pl.envs.gl_settings import GL_VARIABLES

HEIGHT, WIDTH = 480, 640
MARKER_SIZE = 0.04
MARKER_COLOUR = np.array([0.85, 0.2, 0.15, 0.8], np.float32)
BACKENDS = ("egl", "osmesa")

OFF = ("disable", "disabled", "off", "false", "0")
ANY = ("", "enable", "enabled", "on", "true", "1")
WINDOWS = ("glfw", "glx", "wgl", "cgl")
"""What MUJOCO_GL may be beside `BACKENDS`: nothing is rendered, anything that works, a window system's GL."""

HELP = (
    "rendering needs EGL or OSMesa, and neither works here: on Debian or Ubuntu, "
    "apt-get install libegl1 libgl1-mesa-dri (EGL) or libosmesa6 (OSMesa)"
)


class RenderingUnavailable(RuntimeError):
    """No GL backend can draw a frame on this system."""


_PROBE = "import ezm_pl.envs.rendering as r; r._probe({backend!r})"


@functools.cache
def _chosen_backend() -> tuple[str, str]:
    """(backend, reason): the backend to use, or an empty one and why there is none, in one line."""
    wanted = os.environ.get("MUJOCO_GL", "").lower().strip()
    if wanted in OFF:
        return "", f"rendering is switched off (MUJOCO_GL={wanted})"
    if wanted not in (*ANY, *BACKENDS, *WINDOWS):
        return "", f"MUJOCO_GL={wanted} is no GL; unset it, or set it to {' or '.join(BACKENDS)}"
    candidates = BACKENDS if wanted in ANY else (wanted,)
    reasons = []
    for backend in candidates:
        # In a process of its own: a driver that fails may take its process with it, and a backend
        # once loaded stays.
        environment = {"PYOPENGL_PLATFORM": backend, **os.environ, "MUJOCO_GL": backend}
        try:
            probe = subprocess.run(
                [sys.executable, "-c", _PROBE.format(backend=backend)],
                env=environment,
                capture_output=True,
                text=True,
                timeout=60,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            reasons.append(f"{backend}: {error}")
            continue
        if probe.returncode == 0:
            return backend, f"frames are drawn with {backend.upper()}"
        last = (probe.stderr.strip().splitlines() or [f"exit code {probe.returncode}"])[-1]
        reasons.append(f"{backend}: {last}")
    tried = "; ".join(reasons)
    for variable in GL_VARIABLES:
        setting = os.environ.get(variable, "")
        if setting.lower().strip() not in ANY:
            return "", f"{variable}={setting} does not work here ({tried}); unset it to take what does"
    return "", f"{HELP} ({tried})"


def rendering_available() -> tuple[bool, str]:
    """Whether frames can be drawn here, and with what, or why not (in one line)."""
    backend, reason = _chosen_backend()
    return bool(backend), reason


def require() -> None:
    """Chooses the GL backend for this process.

    Raises:
        RenderingUnavailable: none works.
    """
    backend, reason = _chosen_backend()
    if not backend:
        raise RenderingUnavailable(reason)
    # gymnasium and dm_control read this when they first make a context, PyOpenGL when imported.
    if os.environ.get("MUJOCO_GL", "").lower().strip() in ANY:
        os.environ["MUJOCO_GL"] = backend
    if backend in BACKENDS:
        os.environ.setdefault("PYOPENGL_PLATFORM", backend)


def _probe(backend: str) -> None:
    """Draws a frame of a sphere with `backend`; whatever goes wrong is an exception."""
    os.environ["MUJOCO_GL"] = backend
    spec = mujoco.MjSpec()
    spec.worldbody.add_geom(size=[1, 1, 1])
    spec.worldbody.add_camera(name="camera", pos=[0, 0, 3])
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    frames = Frames(model, backend)
    if not frames.draw(data, "camera").any():
        raise RuntimeError("the frame is black")
    frames.close()


def _gl_context(backend: str) -> Any:
    """A GL context. (`mujoco.Renderer` settles on one when MuJoCo is imported, before we can choose.)"""
    if backend == "egl":
        from mujoco.egl import GLContext
    elif backend == "osmesa":
        from mujoco.osmesa import GLContext
    else:
        from mujoco.gl_context import GLContext
    return GLContext(WIDTH, HEIGHT)


class Frames:
    """Draws frames [480, 640, 3] uint8 of one model, from one thread. The first one makes a GL context.

    Args:
        model: what to draw.
        backend: `egl`, `osmesa`, or by default the one that works here.
    """

    def __init__(self, model: mujoco.MjModel, backend: str | None = None) -> None:
        self._model, self._backend = model, backend
        self._gl: Any = None
        self._scene = mujoco.MjvScene(model, maxgeom=model.ngeom + 100)
        self._camera = mujoco.MjvCamera()
        self._options = mujoco.MjvOption()
        self._viewport = mujoco.MjrRect(0, 0, WIDTH, HEIGHT)

    def draw(
        self, data: mujoco.MjData, camera: str | int, markers: Sequence[NDArray[np.float64]] = ()
    ) -> NDArray[np.uint8]:
        """A frame [480, 640, 3] of `data` through a camera of the model, by name or number.

        `markers` are points [3] shown as small red spheres.

        Raises:
            RenderingUnavailable: no GL backend works.
        """
        if self._gl is None:
            self._open()
        self._gl.make_current()
        if isinstance(camera, str):
            camera = self._model.camera(camera).id
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        if camera >= self._model.ncam:  # a model without cameras is seen as MuJoCo's viewer shows it
            mujoco.mjv_defaultFreeCamera(self._model, self._camera)
        else:
            self._camera.fixedcamid = camera
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, data, self._options, None, self._camera, everything, self._scene)
        for point in markers:
            geom = self._scene.geoms[self._scene.ngeom]
            sphere = mujoco.mjtGeom.mjGEOM_SPHERE
            size = np.full(3, MARKER_SIZE)
            mujoco.mjv_initGeom(geom, sphere, size, point, np.eye(3).ravel(), MARKER_COLOUR)
            self._scene.ngeom += 1
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        frame = np.empty((HEIGHT, WIDTH, 3), np.uint8)
        mujoco.mjr_readPixels(frame, None, self._viewport, self._context)
        return frame[::-1].copy()  # GL counts rows from below

    def _open(self) -> None:
        if self._backend is None:
            require()
            self._backend = _chosen_backend()[0]
        self._gl = _gl_context(self._backend)
        self._gl.make_current()
        self._context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)

    def close(self) -> None:
        """Frees the GL context, if there is one."""
        if self._gl is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl = None
