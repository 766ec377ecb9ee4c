"""Training while its disk is full: a real one, small and in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fit_helpers import UPDATES, contents, fit_experiment, last, replay, run
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from ezm_pl.training.fault_tolerance.checkpoint import newest_valid


@pytest.fixture
def disk(tmp_path: Path, small_disk: Callable[[Path, str], None]) -> Path:
    """A folder on 64 MiB of its own."""
    folder = tmp_path / "disk"
    small_disk(folder, "64m")
    return folder


class Full(Callback):
    """Fills the disk before one update, and empties it again before a later one."""

    def __init__(self, disk: Path, first: int, until: int) -> None:
        self.filler, self.first, self.until = disk / "filler", first, until

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *args: object) -> None:
        if trainer.global_step == self.first:
            with self.filler.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(2**16))
                except OSError:
                    pass
        if trainer.global_step == self.until:
            self.filler.unlink()


def test_training_goes_on_and_saves_again(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Full from the third update to the fifth: what was saved before stays valid, later saves are whole."""
    spec = fit_experiment({"eval": {"every": 1}, "trainer": {"checkpoint_every": 1, "log_every": 1}})
    kept: list[int] = []

    class Reads(Callback):
        def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *args: object) -> None:
            if trainer.global_step == 4:
                kept.append(contents(newest_valid(last(disk))[0])["global_step"])

    result = run(spec, disk, Full(disk, 2, 5), Reads())
    assert result.status == "finished" and result.updates == UPDATES
    lines = [record.getMessage() for record in caplog.records if "not written" in record.getMessage()]
    saves = [line for line in lines if line.startswith("checkpoint of update")]
    assert len(saves) >= 2 and all(line.endswith("No space left on device") for line in saves)
    assert kept == [2]
    assert contents(last(disk))["global_step"] == UPDATES
    assert newest_valid(last(disk)) == (last(disk), None)
    assert len(replay(spec, disk)) > 0
    assert not list(disk.rglob("*.tmp"))


def test_the_best_one_stays_and_is_replaced_once_there_is_room(
    disk: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores rise with every evaluation, so that each should be saved. The run's folder is relative."""
    monkeypatch.chdir(disk.parent)
    spec = fit_experiment({"eval": {"every": 1}})
    seen: dict[int, int] = {}

    class Rises(Callback):
        def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
            module.log("eval/score", float(trainer.global_step))

        def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *args: object) -> None:
            if trainer.global_step:
                best = contents(disk / "checkpoints" / "best.ckpt")
                seen[trainer.global_step] = best["global_step"]

    run(spec, Path(disk.name), Rises(), Full(disk, 2, 4))
    assert seen == {1: 1, 2: 2, 3: 2, 4: 2, 5: 5}
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("best checkpoint")]
    assert lines == [
        f"best checkpoint (update {update}) not written: [Errno 28] No space left on device"
        for update in (3, 4)
    ]
