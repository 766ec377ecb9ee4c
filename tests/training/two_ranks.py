"""A small run on two CPU ranks, as a script: `python two_ranks.py FOLDER MOMENT OVERRIDES`.

Lightning starts this file once more as rank 1. Each rank writes what it ended with to
`FOLDER/rank-<rank>.pt`, and says `UPDATE <rank> <updates>` as it goes. `MOMENT` is what happens on the way:

    none           nothing
    killed         rank 1 is killed (SIGKILL) at its third update
    physics        rank 1's environments break after two updates
    learner        rank 1's training step fails at its third update
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import torch
from fit_helpers import fit_experiment
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from ezm_pl.selfplay import collector
from ezm_pl.spec.presets import merge
from ezm_pl.training import SelfPlayDataModule, fit


class Witness(Callback):
    """Writes down what this rank sees, and does what the moment wants."""

    def __init__(self, moment: str) -> None:
        self.moment = moment
        self.batches: list[torch.Tensor] = []
        self.observed: list[torch.Tensor] = []
        self.steps: list[int] = []

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.module, self.data = module, trainer.datamodule  # type: ignore[attr-defined]

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, index: int) -> None:
        self.batches.append(batch.windows.task.clone())
        self.observed.append(batch.windows.observation[:, 0].clone())
        if self.moment == "learner" and trainer.global_rank == 1 and trainer.global_step == 2:
            raise ZeroDivisionError("the learner broke")

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        data: SelfPlayDataModule = trainer.datamodule  # type: ignore[attr-defined]
        assert data.collector is not None
        self.steps.append(int(data.collector.control_steps.min()))
        print(f"UPDATE {trainer.global_rank} {trainer.global_step}", flush=True)
        if self.moment == "killed" and trainer.global_rank == 1 and trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.moment == "physics" and trainer.global_rank == 1 and trainer.global_step == 2:
            collector.MultiTaskVectorEnv.step = broken  # type: ignore[method-assign]


def broken(*_: Any) -> None:
    raise ZeroDivisionError("physics broke")


def main() -> None:
    folder, moment, overrides = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    witness = Witness(moment)
    experiment = fit_experiment(merge({"trainer": {"devices": 2, "strategy": "ddp"}}, overrides))
    # Only rank 0 knows the run's folder.
    known = folder if os.environ.get("LOCAL_RANK", "0") == "0" else Path("nowhere")
    result = fit(experiment, known, callbacks=[witness])
    rank = witness.data.ranks.rank
    torch.save(
        {
            "status": result.status,
            "updates": result.updates,
            "env_steps": torch.from_numpy(result.env_steps),
            "own_steps": torch.from_numpy(witness.data.sync._steps[rank]),
            "returns": [torch.from_numpy(e.returns_ezm) for e in result.evaluations],
            "state": witness.module.state_dict(),
            "batches": witness.batches,
            "observed": witness.observed,
            "stored": len(witness.data.buffer),
            "blocks": witness.data.buffer.blocks.num_blocks,
            "threads": [t.name for t in threading.enumerate()],
        },
        folder / f"rank-{rank}.pt",
    )


if __name__ == "__main__":  # worker processes import this file, too
    main()
