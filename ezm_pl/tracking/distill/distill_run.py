"""`ezm distill`: a tracked distillation from its first line to its last, however it ends."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from ezm_pl.distillation import STUDENT, DistillResult, Teacher, distill, load_student
from ezm_pl.spec import SpecError
from ezm_pl.spec.distillation import Distillation, dump_distillation, load_distillation
from ezm_pl.tracking.console import cell, say
from ezm_pl.tracking.distill.student_lookup import SPEC, find_student
from ezm_pl.tracking.results.tables import numbers_table
from ezm_pl.tracking.runs.logger import RunId, RunLogger, quiet_lightning
from ezm_pl.tracking.runs.mlflow_run import Run, SpecFile, new_run, reopened_run
from ezm_pl.tracking.runs.params import field_params
from ezm_pl.tracking.runs.run_lookup import SavedRun, checkpoint_errors, usable_checkpoint
from ezm_pl.tracking.runs.tracked import Work, track
from ezm_pl.tracking.tasks import check_tasks

if TYPE_CHECKING:
    from ezm_pl.distillation import Distilled

_FIXED = ("seed", "student", "episodes")
"""Fields that a resumed distillation cannot change."""


def distill_run(
    reference: str, spec_file: str | None, overrides: Sequence[str], *, resume: str | None, console: Console
) -> int:
    """Distils a run's planner as an MLflow run of its own, or goes on with one.

    Args:
        reference: the teacher: `last`, a run id, a run folder or a checkpoint; not used with `resume`.
        spec_file: of the distillation; None: the defaults, or with `resume` the spec of the run.
        overrides: `a.b=c` settings laid over it.
        resume: the distilled run to go on with; None: a new one.
        console: where to print.

    Returns:
        The exit code: 0, 130 when interrupted, or 75 when a scheduler has ended it.

    Raises:
        SpecError: no such run, a checkpoint that cannot be read, a spec or a store that does not work here.
    """
    quiet_lightning()
    saved = find_student(resume, option="--resume") if resume else None
    with checkpoint_errors("--resume" if saved else "RUN"):
        if saved:
            spec, teacher = _resumed(saved, spec_file, overrides)
        else:
            spec = load_distillation(spec_file, overrides)
            teacher = Teacher(usable_checkpoint(reference, console), spec.seed)
    teacher.check(spec)
    check_tasks(teacher.experiment.tasks, teacher.experiment.env.backend)
    of = f"{teacher.updates:,} updates on {', '.join(teacher.experiment.tasks)}"
    notes = [(f"teacher: {teacher.checkpoint}, {of}", "")]
    return track(_Distilling(teacher.experiment, saved, console, notes, spec, teacher))


def _resumed(
    saved: SavedRun, spec_file: str | None, overrides: Sequence[str]
) -> tuple[Distillation, Teacher]:
    """The spec and the teacher of a distillation that goes on."""
    before = load_student(saved.checkpoint)
    spec = load_distillation(spec_file or saved.directory / SPEC, overrides)
    for name in _FIXED:
        if getattr(spec, name) != getattr(before.spec, name):
            raise SpecError(f"--resume: {name} cannot change; distil the run anew")
    beside = saved.directory.parent.joinpath(*before.teacher.parts[-3:])  # where the project has moved, too
    checkpoint = beside if beside.is_file() else before.teacher
    if not checkpoint.is_file():
        raise SpecError(f"--resume: its teacher {checkpoint} is not there any more")
    teacher = Teacher(checkpoint, spec.seed)
    if (teacher.run_id, teacher.updates) != (before.teacher_run, before.teacher_updates):
        raise SpecError(
            f"--resume: its teacher {checkpoint} has changed since ({before.teacher_updates:,} updates "
            f"then, {teacher.updates:,} now); distil it anew"
        )
    return spec, teacher


@dataclass(frozen=True)
class _Distilling(Work[DistillResult]):
    """A planner's distillation.

    Attributes:
        spec: of the distillation.
        teacher: whose planner it is; the experiment is its own.
    """

    spec: Distillation
    teacher: Teacher

    CHECKPOINT = STUDENT
    AGAIN = "ezm distill --resume last"

    def open(self) -> Run:
        spec, teacher, experiment = self.spec, self.teacher, self.experiment
        params = {**field_params(spec), "tasks": ", ".join(experiment.tasks)}
        record = SpecFile(SPEC, dump_distillation(spec), params)
        if self.saved:
            return reopened_run(self.saved, experiment, spec=record)
        tags = {"kind": "distillation", "teacher": teacher.run_id or str(teacher.checkpoint)}
        name = f"{spec.name} {experiment.name} seed {spec.seed}, {time.strftime('%m-%d %H:%M')}"
        return new_run(experiment, name=name, tags=tags, spec=record)

    def fit(self, run: Run, logger: RunLogger) -> DistillResult:
        return distill(
            self.spec,
            self.teacher,
            run.directory,
            logger=logger,
            callbacks=[RunId(run.run_id)],
            checkpoint=self.saved.checkpoint if self.saved else None,
        )

    def log_files(self, run: Run, *, finished: bool) -> None:
        run.log_file(run.directory / STUDENT, "checkpoints")

    def report(self, run: Run, result: DistillResult) -> None:
        console, student = self.console, run.directory / STUDENT
        if result.evaluations:
            console.print(kept_table(result.evaluations[-1]))
        minutes = f"{result.seconds / 60:.1f} minutes"
        say(console, f"{result.updates:,} updates, {result.parameters:,} parameters, {minutes}")
        if student.is_file():
            say(console, f"student: {student}; ezm export {run.run_id[:8]} --to onnx takes it out")


def kept_table(found: Distilled) -> Table:
    """Returns of planner and student on the same episodes, and the share kept of each task's score."""
    student = found.student
    episodes = student.returns_ezm.shape[1]
    table = numbers_table(
        ("task", "planner", "student", "score\nplanner", "score\nstudent", "kept"),
        title=f"Student after {student.updates:,} updates, mean of {episodes} episodes per task",
        caption="kept: the student's normalised score as a share of the planner's",
    )
    for task in student.tasks:
        table.add_row(
            task,
            f"{found.planner.return_of(task):,.1f}",
            f"{student.return_of(task):,.1f}",
            cell(found.planner.score_of(task), ".3f"),
            cell(student.score_of(task), ".3f"),
            cell(found.kept_of(task), ".1%"),
        )
    table.add_section()
    scores = cell(found.planner.score, ".3f"), cell(student.score, ".3f")
    table.add_row("mean", "", "", *scores, cell(found.kept, ".1%"))
    return table
