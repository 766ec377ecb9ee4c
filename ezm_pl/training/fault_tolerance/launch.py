"""Which rank this process is: Lightning's Trainer alone decides, and the launcher must agree with it."""

from __future__ import annotations

import os

from lightning import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only

from ezm_pl.spec import SpecError
from ezm_pl.spec.launcher import RANK_VARIABLES, WORLD_VARIABLES


def own_rank(trainer: Trainer) -> int:
    """The rank of this process, from 0 to `trainer.world_size - 1`.

    A world of 1 is rank 0. What a launcher or a scheduler's shell has left in the environment is then
    set to 0, because Lightning's rank-zero guards and its DDP strategy read it.

    Raises:
        SpecError: the launcher has started another number of processes than the spec asks for, or the
            ranks cannot find one another.
    """
    world, strategy = trainer.world_size, trainer.strategy
    asked = trainer.num_devices * trainer.num_nodes
    wants = f"trainer.devices ({trainer.num_devices}) x trainer.num_nodes ({trainer.num_nodes}) is {asked}"
    for name in WORLD_VARIABLES:
        started = int(os.environ.get(name, world))
        if started != world:
            raise SpecError(f"trainer: {wants}, but the launcher has started {started} ({name})")
    if world == 1:
        os.environ.update({name: "0" for name in RANK_VARIABLES if name in os.environ})
        if isinstance(strategy, DDPStrategy):
            strategy.set_world_ranks()
        rank_zero_only.rank = 0  # type: ignore[attr-defined]
        return 0
    if asked != world:
        raise SpecError(f"trainer: {wants}, but the launcher has started {world}")
    by_lightning = isinstance(getattr(strategy, "cluster_environment", None), LightningEnvironment)
    if by_lightning and "LOCAL_RANK" in os.environ and "MASTER_PORT" not in os.environ:
        raise SpecError(
            f"trainer: LOCAL_RANK says that a launcher starts the {world} ranks, but MASTER_ADDR and "
            "MASTER_PORT, where they meet, are not set; unset LOCAL_RANK, or use torchrun"
        )
    if trainer.global_rank >= world:
        raise SpecError(f"trainer: {wants}, but the environment says that this is rank {trainer.global_rank}")
    return trainer.global_rank
