"""How far the tasks' gradients agree, part by part of the learner, measured every so many updates.

Shapes: `T` tasks, `B` windows of a batch. Source of the question: Yu et al. 2020 (arXiv 2001.06782).
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from ezm_pl.replay.atomic_write import write_atomically
from ezm_pl.spec.files import finite
from ezm_pl.training.agent_module import AgentModule, Observer
from ezm_pl.training.batch import Batch
from ezm_pl.training.losses import Losses
from ezm_pl.world_model.synchronised import sum_over_ranks

log = logging.getLogger(__name__)

FILE = "gradient_conflict.json"
"""In the run's folder: every measurement."""
PARTS = {
    "representation": ("encoder",),
    "dynamics": ("dynamics",),
    "reward": ("action_encoder", "reward_trunk", "reward_head"),
    "value_policy": ("trunk", "value_heads", "q_heads", "policy_head"),
}
"""Part to the names of the learner's modules that it is made of; a learner has some of them.

Task embeddings are no part: no two tasks share a row.
"""


def shared_parts(learner: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The learner's parameters by part, for the parts that it has."""
    found = {
        part: [p for name in names if hasattr(learner, name) for p in getattr(learner, name).parameters()]
        for part, names in PARTS.items()
    }
    return {part: parameters for part, parameters in found.items() if parameters}


def task_gradients(
    loss: Tensor, rows: Tensor, parts: Mapping[str, Sequence[nn.Parameter]]
) -> dict[str, Tensor]:
    """Part to the gradients `[G, N]` that groups of windows contribute to the update, summed over all ranks.

    Args:
        loss: `[B]`, per window, with its graph, which stays.
        rows: `[G, B]`, 1 where a window belongs to a group.
        parts: part to its `N` parameters.
    """
    every = [parameter for parameters in parts.values() for parameter in parameters]
    gradients: dict[str, list[Tensor]] = {part: [] for part in parts}
    for group in rows:
        found = torch.autograd.grad((loss * group).sum(), every, retain_graph=True, allow_unused=True)
        flat = iter(
            torch.zeros_like(p).flatten() if g is None else g.flatten()
            for p, g in zip(every, found, strict=True)
        )
        for part, parameters in parts.items():
            gradients[part].append(torch.cat([next(flat) for _ in parameters]))
    return {part: sum_over_ranks(torch.stack(each).float()) for part, each in gradients.items()}


def cosines(halves: Tensor) -> Tensor:
    """Cosine similarities `[T, T]` of tasks' gradients, given as halves of their windows `[2, T, N]`.

    Off the diagonal: of two tasks. On it: of a task's own two halves, which says how much of a cosine below 1
    is the noise of small batches. NaN where a gradient is zero.
    """
    whole = halves.sum(0)
    table = _cosine(whole @ whole.T, whole, whole)
    own = (halves[0] * halves[1]).sum(-1) / (halves[0].norm(dim=-1) * halves[1].norm(dim=-1))
    return table.diagonal_scatter(own)


def _cosine(product: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return product / (a.norm(dim=-1).unsqueeze(1) * b.norm(dim=-1))


def half_of_each_task(task: Tensor, tasks: int) -> Tensor:
    """Tasks `[B]` of a batch to groups `[2 * T, B]`: every other window of each task, then the others."""
    mine = task == torch.arange(tasks, device=task.device).unsqueeze(1)
    odd = mine.cumsum(1) % 2 == 1
    return torch.cat([mine & odd, mine & ~odd]).float()


class GradientConflict(Callback):
    """Measures the cosine similarity of every pair of tasks' gradients (docs/diagnose.md).

    The gradients are those of the update itself: nothing is drawn and no statistics are moved for them, so a
    run is the same with and without. Metrics: `gradient_conflict/<part>/cosine`, the mean over pairs,
    `.../conflicting`, the share of pairs below 0, and `.../own_cosine`, the mean of tasks' own halves.

    Args:
        tasks: names of the tasks.
        every: updates between measurements.
        folder: of the run, for `FILE`.
    """

    def __init__(self, tasks: Sequence[str], every: int, folder: Path) -> None:
        self.tasks, self.every, self.path = tuple(tasks), every, folder / FILE
        self.measured: list[dict[str, Any]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes up the measurements of earlier sessions, and asks the module to show its losses."""
        if self.path.is_file():
            earlier = json.loads(self.path.read_text(encoding="utf-8"))["measured"]
            self.measured = [each for each in earlier if each["update"] < trainer.global_step]

        def observe(found: Losses, batch: Batch) -> None:
            self.measure(trainer, pl_module, found, batch)

        assert isinstance(pl_module, AgentModule)
        pl_module.observers.append(Observer(self.every, observe))

    def measure(self, trainer: Trainer, module: LightningModule, found: Losses, batch: Batch) -> None:
        """Measures once, before the update's own backward pass."""
        parts = shared_parts(module.learner)  # type: ignore[arg-type]
        groups = half_of_each_task(batch.task, len(self.tasks))
        gradients = task_gradients(found.windows, groups, parts)
        tables = {part: cosines(each.unflatten(0, (2, -1))).tolist() for part, each in gradients.items()}
        update = trainer.global_step
        self.measured.append({"update": update, "cosine": tables})
        if trainer.logger is not None:
            trainer.logger.log_metrics(summary(tables), step=update)
        if trainer.is_global_zero:
            self._write()

    def _write(self) -> None:
        document = finite({"tasks": self.tasks, "measured": self.measured})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, [json.dumps(document, allow_nan=False).encode()])
        except OSError as error:  # such as a full disk, which training survives
            log.warning("%s cannot be written: %s", self.path, error.strerror)


def summary(tables: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, float]:
    """Part to cosines `[T, T]`, as metrics (see `GradientConflict`); those not known are left out."""
    named = {}
    for part, table in tables.items():
        pairs = [value for row, values in enumerate(table) for value in values[:row] if math.isfinite(value)]
        own = [values[row] for row, values in enumerate(table) if math.isfinite(values[row])]
        if pairs:
            named[f"gradient_conflict/{part}/cosine"] = sum(pairs) / len(pairs)
            named[f"gradient_conflict/{part}/conflicting"] = sum(value < 0 for value in pairs) / len(pairs)
        if own:
            named[f"gradient_conflict/{part}/own_cosine"] = sum(own) / len(own)
    return named
