"""Updates skipped because their losses or gradients are not finite: the error and its diagnosis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ezm_pl.spec import RunFailed
from ezm_pl.training.batch import Batch, Targets
from ezm_pl.training.losses import Losses


class NonFiniteUpdates(RunFailed):
    """Too many updates in a row had losses or gradients that are not finite."""


def diagnosis(
    found: Losses,
    windows: Batch,
    targets: Targets | None,
    model: nn.Module,
    tasks: Sequence[str],
    updates: int,
) -> str:
    """What is not finite in an update that was skipped, in one line; reads everything back to the host.

    Args:
        found: the update's losses. windows: its batch. targets: its targets, where the agent has any.
        model: as it is after the skipped update.
        tasks: names by task index.
        updates: how many have been skipped in a row.
    """
    terms = [name for name, each in found.terms.items() if not bool(torch.isfinite(each))]
    parts = [f"loss terms: {', '.join(terms)}" if terms else "the losses are finite, the gradients are not"]
    inputs = dict(_not_finite(windows, "batch"))
    if targets is not None:
        inputs |= _not_finite(targets, "targets")
    for name, rows in inputs.items():
        parts.append(f"{name}: {_by_task(rows, windows.task, tasks)}")
    if not inputs:
        rows = ~torch.isfinite(found.value_error)
        parts.append("batch and targets are finite")
        if bool(rows.any()):
            parts.append(f"predicted values that are not: {_by_task(rows, windows.task, tasks)}")
    weights = [name for name, x in model.state_dict().items() if not bool(torch.isfinite(x).all())]
    parts.append(
        f"weights that are not finite: {', '.join(weights[:3])}" if weights else "the weights are finite"
    )
    return (
        f"{updates} updates in a row were skipped because their losses or gradients are not finite "
        f"(limit: optim.max_skipped_updates). {'; '.join(parts)}. The weights are those of the last good "
        "update: a lower optim.learning_rate, trainer.precision 32-true or search.dtype float32 may help"
    )


def _not_finite(fields: Batch | Targets, name: str) -> Iterator[tuple[str, Tensor]]:
    """`name.field` and the rows `[B]` of it that hold something not finite, for fields that have any."""
    for field, x in zip(fields._fields, fields, strict=True):
        rows = (~torch.isfinite(x)).reshape(len(x), -1).any(1)
        if bool(rows.any()):
            yield f"{name}.{field}", rows


def _by_task(rows: Tensor, task: Tensor, tasks: Sequence[str]) -> str:
    """`h1-walk (3 of 16 windows), h1-run (...)`."""
    parts = []
    for index, name in enumerate(tasks):
        mine = task == index
        bad = int((rows & mine).sum())
        if bad:
            parts.append(f"{name} ({bad} of {int(mine.sum())} windows)")
    return ", ".join(parts)
