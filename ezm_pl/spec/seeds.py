"""One seed, many independent streams: nothing draws from global random state."""

from __future__ import annotations

import zlib

import numpy as np

MAX_SEED = 2**63 - 1
"""The largest seed that everything seeded here takes (PyTorch's generators hold 64 bits)."""


def stream(seed: int, purpose: str, rank: int = 0) -> np.random.SeedSequence:
    """The seed sequence of a purpose (`replay`, `selfplay`, ...) on a rank."""
    return np.random.SeedSequence(seed, spawn_key=(rank, zlib.crc32(purpose.encode())))


def stream_int(seed: int, purpose: str, rank: int = 0) -> int:
    """A 31-bit integer seed from the same stream, for libraries that take no sequence."""
    return int(stream(seed, purpose, rank).generate_state(1)[0] >> 1)
