"""How value errors reach the buffer as priorities."""

from __future__ import annotations

import torch
from torch import Tensor

from ezm_pl.replay import ReplayBuffer
from ezm_pl.training.batch import Batch


class PriorityWriter:
    """Writes the priorities of updates into a buffer; from a GPU one update late.

    The host then waits for nothing but the errors of the update before. This is the only point of an
    update at which it waits for the device, and what keeps it from running further ahead than one update.

    Args:
        buffer: whose priorities they are.
    """

    def __init__(self, buffer: ReplayBuffer) -> None:
        self._buffer = buffer
        self._copying: tuple[Batch, Tensor, torch.cuda.Event] | None = None

    def write(self, windows: Batch, error: Tensor) -> None:
        """Writes value errors `[B]` of a batch, which is on the host; the errors may be on a device."""
        if error.device.type == "cuda":
            host = torch.empty(error.shape, dtype=error.dtype, pin_memory=True)
            host.copy_(error, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(torch.cuda.current_stream(error.device))
            last, self._copying = self._copying, (windows, host, copied)
            if last is None:
                return
            windows, error, copied = last
            copied.synchronize()
        self._buffer.update_priorities(
            windows.task.numpy(), windows.replay_index.numpy(), windows.transition_id.numpy(), error.numpy()
        )
