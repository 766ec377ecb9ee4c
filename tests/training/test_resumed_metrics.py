"""What a resumed run logs: evaluations that were cut off, metrics at their own updates, counted faults."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fit_helpers import CtrlC, contents, fit_experiment, last, rewritten, run
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import Logger

from ezm_pl.training.agent_module import AgentModule
from ezm_pl.training.fault_tolerance.saving import LastCheckpoint


class Steps(Logger):
    """Remembers at which steps which metrics were logged, and their last values."""

    name, version = "steps", "0"

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[str, list[int]] = {}
        self.value: dict[str, float] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for name in metrics:
            self.of.setdefault(name, []).append(int(step or 0))
        self.value |= metrics

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


def test_an_evaluation_that_was_cut_off_is_made_up_for(tmp_path: Path) -> None:
    """Update 3 is saved, then evaluated; killed in between, the resumed run evaluates update 3 first."""
    spec = fit_experiment(
        {
            "eval": {"every": 3},
            "trainer": {"checkpoint_every": 6, "log_every": 1},
            "optim": {"total_updates": 6},
        }
    )

    class Copy(Callback):
        def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
            if trainer.global_step == 3:
                next(c for c in trainer.callbacks if isinstance(c, LastCheckpoint)).finish()  # type: ignore[attr-defined]
                shutil.copytree(tmp_path / "checkpoints", tmp_path / "killed" / "checkpoints")

    straight, resumed = Steps(), Steps()
    run(spec, tmp_path, Copy(), logger=straight)
    killed = tmp_path / "killed"
    result = run(spec, killed, logger=resumed, checkpoint=last(killed))
    assert straight.of["eval/score"] == resumed.of["eval/score"] == [3, 6]
    assert straight.of["train/loss/total"] == [1, 2, 3, 4, 5, 6]
    assert resumed.of["train/loss/total"] == [4, 5, 6]
    assert [e.updates for e in result.evaluations] == [3, 6]


def test_one_in_the_middle_of_which_the_run_failed_is_made_up_for(tmp_path: Path) -> None:
    spec = fit_experiment({"eval": {"every": 3}, "trainer": {"log_every": 3}})

    class Fails(Callback):
        def on_validation_batch_start(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == 3:
                raise OSError("in the middle")

    with pytest.raises(OSError, match="in the middle"):
        run(spec, tmp_path, Fails())
    resumed = Steps()
    run(spec, tmp_path, logger=resumed, checkpoint=last(tmp_path))
    assert resumed.of["eval/score"] == [3, 6]
    assert resumed.of["train/loss/total"] == [6]


def test_an_evaluation_that_was_done_is_not_repeated(tmp_path: Path) -> None:
    spec = fit_experiment({"eval": {"every": 3}, "trainer": {"log_every": 1}})
    run(spec, tmp_path, CtrlC("training", update=4))
    resumed = Steps()
    run(spec, tmp_path, logger=resumed, checkpoint=last(tmp_path))
    assert resumed.of["eval/score"] == [6]
    assert resumed.of["train/loss/total"] == [5, 6]


def test_metrics_are_those_of_the_update_that_they_stand_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger, made, log_update = Steps(), [], AgentModule._log_update

    def logged(self: AgentModule, *arguments: Any) -> None:
        made.append(self.global_step)
        log_update(self, *arguments)

    monkeypatch.setattr(AgentModule, "_log_update", logged)
    run(fit_experiment({"trainer": {"log_every": 3}}), tmp_path, logger=logger)
    assert logger.of["train/loss/total"] == [3, 6] and made == [1, 3, 6]


class Diverges(Callback):
    """Two more diverged episodes with the first update of a session."""

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        collector = trainer.datamodule.collector  # type: ignore[attr-defined]
        collector.diverged = max(2, collector.diverged)


def test_faults_are_counted_on_by_a_resumed_run(tmp_path: Path) -> None:
    spec, first, resumed = fit_experiment({"trainer": {"log_every": 1}}), Steps(), Steps()
    run(spec, tmp_path, Diverges(), CtrlC("training", update=4), logger=first)
    assert first.value["selfplay/diverged_episodes"] == 2
    state = contents(last(tmp_path))["SelfPlayDataModule"]["faults"]
    assert state.tolist() == [2, 0]
    rewritten(last(tmp_path), lambda c: c["SelfPlayDataModule"]["faults"].copy_(torch.tensor([2, 5])))
    run(spec, tmp_path, Diverges(), logger=resumed, checkpoint=last(tmp_path))
    assert resumed.value["selfplay/diverged_episodes"] == 4
    assert resumed.value["selfplay/worker_restarts"] == 5
    assert contents(last(tmp_path))["SelfPlayDataModule"]["faults"].tolist() == [4, 5]
