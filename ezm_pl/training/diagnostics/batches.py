"""A checkpoint's replay: the batches that it trains on, and the states that it holds."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch

from ezm_pl.replay import ReplayBuffer, ReplayError, ReplayStore
from ezm_pl.training.batch import Batch
from ezm_pl.training.data import SelfPlayDataModule
from ezm_pl.training.diagnostics.networks import Networks
from ezm_pl.training.fault_tolerance.checkpoint import CheckpointError, replay_beside, shard
from ezm_pl.training.health import upright
from ezm_pl.training.memory import MemoryRefused
from ezm_pl.training.ranks import Ranks

log = logging.getLogger(__name__)


def load_replay(networks: Networks, checkpoint: Path) -> ReplayBuffer | None:
    """The replay beside a checkpoint (rank 0's part), saved with it or with the run's last checkpoint.

    None where there is none, or none that can be used: the log says why.
    """
    try:
        saved = replay_beside(checkpoint)
        if saved is None:
            return None
        name, ranks = saved
        data = SelfPlayDataModule(networks.experiment, networks.sizes, Ranks(0, ranks))
        ReplayStore(data.buffer, shard(checkpoint, 0)).load(name)
        return data.buffer
    except (CheckpointError, ReplayError, MemoryRefused) as error:
        log.warning("the replay is left out: %s", error)
        return None


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
