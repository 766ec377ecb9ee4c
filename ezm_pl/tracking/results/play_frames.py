"""A moment of an episode as one picture: the frame, and beside it what the search considered."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ezm_pl.training.playing import Moment

PANEL = 280
"""Width of what stands beside the frame, pixels."""
_MARGIN, _LINE = 14, 19
_BACKGROUND, _TEXT, _QUIET = (24, 26, 31), (235, 235, 235), (150, 155, 165)
_BAR, _CHOSEN, _FELL = (86, 110, 150), (240, 165, 50), (235, 85, 75)


def draw_moment(moment: Moment, task: str, sentence: str | None = None) -> NDArray[np.uint8]:
    """The frame with its panel, `[H, W + PANEL, 3]`.

    A bar is a candidate's imagined return, between the smallest and the largest of this decision; the
    chosen one has another colour, and one that the search never tried is pale.

    Args:
        moment: of the episode.
        task: its name.
        sentence: what the agent was told.
    """
    height, width, _ = moment.frame.shape
    page = Image.new("RGB", (width + PANEL, height), _BACKGROUND)
    page.paste(Image.fromarray(moment.frame), (0, 0))
    draw = ImageDraw.Draw(page)
    large, small = ImageFont.load_default(15), ImageFont.load_default(12)
    left, top = width + _MARGIN, _MARGIN
    draw.text((left, top), task, fill=_TEXT, font=large)
    top += _LINE + 6
    for name, value in (
        ("time", f"{moment.seconds:.2f} s"),
        ("reward", f"{moment.reward:.3f}"),
        ("return so far", f"{moment.total:.1f}"),
    ):
        draw.text((left, top), name, fill=_QUIET, font=small)
        draw.text((width + PANEL - _MARGIN, top), value, fill=_TEXT, font=small, anchor="ra")
        top += _LINE
    if moment.fell:
        draw.text((left, top), "has fallen", fill=_FELL, font=large)
    top += _LINE + 8
    if moment.chosen is None:
        draw.text((left, top), "decided by the policy, without a search", fill=_QUIET, font=small)
    else:
        _bars(draw, moment, left, top, width + PANEL - _MARGIN, height - _MARGIN, small)
    if sentence is not None:
        lines = _wrapped(f"“{sentence}”", large, width - 2 * _MARGIN)
        box = height - _MARGIN - _LINE * len(lines)
        draw.rectangle((0, box - 8, width, height), fill=_BACKGROUND)
        for row, line in enumerate(lines):
            draw.text((width / 2, box + row * _LINE), line, fill=_TEXT, font=large, anchor="ma")
    return np.asarray(page)


def _bars(
    draw: ImageDraw.ImageDraw, moment: Moment, left: int, top: int, right: int, bottom: int, font: _Font
) -> None:
    """One bar per candidate, from top to bottom, with its imagined return and visits."""
    draw.text((left, top), "candidates: imagined return (visits)", fill=_QUIET, font=font)
    top += _LINE + 4
    low, high = float(moment.q.min()), float(moment.q.max())
    step = min(24.0, (bottom - top) / len(moment.q))
    longest = right - left - 78
    for index, value in enumerate(moment.q):
        chosen, at = index == moment.chosen, top + index * step
        length = 3 + (longest - 3) * (float(value) - low) / max(high - low, 1e-9)
        colour = _CHOSEN if chosen else _BAR if moment.visits[index] else _faded(_BAR)
        draw.rectangle((left, at, left + length, at + max(step - 4, 1)), fill=colour)
        middle = at + (step - 4) / 2
        text = f"{value:.2f} ({moment.visits[index]})"
        draw.text((right, middle), text, fill=_CHOSEN if chosen else _QUIET, font=font, anchor="rm")


def _faded(colour: tuple[int, int, int]) -> tuple[int, ...]:
    return tuple((part + 2 * back) // 3 for part, back in zip(colour, _BACKGROUND, strict=True))


_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _wrapped(text: str, font: _Font, width: int) -> list[str]:
    """`text` in lines that are no wider than `width` pixels, as far as words allow."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
