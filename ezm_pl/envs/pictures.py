"""Stills of tasks: a frame of one, a contact sheet of many."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ezm_pl.envs.registry import make
from ezm_pl.envs.rendering import HEIGHT, WIDTH
from ezm_pl.spec.tasks import score_bounds

LABEL_HEIGHT = 30
NAME_SIZE, BOUNDS_SIZE = 12, 10
COLOURS = 256
SETTLING_STEPS = 5
"""Control steps in the middle of the actuators' ranges before a frame is taken."""


def picture(task: str, seed: int) -> Image.Image:
    """A frame of a task soon after its start.

    Raises:
        RenderingUnavailable: no GL works here.
        ValueError, HumanoidBenchUnavailable: the task cannot be made.
    """
    env = make(task, render_mode="rgb_array", seed=seed)
    try:
        env.reset()
        for _ in range(SETTLING_STEPS):
            env.step(np.zeros(env.action_space.shape or ()))
        return Image.fromarray(np.asarray(env.render(), np.uint8))
    finally:
        env.close()


def reward_terms(task: str) -> tuple[str, ...]:
    """Names of a task's reward terms, sorted, without the reward itself."""
    env = make(task, seed=0)
    try:
        env.reset()
        terms = env.step(np.zeros(env.action_space.shape or ()))[4]["reward_terms"]
    finally:
        env.close()
    return tuple(sorted(set(terms) - {"per_timestep_reward"}))


def sheet(tasks: Sequence[str], seed: int, *, columns: int, width: int) -> Image.Image:
    """A contact sheet: a frame of each task, its name and its score's bounds beneath, row by row.

    Args:
        tasks: names. seed: of the episodes.
        columns: frames per row. width: of a frame, pixels.

    Raises:
        As `picture`.
    """
    if not tasks:
        raise ValueError("no tasks given")
    height = round(width * HEIGHT / WIDTH)
    rows = -(-len(tasks) // columns)
    page = Image.new("RGB", (columns * width, rows * (height + LABEL_HEIGHT)), "white")
    draw = ImageDraw.Draw(page)
    for index, task in enumerate(tasks):
        small = ImageOps.fit(picture(task, seed), (width, height), Image.Resampling.LANCZOS)
        row, column = divmod(index, columns)
        left, top = column * width, row * (height + LABEL_HEIGHT)
        page.paste(small, (left, top))
        lines = ((task, NAME_SIZE, "black", 0.3), (_bounds(task), BOUNDS_SIZE, "dimgray", 0.73))
        for text, size, colour, place in lines:
            middle = left + width / 2, top + height + place * LABEL_HEIGHT
            draw.text(middle, text, fill=colour, font=ImageFont.load_default(size), anchor="mm")
    # A palette takes a third of the space.
    return page.quantize(COLOURS, dither=Image.Dither.NONE)


def _bounds(task: str) -> str:
    bounds = score_bounds(task)
    return "" if bounds is None else f"random {bounds[0]:g}, success {bounds[1]:g}"
