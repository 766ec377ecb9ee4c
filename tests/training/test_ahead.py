"""Drawing a batch ahead: order, errors, ends, and no thread left behind; within a whole run, too."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fit_worlds import UPDATES, CtrlC, draw_ahead, fit_experiment, run
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from ezm_pl.selfplay import CollectorError, collector
from ezm_pl.training.ahead import Ahead


def threads() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if t.name == "ezm-batches"}


def test_items_come_in_order_and_one_ahead() -> None:
    drawn: list[int] = []
    third = threading.Event()

    def items() -> Iterator[int]:
        for i in range(5):
            drawn.append(i)
            if i == 2:
                third.set()
            yield i

    ahead = Ahead(items())
    assert next(ahead) == 0
    assert third.wait(5), "one is ready, and the next is being drawn"
    threading.Event().wait(0.05)
    assert drawn == [0, 1, 2], "and no more than that"
    assert list(ahead) == [1, 2, 3, 4]
    ahead.stop()
    assert not threads()


def test_an_error_comes_where_its_item_would() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError("drawing broke")

    ahead = Ahead(items())
    assert next(ahead) == 1
    with pytest.raises(ZeroDivisionError, match="drawing broke"):
        next(ahead)
    assert not threads()


def test_stopping_while_nobody_takes() -> None:
    def items() -> Iterator[int]:
        while True:
            yield 0

    ahead = Ahead(items())
    ahead.stop()
    assert not threads() and list(ahead) == []


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are drawn ahead although there is no GPU."""
    draw_ahead(monkeypatch)


class Seen(Callback):
    """Whether the thread was there."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        self.names |= {t.name for t in threading.enumerate()}


@pytest.mark.usefixtures("ahead")
def test_a_run_finishes(tmp_path: Path) -> None:
    seen = Seen()
    result = run(fit_experiment(), tmp_path, seen)
    assert result.status == "finished" and result.updates == UPDATES
    assert "ezm-batches" in seen.names


@pytest.mark.usefixtures("ahead")
def test_ctrl_c(tmp_path: Path) -> None:
    result = run(fit_experiment(), tmp_path, CtrlC("training"))
    assert result.status == "interrupted" and result.updates == 3


@pytest.mark.usefixtures("ahead")
def test_a_collector_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error comes through the drawing thread."""
    step = collector.MultiTaskVectorEnv.step
    broken = threading.Event()

    def failing(self: Any, action: Any) -> Any:
        if broken.is_set():
            raise ZeroDivisionError("physics broke")
        return step(self, action)

    class Break(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            broken.set()

    monkeypatch.setattr(collector.MultiTaskVectorEnv, "step", failing)
    experiment = fit_experiment({"optim": {"total_updates": 1000}, "collect": {"env_steps": 10**6}})
    with pytest.raises(CollectorError, match="physics broke"):
        run(experiment, tmp_path, Break())
