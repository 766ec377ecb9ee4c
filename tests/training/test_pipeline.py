"""The pipeline: batches and targets stay together, errors, drains; what it uses stays as it is meanwhile."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fit_helpers import UPDATES, CtrlC, draw_ahead, fit_experiment, run
from lightning.pytorch.callbacks import Callback
from training_helpers import make_batch, make_experiment, make_sizes

from ezm_pl.selfplay import CollectorError, collector
from ezm_pl.training import EZMModule
from ezm_pl.training.batch import Batch, Targets
from ezm_pl.training.hardware import reanalysis_threads
from ezm_pl.training.pipeline import Pipeline

SIZES = make_sizes([1, 1], [2, 1])


def tagged(number: int) -> Batch:
    """A batch whose ages are `number`."""
    batch = make_batch(make_experiment(), SIZES, 4, seed=0)
    return batch._replace(age=torch.full_like(batch.age, number))


def told(batch: Batch, updates: int) -> Targets:
    """Targets that are what they were made from: the batch's age, the updates."""
    return Targets(*(batch.age, torch.tensor(updates)), *(torch.zeros(1),) * (len(Targets._fields) - 2))


def pipeline(
    draws: Iterator[Batch], reanalyse: Any = told, threads: int = 1, *, draw_ahead: bool = False
) -> Pipeline:
    """One whose updates are 10 and more, one per draw."""
    updates = itertools.count(10)
    return Pipeline(
        lambda: draws,
        reanalyse,
        lambda: next(updates),
        device=torch.device("cpu"),
        draw_ahead=draw_ahead,
        threads=threads,
    )


def alive() -> set[str]:
    return {t.name for t in threading.enumerate() if t.name.startswith("ezm-pipeline")}


@pytest.mark.parametrize("draw_ahead", [False, True])
def test_each_batch_comes_with_its_own_targets(draw_ahead: bool) -> None:
    """Also where results are asked for late, and out of order."""
    made = pipeline((tagged(number) for number in range(6)), draw_ahead=draw_ahead)
    prepared = list(made)
    for number in (3, 0, 5, 1, 4, 2):
        batch, targets = prepared[number].result()
        assert int(prepared[number].windows.age[0]) == int(batch.age[0]) == number
        assert (int(targets[0][0]), int(targets[1])) == (number, 10 + number)
    made.stop()
    assert not alive()


@pytest.mark.parametrize("draw_ahead", [False, True])
def test_an_error_is_raised_where_its_targets_would_have_come(draw_ahead: bool) -> None:
    def fails(batch: Batch, updates: int) -> Targets:
        if updates == 11:
            raise ZeroDivisionError("this batch")
        return told(batch, updates)

    made = pipeline((tagged(number) for number in range(3)), fails, draw_ahead=draw_ahead)
    first, second, third = made
    assert int(first.result()[1][1]) == 10
    with pytest.raises(ZeroDivisionError, match="this batch"):
        second.result()
    assert int(third.result()[1][1]) == 12
    made.stop()


@pytest.mark.parametrize("draw_ahead", [False, True])
def test_an_error_in_drawing_comes_where_its_batch_would(draw_ahead: bool) -> None:
    def draws() -> Iterator[Batch]:
        yield tagged(0)
        raise ZeroDivisionError("drawing broke")

    made = pipeline(draws(), draw_ahead=draw_ahead)
    steps = iter(made)
    next(steps).result()
    with pytest.raises(ZeroDivisionError, match="drawing broke"):
        next(steps)
    made.stop()
    assert not alive()


def test_one_batch_is_drawn_ahead_and_no_more() -> None:
    drawn: list[int] = []
    second = threading.Event()

    def draws() -> Iterator[Batch]:
        for number in range(4):
            drawn.append(number)
            if number == 1:
                second.set()
            yield tagged(number)

    made = pipeline(draws(), draw_ahead=True)
    steps = iter(made)
    next(steps)
    assert second.wait(5), "one is there, and the next is being drawn"
    time.sleep(0.05)
    assert drawn == [0, 1], "and no more than that"
    made.stop()


