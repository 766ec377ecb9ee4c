"""A checkpoint's replay: the batches that it trains on, and the states that it holds."""

from __future__ import annotations

import numpy as np
import torch

from ezm_pl.replay import ReplayBuffer
from ezm_pl.training.batch import Batch
from ezm_pl.training.diagnostics.networks import Networks
from ezm_pl.training.health import upright


def draw(networks: Networks, buffer: ReplayBuffer, count: int) -> list[Batch]:
    """`count` batches of the size that training uses, on the networks' device."""
    size = networks.experiment.optim.batch_size
    drawn = [Batch.from_windows(buffer.sample(size)) for _ in range(count)]
    return [Batch(*(part.to(networks.device) for part in batch)) for batch in drawn]


def upright_share(buffer: ReplayBuffer, task: int) -> float:
    """The share of a task's stored states in which its humanoid stands."""
    blocks = buffer.blocks
    stored = blocks.transition_id[task] >= 0
    seen = blocks.observation[task, :, : blocks.block_size, :7][stored]
    return float(upright(torch.from_numpy(seen.astype(np.float32))).float().mean())
