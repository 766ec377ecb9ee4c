"""Runs on this disk: `mlruns/runs/<run id>/checkpoints/*.ckpt`, found by id, by path, or as the last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ezm_pl.spec import SpecError, as_spec_error
from ezm_pl.spec.errors import nearest
from ezm_pl.tracking.console import say

if TYPE_CHECKING:
    from rich.console import Console

RUNS = Path("mlruns/runs")
LAST = Path("checkpoints/last.ckpt")
PREVIOUS = Path("checkpoints/previous.ckpt")
BEST = Path("checkpoints/best.ckpt")
SPEC = Path("experiment.yaml")
STORE = Path("tracking_uri.txt")
"""In a run's folder: the address of its tracking store, unless that holds a password."""


@dataclass(frozen=True)
class SavedRun:
    """A run's folder and one checkpoint of it.

    Attributes:
        directory: the folder; its name is the MLflow run id.
        checkpoint: the checkpoint meant, `checkpoints/last.ckpt` unless another file was named; it may
            not exist yet, where a run was stopped before its first update, and lie outside the folder,
            where a copy was named.
    """

    directory: Path
    checkpoint: Path

    @property
    def run_id(self) -> str:
        return self.directory.name

    @property
    def age(self) -> float:
        """When the run was last written, in seconds since the epoch."""
        return max(path.stat().st_mtime for path in (self.checkpoint, self.directory / SPEC) if path.exists())

    @property
    def recorded_uri(self) -> str | None:
        """The address of the run's tracking store; None where it was not recorded."""
        path = self.directory / STORE
        return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def last_recorded_uri() -> str | None:
    """The address of the tracking store of the run that was written last; None without one."""
    runs = saved_runs()
    return max(runs.values(), key=lambda run: run.age).recorded_uri if runs else None


def find_run(reference: str, *, option: str) -> SavedRun:
    """The run behind `last`, a run id (or the start of one), a run folder or a checkpoint file.

    A checkpoint itself says which run it is of, so that copies are found too.

    Args:
        reference: what was typed; `last` is the run that was written last.
        option: how the reference was given, for messages: `--resume`, `RUN`.

    Raises:
        SpecError: nothing there, or more than one run.
    """
    runs = saved_runs()
    if reference == "last":
        if not runs:
            raise SpecError(f"{option} last: there is no run in {RUNS} yet; `ezm train SPEC` makes one")
        return max(runs.values(), key=lambda run: run.age)
    path = Path(reference)
    if path.is_dir() and not (path / SPEC).is_file():
        raise SpecError(f"{option} {reference}: neither a run folder nor a checkpoint (RUN_FOLDER/{LAST})")
    if path.exists():
        saved = _of_path(path)
        if saved is None:
            raise SpecError(
                f"{option} {reference}: neither a run folder nor a checkpoint that says which run it is of"
            )
        return saved
    return run_by_id(reference, runs, option=option, missing="checkpoint, run folder or run id")


def run_by_id(
    reference: str, runs: Mapping[str, SavedRun], *, option: str, missing: str, kind: str = "runs"
) -> SavedRun:
    """The one of `runs` whose id begins so; `SpecError` where none does (no such `missing`), or several."""
    matches = sorted(name for name in runs if name.startswith(reference))
    if len(matches) == 1:
        return runs[matches[0]]
    if matches:
        raise SpecError(f"{option} {reference}: {len(matches)} {kind} start like this: {', '.join(matches)}")
    hint = nearest(reference, ["last", *runs])
    raise SpecError(f"{option} {reference}: no such {missing} in {RUNS} ({len(runs)} {kind}){hint}")


def find_checkpoint(reference: str, *, option: str) -> SavedRun:
    """As `find_run`, for what needs a checkpoint that is there; `last` is the last run that has one.

    A file that does not say which run it is of will do; its folder then stands for the run's.

    Raises:
        SpecError: as `find_run`, and a run without a checkpoint.
    """
    if reference == "last":
        checkpoints = sorted(RUNS.glob(f"*/{LAST}"), key=lambda path: path.stat().st_mtime)
        if checkpoints:
            return SavedRun(checkpoints[-1].parents[1], checkpoints[-1])
        raise SpecError(f"{option} last: no run in {RUNS} has a checkpoint yet; `ezm train SPEC` makes one")
    path = Path(reference)
    if path.is_file():
        return _of_path(path) or SavedRun(path.parent, path)
    saved = find_run(reference, option=option)
    if not saved.checkpoint.is_file():
        raise SpecError(
            f"{option} {reference}: {saved.directory} has no {LAST}: it stopped before its first update"
        )
    return saved


@contextmanager
def checkpoint_errors(named: str) -> Iterator[None]:
    """Inside, a checkpoint that cannot be read is a `SpecError` that begins with how it was `named`."""
    from ezm_pl.training import CheckpointError

    with as_spec_error(CheckpointError, named=named):
        yield


def usable_checkpoint(reference: str, console: Console, *, option: str = "RUN") -> Path:
    """The checkpoint that `option` names or, with a line on `console`, the one before where it is damaged.

    Raises:
        SpecError: as `find_checkpoint`.
        CheckpointError: both are damaged.
    """
    return newest_usable(find_checkpoint(reference, option=option).checkpoint, console)


def newest_usable(checkpoint: Path, console: Console) -> Path:
    """`newest_valid` without replay, its note printed on `console`."""
    from ezm_pl.training import newest_valid

    path, note = newest_valid(checkpoint, replay=False)
    if note:
        say(console, note, "yellow")
    return path


def saved_runs(spec: Path = SPEC, checkpoint: Path = LAST) -> dict[str, SavedRun]:
    """Run id to the run, of the folders that hold such a spec."""
    return {
        folder.name: SavedRun(folder, folder / checkpoint)
        for folder in RUNS.glob("*")
        if (folder / spec).is_file()
    }


def _of_path(path: Path) -> SavedRun | None:
    """The run of a checkpoint, or of a folder laid out as a run's; None where neither says which it is."""
    from ezm_pl.training import checkpoint_run_id

    checkpoint = path / LAST if path.is_dir() else path
    folder = checkpoint.resolve().parent.parent
    run_id = checkpoint_run_id(checkpoint)
    if run_id is None:
        return SavedRun(folder, checkpoint) if folder / LAST.parent == checkpoint.resolve().parent else None
    return SavedRun(folder if folder.name == run_id else RUNS / run_id, checkpoint)
