"""Callbacks that save: the best checkpoint, and the last one with the replay that belongs to it."""

from __future__ import annotations

import copy
import logging
import os
import secrets
import shutil
import threading
import time
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.loggers import Logger

from ezm_pl.replay import ReplayError, ReplayStore
from ezm_pl.replay.atomic_write import sync_folder
from ezm_pl.replay.storage import Plan
from ezm_pl.spec import dump_experiment
from ezm_pl.training.data import SelfPlayDataModule
from ezm_pl.training.fault_tolerance.checkpoint import (
    BEST,
    FORMAT,
    LAST,
    PREVIOUS,
    CheckpointError,
    read_checkpoint,
    replay_of,
    shard,
    write_checkpoint,
)
from ezm_pl.training.fault_tolerance.checkpoint_io import files_of
from ezm_pl.training.lightning_internals import begin_with_evaluation

log = logging.getLogger(__name__)

SHORT_WAIT = 0.5
"""Seconds that training waits for a save: a small one ends within it, a large one continues in the thread."""
_METRICS = 5.0
"""Seconds that a save waits for the metrics of its update to be logged, and as long for them to be sent."""
_OTHER_RANKS = 600.0
"""Seconds that rank 0 waits for the others' shards before it gives a save up."""


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
        self.path = Path(str(self.dirpath)) / BEST  # absolute, as Lightning saves to

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves when the score is the best so far; if the disk refuses, the best one stays what it was."""
        if self.monitor not in trainer.callback_metrics:
            return
        before = copy.deepcopy(self.state_dict())
        files = files_of(trainer)
        with files.hold(self.path):
            super().on_validation_end(trainer, pl_module)
        refusal = None
        if (contents := files.take()) is not None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_checkpoint(contents, self.path)
            except OSError as error:
                refusal = str(error)
                log.warning("best checkpoint (update %s) not written: %s", trainer.global_step, refusal)
        if trainer.strategy.broadcast(refusal) is not None:
            self.load_state_dict(before)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from the best score so far, also where the run's folder has been moved or copied.

        Lightning forgets the score of another folder, and a worse checkpoint would replace the best one.
        """
        if state_dict["dirpath"] != self.dirpath:
            if not self.path.exists() or not state_dict["best_k_models"]:
                return
            here = str(self.path)
            state_dict = state_dict | {
                "dirpath": self.dirpath,
                "best_model_path": here,
                "kth_best_model_path": here,
                "best_k_models": dict.fromkeys([here], state_dict["best_model_score"]),
            }
        super().load_state_dict(state_dict)


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt`, `previous.ckpt` and the replay of both: every few updates, at the end, on an error.

    Training waits while weights, counters and priorities are copied, and `SHORT_WAIT` longer. A thread
    writes them and the replay's new blocks. When the whole save has been written and read back, `last.ckpt`
    becomes `previous.ckpt` and the new file becomes `last.ckpt`; then the files that neither needs are
    deleted. So a valid checkpoint with its replay exists at every instant.

    A kill costs the updates since the last complete save: at most twice `every`, because a save waits for
    the one before it.

    Args:
        directory: where to write.
        every: updates between saves.
        replay: whether to write the buffers.
    """

    def __init__(self, directory: Path, every: int, *, replay: bool) -> None:
        self.directory, self.every, self.replay = directory, every, replay
        self._saved = -1
        self._name: str | None = None
        self._store: ReplayStore | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._logged = threading.Event()
        # Part of every save's name, so that files of a killed session are never mixed with this one's.
        self._session = ""
        self._last_is_good = False

    def load_replay(self, checkpoint: Path, data: SelfPlayDataModule, rank: int = 0, ranks: int = 1) -> None:
        """Restores a rank's buffers from what was saved with a checkpoint, if it was saved with any.

        Raises:
            CheckpointError: they are damaged, do not fit, or were of another number of ranks.
        """
        self._last_is_good = checkpoint.resolve() == (self.directory / LAST).resolve()
        replay = replay_of(read_checkpoint(checkpoint))
        if not self.replay:
            return
        if replay is None or not shard(checkpoint, rank).is_dir():
            log.warning("%s: no replay beside it; training goes on with an empty replay", checkpoint)
            return
        name, saved_ranks = replay
        if saved_ranks != ranks:
            raise CheckpointError(
                f"{checkpoint}: its replay is that of {saved_ranks} rank(s) and this run has {ranks}; resume "
                f"on {saved_ranks}, or with replay.save=false, which starts with an empty replay"
            )
        store = ReplayStore(data.buffer, shard(checkpoint, rank))
        try:
            notes = store.load(name)
        except ReplayError as error:
            raise CheckpointError(str(error)) from None
        for note in notes:
            log.warning("%s", note)
        if checkpoint.parent.resolve() == self.directory.resolve():
            self._store = store

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives this session a name that all ranks know."""
        if not self._session:
            self._session = trainer.strategy.broadcast(secrets.token_hex(4))

    def save(self, trainer: Trainer) -> None:
        """Begins to save this update, unless it is saved already; waits for the save before it."""
        self.finish()
        if trainer.global_step == self._saved:
            return
        self._name = f"{trainer.global_step:09}-{self._session}"
        trainer.datamodule.sync.all_gather_counts()  # type: ignore[attr-defined]
        plan = self._plan(trainer) if self.replay else None
        files = files_of(trainer)
        with files.hold(self.directory / LAST):
            trainer.save_checkpoint(self.directory / LAST)
        self._saved = trainer.global_step
        arguments = (self._name, plan, files.take(), trainer.world_size, trainer.loggers)
        self._logged.clear()
        self._thread = threading.Thread(target=self._run, name="ezm-checkpoint", args=arguments)
        self._thread.start()
        self._name = None

    def metrics_logged(self) -> None:
        """Lets the save finish, as its update's metrics are logged; waits `SHORT_WAIT` for it at most."""
        if self._thread is None or self._logged.is_set():
            return
        self._logged.set()
        self._thread.join(SHORT_WAIT)

    def finish(self) -> None:
        """Waits for the save that is being written; where the disk refused it, warns, and it is due again."""
        if self._thread is None:
            return
        self._logged.set()
        self._thread.join()
        self._thread = None
        failure, self._failure = self._failure, None
        if isinstance(failure, OSError):
            log.warning("checkpoint of update %s not written, the last one stays: %s", self._saved, failure)
            self._saved = -1
        elif failure is not None:
            raise failure

    def _plan(self, trainer: Trainer) -> Plan:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if self._store is None:
            self._store = ReplayStore(data.buffer, shard(self.directory / LAST, trainer.global_rank))
        assert self._name is not None
        return self._store.begin(self._name)

    def _run(
        self,
        name: str,
        plan: Plan | None,
        contents: dict[str, Any] | None,
        ranks: int,
        loggers: list[Logger],
    ) -> None:
        try:
            if plan is not None and self._store is not None:
                self._store.write(plan)
            if contents is not None:
                if plan is not None:
                    self._wait_for_shards(name, ranks)
                self._wait_for_metrics(loggers)
                self._commit(contents)
            if self._store is not None:
                self._store.keep({name, *self._named()})
        except BaseException as error:  # noqa: BLE001 - handed to the main thread by `finish`
            self._failure = error

    def _wait_for_shards(self, name: str, ranks: int) -> None:
        missing = [shard(self.directory / LAST, rank) / f"{name}.json" for rank in range(ranks)]
        until = time.monotonic() + _OTHER_RANKS
        while missing := [path for path in missing if not path.is_file()]:
            if time.monotonic() > until:
                raise OSError(f"{missing[0]}: not written within {_OTHER_RANKS:.0f} s by its rank")
            time.sleep(0.02)

    def _wait_for_metrics(self, loggers: list[Logger]) -> None:
        # A resumed run does not repeat the saved update, so its metrics must be there before the save is.
        self._logged.wait(_METRICS)
        for logger in loggers:
            if callable(flush := getattr(logger, "flush", None)):
                flush(_METRICS)

    def _commit(self, contents: dict[str, Any]) -> None:
        last, previous = self.directory / LAST, self.directory / PREVIOUS
        new = self.directory / "next.ckpt"
        self.directory.mkdir(parents=True, exist_ok=True)
        write_checkpoint(contents, new)
        if self._last_is_good and last.is_file():
            aside = previous.with_name(f"{PREVIOUS}.tmp")
            aside.unlink(missing_ok=True)
            try:
                os.link(last, aside)
            except OSError:  # a file system without links
                shutil.copyfile(last, aside)
            os.replace(aside, previous)
            sync_folder(self.directory)
        os.replace(new, last)
        sync_folder(self.directory)
        self._last_is_good = True

    def _named(self) -> set[str]:
        """Names of the saves that the checkpoints here belong to."""
        names = set()
        for path in (self.directory / LAST, self.directory / PREVIOUS):
            try:
                replay = replay_of(read_checkpoint(path))
            except CheckpointError:
                continue
            if replay is not None:
                names.add(replay[0])
        return names

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Stores the spec in every checkpoint, and in the last one which replay belongs to it."""
        checkpoint["format"] = FORMAT
        checkpoint["experiment"] = dump_experiment(pl_module.experiment)  # type: ignore[arg-type]
        if self._name is not None and self.replay:
            checkpoint["replay"] = {"save": self._name, "ranks": trainer.world_size}
        if self._name is not None and self._owes_evaluation(trainer):
            begin_with_evaluation(checkpoint)

    @staticmethod
    def _owes_evaluation(trainer: Trainer) -> bool:
        module = trainer.lightning_module
        due = trainer.global_step > 0 and trainer.global_step % module.experiment.eval.every == 0  # type: ignore[union-attr]
        return due and all(e.updates != trainer.global_step for e in module.evaluations)  # type: ignore[union-attr]

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Saves when it is time."""
        if trainer.global_step % self.every == 0:
            self.save(trainer)

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """Lightning has logged by now."""
        self.metrics_logged()

    def on_validation_start(self, *args: Any, **kwargs: Any) -> None:
        """As above, where an evaluation comes before the next update."""
        self.metrics_logged()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the end of training, also of one that was asked to stop."""
        self.save(trainer)
        self.finish()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves what there is when training fails or is interrupted."""
        # Before the first update (of a resumed run, too) there is nothing that is not saved already.
        # A rank that fails alone cannot save: all ranks do it together.
        in_sync = trainer.datamodule.sync.ranks_in_sync  # type: ignore[attr-defined]
        if in_sync and trainer.state.fn == "fit" and trainer.optimizers and trainer.global_step > 0:
            self.save(trainer)
        self.finish()
