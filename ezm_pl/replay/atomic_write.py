"""Files that are either whole or not there: written aside, read back, then renamed."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_CHUNK = 1 << 22


class Checksum(NamedTuple):
    """Length in bytes and CRC-32 of a file (3.2 GB/s here; BLAKE2b does 0.65)."""

    size: int
    crc: int


def checksum(path: Path) -> Checksum:
    """Of a file that may be larger than memory."""
    size, crc = 0, 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return Checksum(size, crc)


def write_atomically(path: Path, parts: Iterable[bytes | memoryview | np.ndarray]) -> Checksum:
    """Writes `parts` one after the other to `path`: at no instant is there half a file of that name.

    The file is synced, dropped from the page cache and read back before it takes its name. The folder's
    own entry is not synced (`sync_folder`).

    Raises:
        OSError: it could not be written, or what was read back differs.
    """
    aside = path.with_name(path.name + ".tmp")
    size, crc = 0, 0
    try:
        with aside.open("wb") as file:
            for part in parts:
                whole: Any = (
                    np.ascontiguousarray(part).view(np.uint8) if isinstance(part, np.ndarray) else part
                )
                view = memoryview(whole)
                file.write(view)
                size, crc = size + view.nbytes, zlib.crc32(view, crc)
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if checksum(aside) != (size, crc):
            raise OSError(f"{path}: what was written could not be read back")
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return Checksum(size, crc)


def sync_folder(folder: Path) -> None:
    """Makes new names in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
