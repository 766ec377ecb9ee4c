"""The ranks of a run: what they tell one another, and the spec of one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed

from ezm_pl.spec import Experiment, RunFailed, SpecError

T = TypeVar("T")


class RankError(RunFailed):
    """Another rank of the run has failed; its own output has the traceback."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together. By default it is alone.

    Attributes:
        rank: from 0 to `size - 1`.
        size: ranks in all.
        local: ranks on this machine.
        group: gloo, of all ranks; None when alone.
    """

    rank: int = 0
    size: int = 1
    local: int = 1
    group: Any = None

    def gather(self, values: Sequence[float] | NDArray) -> NDArray[np.float64]:
        """Every rank's `values` `[N]` as `[size, N]`."""
        mine = torch.as_tensor(np.asarray(values, np.float64))
        if self.size == 1:
            return mine.numpy()[None]
        everyone = torch.empty(self.size, len(mine), dtype=torch.float64)
        distributed.all_gather(list(everyone.unbind()), mine, group=self.group)
        return everyone.numpy()

    def gather_objects(self, mine: T) -> list[T]:
        """Every rank's object, by rank."""
        if self.size == 1:
            return [mine]
        everyone: list[Any] = [None] * self.size
        distributed.all_gather_object(everyone, mine, group=self.group)
        return everyone


def per_rank(experiment: Experiment, ranks: Ranks) -> Experiment:
    """The spec of one rank: batch, steps and replay are counted over all ranks.

    Raises:
        SpecError: the batch does not divide into equal parts.
    """
    if ranks.size == 1:
        return experiment
    batch, size = experiment.optim.batch_size, ranks.size
    if batch % size:
        raise SpecError(f"optim.batch_size {batch} cannot be divided equally among {size} ranks")
    share = {
        "optim": {"batch_size": batch // size},
        "collect": {
            name: -(-getattr(experiment.collect, name) // size) for name in ("env_steps", "random_steps")
        },
        "replay": {"capacity": -(-experiment.replay.capacity // size)},
        "targets": {"search_value_age": -(-experiment.targets.search_value_age // size)},
    }
    parts = {name: getattr(experiment, name).model_copy(update=part) for name, part in share.items()}
    return experiment.model_copy(update=parts)
