"""Frames, and the one clear line where there can be none."""

from __future__ import annotations

import numpy as np
import pytest

import ezm_pl.envs as envs
from ezm_pl.envs import pictures, rendering

AVAILABLE, REASON = envs.rendering_available()


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
    page = pictures.sheet(["h1-walk", "h1-maze", "h1-pole"], 0, columns=2, width=64)
    assert page.shape == (2 * (48 + pictures.LABEL_HEIGHT), 128, 3)
    assert page[:48, :64].std() > 5 and page[:48, 64:].std() > 5
    assert (page[48 + pictures.LABEL_HEIGHT :, 64:] == 255).all()


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


def test_without_gl_the_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "_chosen_backend", lambda: ("", "egl: no library"))
    assert rendering.rendering_available() == (False, f"{rendering.HELP} (egl: no library)")
    for task in ("h1-walk", "dmc-cartpole-balance"):
        with pytest.raises(envs.RenderingUnavailable, match="libegl1 libgl1-mesa-dri") as error:
            envs.make(task, render_mode="rgb_array")
        assert "\n" not in str(error.value)
        assert isinstance(error.value, RuntimeError)
