"""Runs a distillation under Lightning's Trainer."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger

from ezm_pl.distillation.data import DistillationData
from ezm_pl.distillation.module import DistillationModule, Distilled
from ezm_pl.distillation.student_file import STUDENT, StudentFiles
from ezm_pl.distillation.teacher import Teacher
from ezm_pl.spec.distillation import Distillation
from ezm_pl.training.fault_tolerance.stopping import stops_in_order
from ezm_pl.training.lightning_internals import UpdatesBar, no_advice


@dataclass(frozen=True)
class DistillResult:
    """How a distillation ended.

    Attributes:
        status: `interrupted` after a first Ctrl-C.
        updates: done in all.
        parameters: of the student.
        seconds: of this call.
        evaluations: in order; the last is the final one.
    """

    status: Literal["finished", "interrupted"]
    updates: int
    parameters: int
    seconds: float
    evaluations: list[Distilled]


class DistillationBar(UpdatesBar):
    """Lightning's Rich bar with the rows, the loss and the share kept."""

    def evaluated(self, pl_module: DistillationModule) -> str:
        """Whose episodes, and how many."""
        who = "planner" if pl_module.planner is None else "student"
        return (
            f"the {who}: {len(pl_module.teacher.experiment.tasks)} tasks x {pl_module.spec.episodes} episodes"
        )

    def get_metrics(  # type: ignore[override]
        self, trainer: L.Trainer, pl_module: DistillationModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Short named figures behind the bar."""
        shown: dict[str, int | str | float | dict[str, float]] = {}
        shown["rows/task"] = f"{pl_module.data.rows.least:,}"
        if "train/loss/imitation" in trainer.callback_metrics:
            shown["loss"] = f"{float(trainer.callback_metrics['train/loss/imitation']):.4f}"
        if pl_module.evaluations:
            shown["kept"] = f"{pl_module.evaluations[-1].kept:.0%}"
        return shown


def distill(
    spec: Distillation,
    teacher: Teacher,
    run_dir: Path,
    *,
    logger: Logger,
    callbacks: Sequence[Callback],
    checkpoint: Path | None,
) -> DistillResult:
    """Trains and evaluates a student to the end of its budget, on one device.

    Args:
        spec: what to run.
        teacher: whose planner is imitated.
        run_dir: the checkpoint goes to `STUDENT` in it.
        logger: where metrics go.
        callbacks: further Lightning callbacks.
        checkpoint: to go on from; None: from the beginning.

    Raises:
        SpecError: the student would not be light.
        LabellerError: labelling failed; its own exception is the cause.
    """
    started = time.perf_counter()
    data, module = DistillationData(spec, teacher), DistillationModule(spec, teacher)
    path = run_dir / STUDENT
    saving = ModelCheckpoint(
        path.parent,
        filename=path.stem,
        every_n_train_steps=spec.checkpoint_every,
        enable_version_counter=False,
        save_on_exception=True,  # Lightning answers SIGTERM with one
    )
    trainer = L.Trainer(
        accelerator=teacher.device.type,  # not the one it was trained on
        devices=1,
        max_steps=spec.updates,
        max_epochs=-1,
        val_check_interval=spec.eval_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=spec.log_every,
        logger=logger,
        plugins=[StudentFiles()],
        callbacks=[saving, DistillationBar(), *callbacks],
        enable_model_summary=False,
        default_root_dir=run_dir,
    )
    asked = threading.Event()

    def ask() -> None:
        asked.set()
        trainer.should_stop = True

    with stops_in_order(data, module, asked=asked.is_set, ask=ask), no_advice():
        if checkpoint is None:
            trainer.validate(module, data, verbose=False)
        if not asked.is_set():
            trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
            trainer.save_checkpoint(path)
        done = [found.student.updates for found in module.evaluations]
        if not asked.is_set() and trainer.global_step not in done:
            trainer.validate(module, data, verbose=False)
    return DistillResult(
        status="interrupted" if asked.is_set() else "finished",
        updates=trainer.global_step,
        parameters=module.student.parameter_count,
        seconds=time.perf_counter() - started,
        evaluations=module.evaluations,
    )
