"""What the replay buffers of a run take of this machine's memory, known before they are made."""

from __future__ import annotations

import psutil
import torch

from ezm_pl.envs import TaskSizes
from ezm_pl.replay import ReplayBuffer
from ezm_pl.spec import Experiment, SpecError

_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


class MemoryRefused(SpecError):
    """The replay buffers of this experiment cannot fit into this machine's memory."""


def out_of_memory(error: BaseException | None) -> bool:
    """Whether `error`, or what caused it, is an array that this machine or its GPU has no memory for."""
    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            return True
        error = error.__cause__
    return False


def replay_bytes(per_rank: Experiment, sizes: TaskSizes, local_ranks: int) -> int:
    """Bytes that the full buffers of this machine's ranks hold.

    Args:
        per_rank: the spec of one rank.
        sizes: of its tasks.
        local_ranks: ranks on this machine.
    """
    return local_ranks * ReplayBuffer.estimate_bytes(
        per_rank.replay,
        per_rank.windows,
        tasks=len(per_rank.tasks),
        envs_per_task=per_rank.env.num_envs,
        steps=-(-per_rank.collect.env_steps // per_rank.env.action_repeat),
        observation_size=sizes.obs_size,
        action_size=sizes.action_size,
    )


def check_memory(per_rank: Experiment, sizes: TaskSizes, local_ranks: int) -> str:
    """A line on what the buffers will take.

    Raises:
        MemoryRefused: full buffers would leave no room for anything else.
    """
    needed, free = replay_bytes(per_rank, sizes, local_ranks), psutil.virtual_memory().available
    if needed > 0.9 * free:
        full = per_rank.replay.observation_dtype == "float32"
        halve = "set replay.observation_dtype to float16, " if full else ""
        raise MemoryRefused(
            f"replay needs {needed / 2**30:.1f} GiB when full and {free / 2**30:.1f} GiB are free: "
            f"{halve}lower replay.capacity, or train fewer tasks"
        )
    unit, size = next((pair for pair in _UNITS if needed >= 0.1 * pair[1]), _UNITS[-1])
    return f"replay: {needed / size:.2f} {unit} when full, of {free / 2**30:.1f} GiB free"
