"""Runs a distillation under Lightning's Trainer, and reads what it leaves."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger

from ezm_pl.distillation.data import DistillationData
from ezm_pl.distillation.module import FORMAT, DistillationModule, Distilled
from ezm_pl.distillation.student import Student
from ezm_pl.distillation.teacher import Teacher
from ezm_pl.envs import sizes
from ezm_pl.spec import Experiment, build_experiment
from ezm_pl.spec.distillation import Distillation
from ezm_pl.spec.yaml_file import parse_yaml
from ezm_pl.training import CheckpointError
from ezm_pl.training.fault_tolerance.checkpoint import load_contents
from ezm_pl.training.fault_tolerance.stopping import stops_in_order
from ezm_pl.training.lightning_internals import UpdatesBar, no_advice

STUDENT = Path("checkpoints/student.ckpt")
"""The checkpoint of a distilled run, in its folder."""


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
    resume: bool,
) -> DistillResult:
    """Trains and evaluates a student to the end of its budget, on one device.

    Args:
        spec: what to run.
        teacher: whose planner is imitated.
        run_dir: the checkpoint goes to `STUDENT` in it.
        logger: where metrics go.
        callbacks: further Lightning callbacks.
        resume: go on from that checkpoint.

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
    )
    trainer = L.Trainer(
        accelerator=teacher.experiment.trainer.accelerator,
        devices=1,
        max_steps=spec.updates,
        max_epochs=-1,
        val_check_interval=spec.eval_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=spec.log_every,
        logger=logger,
        callbacks=[saving, DistillationBar(), *callbacks],
        enable_model_summary=False,
        default_root_dir=run_dir,
    )
    asked = threading.Event()

    def ask() -> None:
        asked.set()
        trainer.should_stop = True

    with stops_in_order(data, module, asked=asked.is_set, ask=ask), no_advice():
        if not resume:
            trainer.validate(module, data, verbose=False)
        if not asked.is_set():
            trainer.fit(module, data, ckpt_path=path if resume else None, weights_only=True)
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


@dataclass(frozen=True)
class SavedStudent:
    """What a student's checkpoint holds.

    Attributes:
        student: on the CPU, in eval mode.
        spec: of the distillation.
        experiment: the teacher's, with the tasks.
        teacher: the checkpoint that was distilled, where it then lay.
        teacher_run: id of its MLflow run; None where it did not say.
        teacher_updates: how many had made it.
        updates: of the student.
    """

    student: Student
    spec: Distillation
    experiment: Experiment
    teacher: Path
    teacher_run: str | None
    teacher_updates: int
    updates: int


def load_student(checkpoint: Path) -> SavedStudent:
    """Reads a student's checkpoint, without running code from it.

    Raises:
        CheckpointError: no such file, damaged, or no student's.
    """
    contents = _read(checkpoint)
    try:
        spec = Distillation.model_validate(parse_yaml(contents["distillation"], source=str(checkpoint)))
        teacher = contents["teacher"]
        experiment = build_experiment(
            parse_yaml(teacher["experiment"], source=str(checkpoint)), source=str(checkpoint)
        )
        task_sizes = sizes(experiment.tasks)
        student = Student(spec.student, task_sizes.obs_size, torch.as_tensor(task_sizes.action_mask))
        weights = contents["state_dict"].items()
        student.load_state_dict({name.removeprefix("student."): weight for name, weight in weights})
        return SavedStudent(
            student.eval(),
            spec,
            experiment,
            Path(teacher["checkpoint"]),
            teacher["run_id"],
            int(teacher["updates"]),
            int(contents["global_step"]),
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{checkpoint}: is damaged: {' '.join(str(error).split())}") from None


def is_student(checkpoint: Path) -> bool:
    """Whether a file is a student's checkpoint; False where it cannot be read."""
    try:
        _read(checkpoint)
    except CheckpointError:
        return False
    return True


def _read(checkpoint: Path) -> dict[str, Any]:
    contents = load_contents(checkpoint)
    if not isinstance(contents, dict) or "distillation" not in contents:
        raise CheckpointError(f"{checkpoint}: is no student's checkpoint (`ezm distill` makes one)")
    if contents.get("student_format") != FORMAT:
        raise CheckpointError(f"{checkpoint}: is of another version of this project and cannot be read")
    return contents
