"""Where commands write: checked before any work begins, so that no work is lost for a wrong name."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from ezm_pl.commands.arguments import Parser
from ezm_pl.spec import SpecError

PICTURES = (".png", ".jpg", ".jpeg")
FIGURES = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".webp", ".eps", ".tif", ".tiff")
FILMS = (".mp4", ".mkv", ".mov")


def check_file(path: Path, formats: tuple[str, ...]) -> Path:
    """`path`, which can be written and whose ending is one of `formats`.

    Raises:
        SpecError: it ends otherwise, is a folder, or cannot be written.
    """
    if path.suffix.lower() not in formats:
        raise SpecError(f"{str(path)!r}: a file name ending in {', '.join(formats)} expected")
    return _writable(path, folder=False)


def check_folder(path: Path) -> Path:
    """`path`, a folder that can be written to or made.

    Raises:
        SpecError: it is a file, or cannot be written to.
    """
    return _writable(path, folder=True)


def file_in(formats: tuple[str, ...]) -> Callable[[str], Path]:
    """An argument type: see `check_file`."""
    return lambda text: _argument(check_file, Path(text), formats)


def add_figure(command: Parser, default: str) -> None:
    """Adds `--out`, the file that a figure is written to."""
    command.add_argument(
        "--out", type=file_in(FIGURES), default=default, metavar="FILE", help=f"default: {default}"
    )


def folder(text: str) -> Path:
    """An argument type: see `check_folder`."""
    return _argument(check_folder, Path(text))


def _writable(path: Path, *, folder: bool) -> Path:
    try:
        problem = _problem(path, folder)
    except OSError as error:
        problem = f"cannot be written: {error.strerror}"
    if problem:
        raise SpecError(f"{str(path)!r}: {problem}")
    return path


def _problem(path: Path, folder: bool) -> str | None:
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    if max(map(len, map(os.fsencode, path.parts)), default=0) > os.pathconf(there, "PC_NAME_MAX"):
        return "cannot be written: a name in it is too long"
    for each in (path, *path.absolute().parents):
        target = Path(os.path.realpath(each))
        lost = target == each.absolute() or not target.parent.is_dir()
        if each.is_symlink() and not each.exists() and (folder or each != path or lost):
            return f"cannot be written: {each} is a link that leads nowhere"
    if there == path and (there.is_fifo() or there.is_socket()):
        return "a pipe; a file name expected"
    if there == path and there.is_dir() != folder:
        return "a file; a folder expected" if folder else "a folder; a file name expected"
    if there != path and not there.is_dir():
        return f"cannot be written: {there} is no folder"
    if not os.access(there, os.W_OK | os.X_OK if there.is_dir() else os.W_OK):
        return f"cannot be written: no permission to write to {there}"
    return None


def _argument(check: Callable[..., Path], *given: object) -> Path:
    try:
        return check(*given)
    except SpecError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
