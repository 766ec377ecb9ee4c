"""Distilled runs on this disk: `mlruns/runs/<run id>/checkpoints/student.ckpt`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from ezm_pl.distillation import STUDENT, is_student
from ezm_pl.spec import SpecError
from ezm_pl.tracking.runs.run_lookup import RUNS, SavedRun, find_checkpoint, run_by_id, saved_runs

SPEC = Path("distillation.yaml")


def find_student(reference: str, *, option: str) -> SavedRun:
    """The distilled run behind `last`, a run id (or the start of one), a run folder or a checkpoint file.

    Args:
        reference: what was typed; `last` is the distilled run whose checkpoint was written last.
        option: how the reference was given, for messages: `--resume`, `RUN`.

    Raises:
        SpecError: nothing there, more than one run, or a run without a checkpoint.
    """
    runs = saved_runs(SPEC, STUDENT)
    if reference == "last":
        saved = [run for run in runs.values() if run.checkpoint.is_file()]
        if not saved:
            raise SpecError(
                f"{option} last: no distilled run in {RUNS} has a checkpoint yet; `ezm distill RUN` makes one"
            )
        return max(saved, key=lambda run: run.checkpoint.stat().st_mtime)
    found = _of_path(Path(reference)) if Path(reference).exists() else None
    if found is None:
        found = run_by_id(reference, runs, option=option, missing="distilled run", kind="distilled runs")
    if not found.checkpoint.is_file():
        raise SpecError(
            f"{option} {reference}: {found.directory} has no {STUDENT}: it stopped before its first save"
        )
    return found


def find_policy(reference: str, *, option: str) -> tuple[SavedRun, bool]:
    """A run that has a policy, and whether it is a distilled one; `last` is whichever was saved last.

    Raises:
        SpecError: no such run, or more than one.
    """
    runs = saved_runs(SPEC, STUDENT)
    if reference == "last":
        found = []
        for distilled, find in ((True, find_student), (False, find_checkpoint)):
            with suppress(SpecError):
                found.append((find(reference, option=option), distilled))
        if not found:
            raise SpecError(f"{option} last: no run in {RUNS} has a checkpoint; `ezm train SPEC` makes one")
        return max(found, key=lambda each: each[0].checkpoint.stat().st_mtime)
    if Path(reference).exists():
        distilled = _of_path(Path(reference)) is not None
    else:
        distilled = any(name.startswith(reference) for name in runs)
        if distilled and any(name.startswith(reference) for name in saved_runs()):
            raise SpecError(f"{option} {reference}: ordinary and distilled runs in {RUNS} start like this")
    return (find_student if distilled else find_checkpoint)(reference, option=option), distilled


def _of_path(path: Path) -> SavedRun | None:
    """The distilled run of a folder or a checkpoint file; None where it is none."""
    if path.is_dir():
        return SavedRun(path, path / STUDENT) if (path / SPEC).is_file() else None
    return SavedRun(path.resolve().parent.parent, path) if is_student(path) else None
