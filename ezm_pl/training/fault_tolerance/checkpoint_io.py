"""How Lightning's saves reach the disk: safely, or held in memory until their thread writes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor

from ezm_pl.training.fault_tolerance.checkpoint import read_checkpoint, write_checkpoint


class CheckpointFiles(CheckpointIO):
    """How Lightning's checkpoints get onto this disk and back.

    A save to a path that is held is not written but kept as a copy, to be written later.
    """

    def __init__(self) -> None:
        self._hold: Path | None = None
        self._held: dict[str, Any] | None = None

    @contextmanager
    def hold(self, path: Path) -> Iterator[None]:
        """Inside, what Lightning saves to `path` is kept in memory: ranks meet there, so it may not fail."""
        self._hold = path
        try:
            yield
        finally:
            self._hold = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Writes `checkpoint` safely to `path`, or holds it."""
        if Path(path) == self._hold:
            self._held = _copied(checkpoint)
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(checkpoint, Path(path))

    def take(self) -> dict[str, Any] | None:
        """The checkpoint that is held; None on a rank that is given none to save."""
        held, self._held = self._held, None
        return held

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads `path`, see `read_checkpoint`."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Deletes `path`."""
        Path(path).unlink(missing_ok=True)


def _copied(value: Any) -> Any:
    """Nested dicts and lists with copies of their tensors in memory of the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return value


def files_of(trainer: Trainer) -> CheckpointFiles:
    """The plugin that `trainer` was made with."""
    files = trainer.strategy.checkpoint_io
    assert isinstance(files, CheckpointFiles)
    return files
