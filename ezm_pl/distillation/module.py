"""The LightningModule of a distillation: the student, its update, its evaluation beside the planner's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from ezm_pl.distillation.data import DistillationData
from ezm_pl.distillation.rows import Labelled
from ezm_pl.distillation.teacher import Teacher
from ezm_pl.search import ActFn
from ezm_pl.spec import dump_experiment
from ezm_pl.spec.distillation import Distillation, dump_distillation
from ezm_pl.training import Evaluation
from ezm_pl.training.evaluation import Evaluator
from ezm_pl.training.lightning_internals import begin_with_evaluation
from ezm_pl.training.ranks import Ranks

FORMAT = 1
"""Of a student's checkpoint: another one cannot be read."""
SOLVED = 0.05
"""Normalised score from which a planner has learned a task, so that a share of it can be kept."""
_REFRESH_EVERY = 100
"""Updates between hand-overs of the student's weights to the thread that plays."""


@dataclass(frozen=True)
class Distilled:
    """An evaluation of the student beside the planner's, on the same episodes.

    Attributes:
        student, planner: returns and scores of both.
    """

    student: Evaluation
    planner: Evaluation

    def kept_of(self, task: str) -> float:
        """The student's normalised score as a share of the planner's; NaN where that is below `SOLVED`."""
        planner = self.planner.score_of(task)
        return self.student.score_of(task) / planner if planner >= SOLVED else math.nan

    @property
    def kept(self) -> float:
        """Mean share kept over the tasks that the planner has learned; NaN if it has none."""
        shares = [share for share in map(self.kept_of, self.student.tasks) if not math.isnan(share)]
        return float(np.mean(shares)) if shares else math.nan

    def metrics(self) -> dict[str, float]:
        """Under the names that they are tracked by."""
        named = self.student.metrics() | {"eval/kept": self.kept, "planner/score": self.planner.score}
        for task in self.student.tasks:
            named[f"eval/{task}/kept"] = self.kept_of(task)
            named[f"planner/{task}/return"] = self.planner.return_of(task)
        return {name: value for name, value in named.items() if not math.isnan(value)}


class DistillationModule(L.LightningModule):
    """A student that imitates a teacher's planner.

    Args:
        spec: of the distillation.
        teacher: whose planner is imitated, and on whose tasks.

    Attributes:
        evaluations: of this session, in order.
        planner: the planner's own evaluation, made once per run; None before the first.
    """

    def __init__(self, spec: Distillation, teacher: Teacher) -> None:
        super().__init__()
        self.spec, self.teacher = spec, teacher
        self.student = teacher.new_student(spec)
        judged = teacher.experiment.eval.model_copy(update={"episodes": spec.episodes})
        judged_experiment = teacher.experiment.model_copy(update={"eval": judged})
        self.evaluator = Evaluator(judged_experiment, Ranks())
        self.evaluations: list[Distilled] = []
        self.planner: Evaluation | None = None

    @property
    def data(self) -> DistillationData:
        """The data module that training runs with."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def configure_optimizers(self) -> Any:
        """Adam; the learning rate falls in a straight line to zero."""
        optimizer = torch.optim.Adam(self.student.parameters(), lr=self.spec.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._learning_rate_share)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def _learning_rate_share(self, update: int) -> float:
        return max(0.0, 1 - update / self.spec.updates)

    def on_train_start(self) -> None:
        """Hands the first weights to the labelling thread and starts it."""
        self.data.store.publish(self.global_step, self.student.state_dict())
        self.data.start(self.student)

    def training_step(self, batch: Labelled, batch_idx: int) -> Tensor:
        """The imitation loss of a batch."""
        self.student.normalizer.update(batch.observation)
        loss = self.student.imitation_loss(*batch)
        # As Lightning writes.
        if (self.global_step + 1) % self.spec.log_every == 0 or self.trainer.should_stop:
            data = self.data
            self.log_dict(
                {
                    "step": float(self.global_step + 1),  # Lightning's would be one less
                    "train/loss/imitation": loss.detach(),
                    "train/rows_per_task": float(data.rows.least),
                    "env_steps": float(data.env_steps),
                }
            )
        return loss

    def on_train_batch_end(self, *args: Any) -> None:
        """Counts the update, and hands newer weights on when it is time."""
        self.data.pacing.updated(self.global_step)
        if self.global_step % _REFRESH_EVERY == 0:
            self.data.store.publish(self.global_step, self.student.state_dict())

    def validation_step(self, batch: int, batch_idx: int) -> None:
        """Episodes of all tasks by the student; before the first ones, the same episodes by the planner."""
        if self.planner is None:
            self.planner = self._evaluate(self.teacher.act, searched=True)
        student = self._evaluate(self._act, searched=False) if self.planner is not None else None
        if self.planner is None or student is None:  # asked to stop
            return
        found = Distilled(student, self.planner)
        self.evaluations.append(found)
        self.log_dict(found.metrics(), batch_size=1)

    def _act(self, model: Any, observation: Tensor, task: Tensor, generator: torch.Generator) -> Tensor:
        with torch.inference_mode():
            action: Tensor = self.student(observation.to(self.device), task.to(self.device))
        return action

    def _evaluate(self, act: ActFn, *, searched: bool) -> Evaluation | None:
        """Returns of all tasks; None where the run was asked to stop."""
        teacher = self.teacher
        played = self.evaluator.play(teacher.judged, act, lambda: bool(self.trainer.should_stop))
        if played is None:
            return None
        env_steps, returns = self.data.env_steps, played[1:]
        return Evaluation.of(teacher.experiment, self.global_step, env_steps, returns, searched=searched)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what makes the checkpoint whole: both specs, the teacher, the planner's returns."""
        due = self.global_step > 0 and self.global_step % self.spec.eval_every == 0
        if due and all(found.student.updates != self.global_step for found in self.evaluations):
            begin_with_evaluation(checkpoint)
        checkpoint["student_format"] = FORMAT
        checkpoint["distillation"] = dump_distillation(self.spec)
        checkpoint["teacher"] = {
            "experiment": dump_experiment(self.teacher.experiment),
            "run_id": self.teacher.run_id,
            "checkpoint": str(self.teacher.checkpoint.resolve()),
            "updates": self.teacher.updates,
        }
        if self.planner is not None:
            returns = self.planner.returns_ezm, self.planner.returns_humanoidbench
            checkpoint["planner_returns"] = [torch.from_numpy(each) for each in returns]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes up the planner's returns, so that it is not evaluated again."""
        if "planner_returns" in checkpoint:
            teacher, returns = self.teacher, [each.numpy() for each in checkpoint["planner_returns"]]
            self.planner = Evaluation.of(teacher.experiment, teacher.updates, teacher.env_steps, returns)

    def teardown(self, stage: str) -> None:
        """Closes the environments of evaluations."""
        self.evaluator.close()
