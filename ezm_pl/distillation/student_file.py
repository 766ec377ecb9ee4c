"""A student's checkpoint: how it is written, and read without running code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ezm_pl.distillation.module import FORMAT
from ezm_pl.distillation.student import Student
from ezm_pl.spec import Experiment, build_experiment
from ezm_pl.spec.distillation import Distillation
from ezm_pl.spec.yaml_file import parse_yaml
from ezm_pl.training import CheckpointError
from ezm_pl.training.fault_tolerance.checkpoint import check_fingerprint, load_contents
from ezm_pl.training.fault_tolerance.checkpoint_io import CheckpointFiles
from ezm_pl.training.from_checkpoint import sizes_of

STUDENT = Path("checkpoints/student.ckpt")
"""The checkpoint of a distilled run, in its folder."""


class StudentFiles(CheckpointFiles):
    """How a student's checkpoints get onto this disk and back."""

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads `path`, see `load_student`."""
        return _read(Path(path))


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
        CheckpointError: no such file, damaged, or no student's; a task that cannot be made here.
    """
    contents = _read(checkpoint)
    with _damaged(checkpoint):
        spec = Distillation.model_validate(parse_yaml(contents["distillation"], source=str(checkpoint)))
        teacher = contents["teacher"]
        experiment = build_experiment(
            parse_yaml(teacher["experiment"], source=str(checkpoint)), source=str(checkpoint)
        )
    task_sizes = sizes_of(experiment, checkpoint)
    with _damaged(checkpoint):
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


@contextmanager
def _damaged(checkpoint: Path) -> Iterator[None]:
    """Inside, what wrong contents make fail is a `CheckpointError`."""
    try:
        yield
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
    if "fingerprint" in contents:  # older ones have none
        check_fingerprint(checkpoint, contents)
    return contents
