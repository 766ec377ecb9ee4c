"""Stills of tasks: a frame of one, a contact sheet of many."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ezm_pl.envs.registry import Backend, make

LABEL_HEIGHT = 18
LABEL_SIZE = 13
SETTLING_STEPS = 5
"""Control steps in the middle of the actuators' ranges before a frame is taken."""


def frame(task: str, seed: int, backend: Backend = "auto") -> NDArray[np.uint8]:
    """A frame [H, W, 3] of a task soon after its start.

    Raises:
        RenderingUnavailable: no GL works here.
        ValueError, HumanoidBenchUnavailable: the task cannot be made.
    """
    env = make(task, backend=backend, render_mode="rgb_array", seed=seed)
    try:
        env.reset()
        for _ in range(SETTLING_STEPS):
            env.step(np.zeros(env.action_space.shape or ()))
        return np.asarray(env.render(), np.uint8)
    finally:
        env.close()


def reward_terms(task: str, backend: Backend = "auto") -> tuple[str, ...]:
    """Names of a task's reward terms, sorted, without the reward itself."""
    env = make(task, backend=backend, seed=0)
    try:
        env.reset()
        terms = env.step(np.zeros(env.action_space.shape or ()))[4]["reward_terms"]
    finally:
        env.close()
    return tuple(sorted(set(terms) - {"per_timestep_reward"}))


def sheet(tasks: Sequence[str], seed: int, *, columns: int, width: int) -> NDArray[np.uint8]:
    """A contact sheet [H, W, 3]: a frame of each task, its name beneath, row by row.

    Args:
        tasks: names. seed: of the episodes.
        columns: frames a row. width: of a frame, pixels.

    Raises:
        As `frame`.
    """
    font = ImageFont.load_default(LABEL_SIZE)
    rows = -(-len(tasks) // columns)
    page: Image.Image | None = None
    for index, task in enumerate(tasks):
        picture = Image.fromarray(frame(task, seed))
        height = round(width * picture.height / picture.width)
        if page is None:
            page = Image.new("RGB", (columns * width, rows * (height + LABEL_HEIGHT)), "white")
        row, column = divmod(index, columns)
        left, top = column * width, row * (height + LABEL_HEIGHT)
        page.paste(picture.resize((width, height), Image.Resampling.LANCZOS), (left, top))
        middle = left + width // 2, top + height + LABEL_HEIGHT // 2
        ImageDraw.Draw(page).text(middle, task, fill="black", font=font, anchor="mm")
    if page is None:
        raise ValueError("no tasks given")
    return np.asarray(page, np.uint8)
