"""Files that a user names. They are read up to a size: no device and no wrong file may fill the memory."""

from __future__ import annotations

import errno
import json
import math
import re
from pathlib import Path
from typing import Any

from ezm_pl.spec.errors import writing

MOST_BYTES = 16 << 20


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        OSError: it cannot be read, or holds more than `MOST_BYTES`.
        UnicodeDecodeError: it is not UTF-8.
    """
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise OSError(errno.EFBIG, f"more than {MOST_BYTES >> 20} MiB", str(path))
    return data.decode("utf-8")


def file_name(text: str) -> str:
    """`text` as a file's name: `-` in place of what is no letter, digit, `_`, `.` or `-`."""
    return re.sub(r"[^\w.\-]+", "-", text)


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: as `read_text`.
        ValueError: it is not JSON, or nested too deeply for a parser.
    """
    try:
        return json.loads(read_text(path))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def finite(value: Any) -> Any:
    """Nested dicts and lists with None for numbers that are not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, document: object) -> None:
    """Writes `document` as JSON, and the folders above it.

    Raises:
        SpecError: it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