def test_drain_waits_for_all_and_after_stop_for_nothing() -> None:
    done: list[int] = []

    def slow(batch: Batch, updates: int) -> Targets:
        time.sleep(0.1)
        done.append(updates)
        return told(batch, updates)

    made = pipeline((tagged(number) for number in range(6)), slow)
    steps = iter(made)
    for _ in range(2):
        next(steps)
    made.drain()
    assert done == [10, 11]
    list(steps)
    made.stop()
    assert 15 not in done, "stop waits for one batch, not for the queue"
    made.drain()


def test_the_thread_has_torch_threads_of_its_own() -> None:
    seen: list[int] = []

    def threads(batch: Batch, updates: int) -> Targets:
        seen.append(torch.get_num_threads())
        return told(batch, updates)

    here = torch.get_num_threads()
    made = pipeline(iter([tagged(0)]), threads, here + 1)
    next(iter(made)).result()
    made.stop()
    assert seen == [here + 1] and torch.get_num_threads() == here


@pytest.mark.parametrize(
    ("cores", "latent", "ranks", "threads"),
    [(2, 128, 1, 1), (2, 512, 1, 2), (8, 128, 1, 4), (8, 512, 1, 4), (1, 512, 1, 1), (2, 512, 2, 1)],
)
def test_wide_layers_may_have_more_than_half_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, latent: int, ranks: int, threads: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr("ezm_pl.training.hardware.torch.get_num_threads", lambda: cores)
    assert reanalysis_threads(latent, ranks) == threads


class Watched:
    """Slows every reanalysis of `EZMModule` down and notes what it had before it.

    Attributes:
        threads: names of the threads that it ran in.
        busy: while one runs.
        changed: how often the target network or its heads changed under it.
        saves, saved_while_busy: how often the learner's streams were saved, and how often meanwhile.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.threads: set[str] = set()
        self.busy, self.changed, self.saved_while_busy, self.saves = False, 0, 0, 0
        reanalyse, save = EZMModule.reanalyse, EZMModule.on_save_checkpoint

        def slow(module: EZMModule, batch: Batch, updates: int) -> Targets:
            self.busy = True
            self.threads.add(threading.current_thread().name)
            before = [parameter.clone() for parameter in module.target.parameters()]
            targets = reanalyse(module, batch, updates)
            heads = module.target.heads
            time.sleep(0.05)
            same = [torch.equal(a, b) for a, b in zip(before, module.target.parameters(), strict=True)]
            self.changed += not all(same) or heads != module.target.heads
            self.busy = False
            return targets

        def saving(module: EZMModule, checkpoint: dict[str, Any]) -> None:
            save(module, checkpoint)
            self.saves += 1
            self.saved_while_busy += self.busy

        monkeypatch.setattr(EZMModule, "reanalyse", slow)
        monkeypatch.setattr(EZMModule, "on_save_checkpoint", saving)


@pytest.mark.parametrize("refresh_every", [1, 4])
def test_nothing_changes_under_a_reanalysis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refresh_every: int
) -> None:
    """The target network is refreshed at every update or every fourth, and saved at every second."""
    watched = Watched(monkeypatch)
    changes = {"optim": {"refresh_every": refresh_every}, "trainer": {"checkpoint_every": 4}}
    assert run(fit_experiment(changes), tmp_path).status == "finished"
    assert {name.rpartition("_")[0] for name in watched.threads} == {"ezm-pipeline"}
    assert watched.saves >= 3
    assert (watched.changed, watched.saved_while_busy) == (0, 0)


def test_an_error_in_reanalysis_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As itself, with no thread left behind (see `run`)."""

    def fails(module: EZMModule, batch: Batch, updates: int) -> Targets:
        raise ZeroDivisionError("in the search")

    monkeypatch.setattr(EZMModule, "reanalyse", fails)
    with pytest.raises(ZeroDivisionError, match="in the search"):
        run(fit_experiment(), tmp_path)


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are drawn ahead although there is no GPU."""
    draw_ahead(monkeypatch)


@pytest.mark.usefixtures("ahead")
def test_a_run_that_draws_ahead_finishes(tmp_path: Path) -> None:
    result = run(fit_experiment(), tmp_path)
    assert result.status == "finished" and result.updates == UPDATES


@pytest.mark.usefixtures("ahead")
def test_ctrl_c_while_drawing_ahead(tmp_path: Path) -> None:
    result = run(fit_experiment(), tmp_path, CtrlC("training"))
    assert result.status == "interrupted" and result.updates == 3


@pytest.mark.usefixtures("ahead")
def test_a_collector_that_fails_while_drawing_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
