"""The pieces of a report's page, rendered by Jinja2 from `page.html`, which escapes all text."""

from __future__ import annotations

import base64
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2


@functools.cache
def _macros() -> Any:
    loader = jinja2.PackageLoader("ezm_pl.tracking.results", "")
    return jinja2.Environment(loader=loader, autoescape=True).get_template("page.html").module


def page(title: str, parts: Iterable[str]) -> str:
    """The whole document: a title in plain text and pieces made by the functions below."""
    return _macros().page(title, parts).lstrip()


def heading(text: str, level: int = 2) -> str:
    """A heading in plain text."""
    return _macros().heading(text, level)


def paragraph(text: str, kind: str = "") -> str:
    """Plain text; `kind` is `quiet` or `notice`."""
    return _macros().paragraph(text, kind)


def bullets(texts: Sequence[str]) -> str:
    """A list of plain texts; nothing where there are none."""
    return _macros().bullets(texts)


def code(text: str) -> str:
    """Plain text, set as it is."""
    return _macros().code(text)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """Plain-text cells, the first column to the left, numbers to the right.

    Args:
        head: column names; a line break in one stays.
        rows: as many cells as `head`.
        caption: below it.
    """
    return _macros().table(head, rows, caption)


def figures(pictures: Sequence[tuple[Path, str]]) -> str:
    """SVG files side by side as the width allows.

    Args:
        pictures: (SVG, what it shows in words).
    """
    data = [(base64.b64encode(path.read_bytes()).decode("ascii"), words) for path, words in pictures]
    return _macros().figures(data)
