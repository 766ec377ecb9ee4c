"""Lines and numbers for people."""

from __future__ import annotations

import math

from rich.console import Console


def say(console: Console, text: str, style: str = "") -> None:
    """Prints text as it is: names and paths in it are no markup, and it is not wrapped."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def count(number: int, noun: str) -> str:
    """`1 task`, `2 tasks`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def cell(value: float | None, form: str, absent: str = "-") -> str:
    """A number in the format `form`; `absent` where it is None or NaN."""
    return absent if value is None or math.isnan(value) else format(value, form)
