"""Frames, and the one clear line where there can be none."""

from __future__ import annotations

import os
import subprocess
import sys
from ctypes.util import find_library
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ezm_pl.envs as envs
from ezm_pl.envs import pictures, rendering
from ezm_pl.envs.gl_settings import GL_VARIABLES
from ezm_pl.spec.tasks import SUITES

AVAILABLE, REASON = envs.rendering_available()
OSMESA = AVAILABLE and find_library("OSMesa") is not None


@pytest.mark.skipif(not AVAILABLE, reason=REASON)
@pytest.mark.parametrize("task", ["h1-walk", "h1-hurdle", "dmc-cartpole-balance"])
def test_a_frame_shows_something_that_moves(task: str) -> None:
    env = envs.make(task, render_mode="rgb_array", protocol="ezm", seed=0)
    env.reset()
    first = env.render()
    assert isinstance(first, np.ndarray) and first.dtype == np.uint8 and first.shape[2] == 3
    assert first.std() > 5
    for _ in range(20):
        env.step(np.ones(env.action_space.shape))  # type: ignore[arg-type]
    second = env.render()
    assert isinstance(second, np.ndarray)
    assert (first != second).mean() > 0.001
    env.close()


@pytest.mark.skipif(not AVAILABLE, reason=REASON)
def test_a_contact_sheet_has_a_frame_of_each_task() -> None:
    sheet = pictures.sheet(["h1-walk", "h1-maze", "h1-pole"], 0, columns=2, width=160)
    page = np.asarray(sheet.convert("RGB"))
    assert page.shape == (2 * (120 + pictures.LABEL_HEIGHT), 320, 3)
    assert page[:120, :160].std() > 5 and page[:120, 160:].std() > 5
    for row, column in ((0, 0), (0, 1), (1, 0)):
        below = row * (120 + pictures.LABEL_HEIGHT) + 120
        label = page[below : below + pictures.LABEL_HEIGHT, 160 * column : 160 * (column + 1)]
        assert label.max() > 250 and label.min() < 60
    assert (page[120 + pictures.LABEL_HEIGHT :, 160:] > 250).all()


def test_the_sheet_of_all_tasks_is_small() -> None:
    path = Path(__file__).parents[2] / "docs" / "tasks.png"
    assert path.stat().st_size < 300_000
    rows = -(-len(SUITES["hb-all"]) // 8)
    assert Image.open(path).size == (8 * 160, rows * (120 + pictures.LABEL_HEIGHT))


def test_reward_terms_are_named() -> None:
    assert pictures.reward_terms("h1-walk") == (
        "move",
        "small_control",
        "stand_reward",
        "standing",
        "upright",
    )


def test_no_frame_without_a_render_mode() -> None:
    assert envs.make("h1-walk").render() is None
    assert envs.make("dmc-cartpole-balance").render() is None


def test_without_gl_the_reason_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "_chosen_backend", lambda: ("", f"{rendering.HELP} (egl: no library)"))
    assert rendering.rendering_available() == (False, f"{rendering.HELP} (egl: no library)")
    for task in ("h1-walk", "dmc-cartpole-balance", "gym:Hopper-v5"):
        with pytest.raises(envs.RenderingUnavailable, match="libegl1 libgl1-mesa-dri") as error:
            envs.make(task, render_mode="rgb_array")
        assert "\n" not in str(error.value)
        assert isinstance(error.value, RuntimeError)


NO_LIBRARY = "raise AttributeError(\"'NoneType' object has no attribute 'glGetError'\")"
"""What PyOpenGL does as it is imported where the library that was asked for is not there."""

PROGRAM = """
import ezm_pl.envs as envs
for task in ("h1-walk", "dmc-walker-walk", "gym:Hopper-v5"):
    env = envs.make(task)
    env.reset(seed=0)
    env.step(env.action_space.sample())
available, reason = envs.rendering_available()
print(reason)
for task in ("h1-walk", "dmc-walker-walk", "gym:Hopper-v5"):
    try:
        env = envs.make(task, render_mode="rgb_array")
        env.reset(seed=0)
        print(env.render().shape[2] == 3)
    except envs.RenderingUnavailable as error:
        print(str(error) == reason)
"""


@pytest.mark.parametrize(
    ("settings", "library", "line"),
    [
        ({"MUJOCO_GL": "bogus"}, True, "MUJOCO_GL=bogus is no GL; unset it, or set it to egl or osmesa"),
        ({"MUJOCO_GL": "osmesa"}, False, "MUJOCO_GL=osmesa does not work here (osmesa: "),
        ({"PYOPENGL_PLATFORM": "bogus"}, True, "PYOPENGL_PLATFORM=bogus does not work here (egl: "),
        ({"MUJOCO_GL": "off"}, True, "rendering is switched off (MUJOCO_GL=off)"),
        ({}, False, "rendering needs EGL or OSMesa, and neither works here"),
        *[({"PYOPENGL_PLATFORM": "osmesa"}, True, "frames are drawn with OSMESA")] * OSMESA,
    ],
)
def test_gl_is_decided_where_it_is_needed(
    settings: dict[str, str], library: bool, line: str, tmp_path: Path
) -> None:
    """Tasks are made and stepped whatever the variables say; what is rendered says so in one line."""
    environment = {name: value for name, value in os.environ.items() if name not in GL_VARIABLES} | settings
    if not library:
        (tmp_path / "OpenGL").mkdir()
        (tmp_path / "OpenGL" / "__init__.py").write_text(NO_LIBRARY)
        environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{environment.get('PYTHONPATH', '')}"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    reason, *rendered = done.stdout.splitlines()
    assert reason.startswith(line)
    assert rendered == ["True"] * 3
