"""What this machine computes fast."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch

from ezm_pl.envs.stepping.vector import available_cores


@functools.cache
def fast_bfloat16() -> bool:
    """Whether bfloat16 matrix products are faster than float32 here: a GPU, AMX or AVX512-BF16."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


def search_dtype(wanted: Literal["auto", "float32", "bfloat16"]) -> torch.dtype:
    """The dtype of networks inside the search."""
    if wanted == "auto":
        return torch.bfloat16 if fast_bfloat16() else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[wanted]


def precision(wanted: str) -> Literal["32-true", "bf16-mixed"]:
    """Lightning's precision for training."""
    if wanted == "auto":
        return "bf16-mixed" if fast_bfloat16() else "32-true"
    return "bf16-mixed" if wanted == "bf16-mixed" else "32-true"


def _cores(ranks: int) -> int:
    """Of this machine for each of `ranks`, and not more than torch may use."""
    return min(torch.get_num_threads(), available_cores() // ranks)


def reanalysis_threads(latent_size: int, ranks: int = 1) -> int:
    """Torch's threads for reanalysis in the background: half of this rank's cores.

    More only where an operation of wide layers keeps each of them busy for about a millisecond, beside
    which waiting for one another at its end is short. Measured on two cores, both instead of one: 0.24
    updates/s instead of 0.17 at latent size 512, 10.7 instead of 12.1 at 128.

    Args:
        latent_size: of the world model.
        ranks: that share this machine.
    """
    cores = _cores(ranks)
    return max(1, cores // 2, min(cores, latent_size // 256))


@contextmanager
def shared_cores(ranks: int = 1) -> Iterator[None]:
    """Inside, torch's operations use a quarter of this rank's cores: the learner and the collector each.

    Threads that each spread small operations over all cores wait for one another at every barrier: on
    two cores that made a reanalysis five times slower. The other half is for reanalysis.

    Args:
        ranks: that share this machine.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, _cores(ranks) // 4))
    try:
        yield
    finally:
        torch.set_num_threads(before)
