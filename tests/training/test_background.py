"""Reanalysis one update ahead, in a thread: order, errors, and what it uses stays as it is meanwhile."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from fit_worlds import fit_experiment, run
from training_worlds import make_batch, make_experiment, make_sizes

from ezm_pl.training import EZMModule
from ezm_pl.training.batch import Batch, Targets
from ezm_pl.training.hardware import reanalysis_threads
from ezm_pl.training.reanalysis import InBackground

SIZES = make_sizes([1, 1], [2, 1])


def tagged(number: int) -> Batch:
    """A batch whose ages are `number`."""
    batch = make_batch(make_experiment(), SIZES, 4, seed=0)
    return batch._replace(age=torch.full_like(batch.age, number))


def told(batch: Batch, updates: int) -> Targets:
    """Targets that are what they were made from: the batch's age, the updates."""
    return Targets(*(batch.age, torch.tensor(updates)), *(torch.zeros(1),) * (len(Targets._fields) - 2))


def test_targets_come_in_the_order_of_their_batches() -> None:
    background = InBackground(told, 1)
    for number in range(5):
        background.begin(tagged(number), 10 + number)
    found = [background.take() for _ in range(5)]
    background.stop()
    assert [(int(targets[0][0]), int(targets[1])) for targets in found] == [(n, 10 + n) for n in range(5)]


def test_an_error_is_raised_where_its_targets_would_have_come() -> None:
    def fails(batch: Batch, updates: int) -> Targets:
        if updates == 1:
            raise ZeroDivisionError("this batch")
        return told(batch, updates)

    background = InBackground(fails, 1)
    for updates in range(3):
        background.begin(tagged(0), updates)
    assert int(background.take()[1]) == 0
    with pytest.raises(ZeroDivisionError, match="this batch"):
        background.take()
    assert int(background.take()[1]) == 2
    background.stop()


def test_settle_waits_for_all_and_after_stop_for_nothing() -> None:
    done: list[int] = []

    def slow(batch: Batch, updates: int) -> Targets:
        time.sleep(0.1)
        done.append(updates)
        return told(batch, updates)

    background = InBackground(slow, 1)
    for updates in range(2):
        background.begin(tagged(0), updates)
    background.settle()
    assert done == [0, 1]
    for updates in range(2, 6):
        background.begin(tagged(0), updates)
    background.stop()
    assert 5 not in done, "stop waits for one batch, not for the queue"
    background.settle()


def test_the_thread_has_threads_of_its_own() -> None:
    seen: list[int] = []

    def threads(batch: Batch, updates: int) -> Targets:
        seen.append(torch.get_num_threads())
        return told(batch, updates)

    here = torch.get_num_threads()
    background = InBackground(threads, here + 1)
    background.begin(tagged(0), 0)
    background.take()
    background.stop()
    assert seen == [here + 1] and torch.get_num_threads() == here


@pytest.mark.parametrize(
    ("cores", "latent", "ranks", "threads"),
    [(2, 128, 1, 1), (2, 512, 1, 2), (8, 128, 1, 4), (8, 512, 1, 4), (1, 512, 1, 1), (2, 512, 2, 1)],
)
def test_wide_layers_may_have_more_than_half_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, latent: int, ranks: int, threads: int
) -> None:
    monkeypatch.setattr("ezm_pl.training.hardware.os.sched_getaffinity", lambda _: set(range(cores)))
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
    assert {name.rpartition("_")[0] for name in watched.threads} == {"ezm-reanalysis"}
    assert watched.saves >= 3
    assert (watched.changed, watched.saved_while_busy) == (0, 0)


def test_an_error_in_reanalysis_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As itself, with no thread left behind (see `run`)."""

    def fails(module: EZMModule, batch: Batch, updates: int) -> Targets:
        raise ZeroDivisionError("in the search")

    monkeypatch.setattr(EZMModule, "reanalyse", fails)
    with pytest.raises(ZeroDivisionError, match="in the search"):
        run(fit_experiment(), tmp_path)
