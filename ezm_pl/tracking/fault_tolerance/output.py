"""Standard output and standard error that never raise: no write to a console decides how a run ends."""

from __future__ import annotations

import io
import os
import select
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


RAISING = ("strict", "surrogateescape")
"""Python's error handlers, UTF-8's and the C locale's, that refuse characters which the encoding lacks."""


class _Raw(io.FileIO):
    """A file descriptor that goes quiet after its first failed write."""

    failed = False

    def write(self, data: ReadableBuffer, /) -> int:
        """Writes, or discards where writing has failed; waits where the descriptor is non-blocking."""
        while not self.failed:
            try:
                written = super().write(data)
            except OSError:  # a closed pipe, a full disk, a terminal that is gone
                self.failed = True
                break
            if written is not None:
                return written
            select.select([], [self], [])
        return memoryview(data).nbytes


def install_safe_output() -> None:
    """Replaces `sys.stdout` and `sys.stderr` of this process, unless somebody has replaced them already.

    A character that the encoding lacks is written as its escape. A descriptor that was closed when the
    process started is opened on the null device, so that no other file gets its number.
    """
    for name in ("stdout", "stderr"):
        current: TextIO | None = getattr(sys, name)
        if current is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open till the end
        elif current is getattr(sys, f"__{name}__"):
            current.flush()
            safe = io.TextIOWrapper(
                io.BufferedWriter(_Raw(current.fileno(), "w", closefd=False)),
                encoding=current.encoding,
                errors="backslashreplace" if current.errors in RAISING else current.errors,
                line_buffering=name == "stderr" or current.isatty(),
            )
            setattr(sys, name, safe)
