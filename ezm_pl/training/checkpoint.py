"""Checkpoints: what they hold beside Lightning's own state, and how they are read without running code."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from ezm_pl.replay import ReplayError
from ezm_pl.spec import Experiment, SpecError, build_experiment, differences, dump_experiment
from ezm_pl.training.data import SelfPlayDataModule

LAST, BEST, REPLAY = "last.ckpt", "best.ckpt", "replay.npz"
_PARTS = ("state_dict", "optimizer_states", "loops", "global_step", "SelfPlayDataModule")
_MAY_DIFFER = (
    "name", "preset", "eval.", "trainer.", "tracking.", "env.worker", "env.max_worker_restarts",
    "replay.save", "collect.max_lead", "collect.env_steps",
    "optim.max_skipped_updates", "optim.total_updates", "optim.final_updates",
)  # fmt: skip
"""Fields under these may differ between a checkpoint and the run that goes on from it."""


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of another experiment, in one line."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's contents, loaded with `weights_only`.

    Raises:
        CheckpointError: the file is missing or is not a checkpoint of this project.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"{path}: not a readable checkpoint: {reason[0] if reason else error!r}"
        ) from None
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("experiment"), str):
        raise CheckpointError(f"{path}: holds no experiment, so it is not a checkpoint of this project")
    missing = [part for part in _PARTS if part not in checkpoint]
    if missing:
        raise CheckpointError(f"{path}: is damaged, it lacks {', '.join(missing)}")
    return checkpoint


def checkpoint_experiment(path: Path) -> Experiment:
    """The spec that a checkpoint was trained by.

    Raises:
        CheckpointError: no checkpoint, or a spec that this version cannot read.
    """
    try:
        return build_experiment(yaml.safe_load(read_checkpoint(path)["experiment"]), source=str(path))
    except SpecError as error:
        raise CheckpointError(str(error)) from None


def check_same_experiment(path: Path, experiment: Experiment) -> None:
    """Raises `CheckpointError` naming every field in which the checkpoint's experiment is another one."""
    changed = differences(checkpoint_experiment(path), experiment, ignore=_MAY_DIFFER)
    if changed:
        raise CheckpointError(f"{path}: is of another spec, so it cannot be resumed: {'; '.join(changed)}")


class BestCheckpoint(ModelCheckpoint):
    """Keeps the checkpoint of the best `eval/score`; an evaluation that was interrupted has none.

    Args:
        directory: where to write.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(
            directory,
            filename=BEST.removesuffix(".ckpt"),
            monitor="eval/score",
            mode="max",
            enable_version_counter=False,
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves when the score is the best so far."""
        if self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)


class LastCheckpoint(Callback):
    """Keeps `last.ckpt` and the replay buffers beside it: every few updates, at the end, on an error.

    Args:
        directory: where to write.
        every: updates between saves.
        replay: whether to write the buffers.
    """

    def __init__(self, directory: Path, every: int, *, replay: bool) -> None:
        self.directory, self.every, self.replay = directory, every, replay
        self._saved = -1

    def save(self, trainer: Trainer) -> None:
        """Writes both files, each atomically, unless this update's are there."""
        if trainer.global_step == self._saved:
            return
        self._saved = trainer.global_step
        trainer.lightning_module.finish_update()  # type: ignore[operator]
        self.directory.mkdir(parents=True, exist_ok=True)
        data = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, SelfPlayDataModule):
            data.hear_steps()
        if self.replay and isinstance(data, SelfPlayDataModule):
            data.buffer.save(self.directory / _shard(trainer.global_rank))
        trainer.save_checkpoint(self.directory / LAST)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Stores the spec in every checkpoint."""
        checkpoint["experiment"] = dump_experiment(pl_module.experiment)  # type: ignore[arg-type]

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Saves when it is time."""
        if trainer.global_step % self.every == 0:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the end of training, also of one that was asked to stop."""
        self.save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves what there is when training fails or is interrupted."""
        # Before the first update (of a resumed run, too) there is nothing that is not saved already.
        # A rank that fails alone cannot save: all ranks do it together.
        in_step = trainer.datamodule.in_step  # type: ignore[attr-defined]
        if in_step and trainer.state.fn == "fit" and trainer.optimizers and trainer.global_step > 0:
            self.save(trainer)


def load_replay(checkpoint: Path, data: SelfPlayDataModule, rank: int = 0) -> bool:
    """Restores the buffers that lie beside a checkpoint; whether there were any.

    Raises:
        CheckpointError: they are there but do not fit.
    """
    path = checkpoint.parent / _shard(rank)
    if not path.is_file():
        return False
    try:
        data.buffer.load(path)
    except ReplayError as error:
        raise CheckpointError(str(error)) from None
    return True


def _shard(rank: int) -> str:
    return REPLAY if rank == 0 else f"replay-{rank}.npz"
