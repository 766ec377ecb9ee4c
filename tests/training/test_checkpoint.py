"""Checkpoints on disk: what they hold, what damage does to them, and that one is there at every instant."""

from __future__ import annotations

import os
import pickle
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fit_helpers import UPDATES, contents, fit_experiment, last, replay, rewritten, run
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from ezm_pl.replay import atomic_write
from ezm_pl.spec import dump_experiment
from ezm_pl.training import CheckpointError, EZMModule, FitResult, evaluate, newest_valid
from ezm_pl.training.fault_tolerance.checkpoint import check_usable, read_checkpoint
from ezm_pl.training.fault_tolerance.saving import SHORT_WAIT, BestCheckpoint, LastCheckpoint

THREE: dict[str, Any] = {"trainer": {"checkpoint_every": 6}, "eval": {"every": 3}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FitResult]:
    """A finished run that was saved twice, at updates 3 and 6."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, run(fit_experiment(THREE), folder)


@pytest.fixture
def folder(finished: tuple[Path, FitResult], tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


def previous(folder: Path) -> Path:
    return folder / "checkpoints" / "previous.ckpt"


def test_the_last_and_the_one_before_it_are_kept(finished: tuple[Path, FitResult]) -> None:
    folder, _ = finished
    assert contents(last(folder))["global_step"] == UPDATES
    assert contents(previous(folder))["global_step"] == 3
    newer, older = (len(replay(fit_experiment(), folder, name)) for name in ("last.ckpt", "previous.ckpt"))
    assert newer > older > 0
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert names == {"last.ckpt", "previous.ckpt", "best.ckpt", "replay"}
    assert len(list((folder / "checkpoints" / "replay" / "rank0").glob("*.json"))) == 2


def test_what_a_checkpoint_holds(finished: tuple[Path, FitResult]) -> None:
    inside = read_checkpoint(last(finished[0]))
    names = set(inside["state_dict"])
    for copy in ("model", "actor_weights.model", "target.model"):
        assert any(name.startswith(f"{copy}.normalizer") for name in names), copy
    assert "nonfinite_updates" in names
    moments = inside["optimizer_states"][0]["state"]
    assert moments and all(float(m["step"]) == UPDATES for m in moments.values())
    assert inside["generators"].keys() == {"heads", "search", "entropy"}
    assert inside["SelfPlayDataModule"]["updates"] == UPDATES
    assert (inside["SelfPlayDataModule"]["control_steps"] > 0).all()
    assert yaml.safe_load(inside["experiment"])["name"] == "test"


class Streams(Callback):
    """The states of all generators that a run starts with: as they are when first asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.states: dict[str, torch.Tensor] = {}
        made = EZMModule.generator

        def generator(module: EZMModule, purpose: str) -> torch.Generator:
            found = made(module, purpose)
            self.states.setdefault(purpose, found.get_state())
            return found

        monkeypatch.setattr(EZMModule, "generator", generator)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.sampling = trainer.datamodule.buffer.generator.bit_generator.state  # type: ignore[attr-defined]


def test_random_streams_go_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the learner and of sampling; the collector starts new ones, as its environments start anew."""
    at_three, began = read_checkpoint(previous(folder)), Streams(monkeypatch)
    sampling = replay(fit_experiment(), folder, "previous.ckpt").generator.bit_generator.state
    run(fit_experiment(THREE), folder, began, checkpoint=previous(folder))
    assert at_three["generators"].keys() == {"heads", "search", "entropy"}
    for name, state in at_three["generators"].items():
        assert torch.equal(began.states[name], state), name
    monkeypatch.undo()
    fresh = Streams(monkeypatch)
    run(fit_experiment(THREE), folder / "fresh", fresh)
    assert all(not torch.equal(fresh.states[name], state) for name, state in began.states.items())
    assert sampling != fresh.sampling


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "empty", "manifest", "state"])
def test_the_one_before_is_used_where_the_last_is_damaged(damage: str, folder: Path) -> None:
    path = last(folder)
    shards = folder / "checkpoints" / "replay" / "rank0"
    name = contents(path)["replay"]["save"]
    broken = {"manifest": shards / f"{name}.json", "state": shards / f"{name}.state"}.get(damage, path)
    whole = bytearray(broken.read_bytes())
    if damage == "missing":
        broken.unlink()
    elif damage == "flipped":
        whole[len(whole) // 2] ^= 4
        broken.write_bytes(whole)
    else:
        broken.write_bytes(whole[: 0 if damage == "empty" else len(whole) - 10])
    found, note = newest_valid(path)
    assert found == previous(folder)
    assert note is not None and "\n" not in note and str(broken) in note
    assert note.endswith("previous.ckpt, the one before it, is used")
    if damage not in ("missing", "state"):  # what was found is the same: two of them train on
        return
    result = run(fit_experiment(THREE), folder, checkpoint=found)
    assert result.updates == UPDATES
    assert contents(path)["global_step"] == UPDATES, "the damaged one is replaced"
    assert contents(previous(folder))["global_step"] == 3, "and not kept as the one before"
    assert newest_valid(path) == (path, None)


def test_all_damaged_is_one_line(folder: Path) -> None:
    for path in (last(folder), previous(folder)):
        path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(CheckpointError) as caught:
        newest_valid(last(folder))
    text = str(caught.value)
    assert str(last(folder)) in text and str(previous(folder)) in text and "\n" not in text


def test_a_checkpoint_named_by_its_file_is_the_only_one_tried(folder: Path) -> None:
    best = folder / "checkpoints" / "best.ckpt"
    assert newest_valid(best) == (best, None)
    best.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"best\.ckpt"):
        newest_valid(best)


class PowerCut(BaseException):
    """The process ends here."""


@pytest.mark.parametrize(
    "cut", [pytest.param(cut, marks=pytest.mark.slow if cut % 3 else ()) for cut in range(30)]
)
def test_a_pair_is_there_at_every_instant(cut: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The save of update 9 ends at its `cut`-th rename, link, sync or deletion: 6 or 9 can be resumed."""
    calls = iter(range(10_000))

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if str(folder) in str(args[0]) or isinstance(args[0], int):
                at = next(calls)
                if at >= cut:
                    raise PowerCut
            return function(*args, **kwargs)

        return call

    longer = fit_experiment(THREE | {"optim": {"total_updates": 9}, "eval": {"every": 1000}})
    with monkeypatch.context() as patch:
        for name in ("replace", "link", "fsync"):
            patch.setattr(os, name, dying(getattr(os, name)))
        patch.setattr(Path, "unlink", dying(Path.unlink))
        try:
            run(longer, folder, checkpoint=last(folder))
            survived = True
        except PowerCut:
            survived = False
    if survived:
        assert cut > 12, "the save has more steps than that"
    found, _ = newest_valid(last(folder))
    step = contents(found)["global_step"]
    assert step in (6, 9) and (step == 9 or not survived)
    buffer = replay(longer, folder, found.name)
    assert buffer.ready and (buffer.blocks.steps > 0).any()
    check_usable(last(folder))
    check_usable(previous(folder))
    if cut % 5 == 0:
        assert run(longer, folder, checkpoint=found).updates == 9


def test_a_full_disk_is_told_of_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checksum, full = atomic_write.checksum, {"at": 2}

    def refuse(path: Path) -> Any:
        full["at"] -= 1
        if full["at"] == 0:
            raise OSError(28, "No space left on device")
        return checksum(path)

    monkeypatch.setattr(atomic_write, "checksum", refuse)
    result = run(fit_experiment(THREE), tmp_path)
    assert result.status == "finished"
    (line,) = [r.getMessage() for r in caplog.records if "not written" in r.getMessage()]
    assert line.startswith("checkpoint of update 3 not written, the last one stays: ")
    assert "No space left on device" in line
    assert contents(last(tmp_path))["global_step"] == UPDATES
    assert len(replay(fit_experiment(THREE), tmp_path)) > 0


def test_training_waits_once_for_a_save_and_not_at_every_update(tmp_path: Path) -> None:
    waits: list[float | None] = []

    class Long(threading.Thread):
        def join(self, timeout: float | None = None) -> None:
            waits.append(timeout)

    callback = LastCheckpoint(tmp_path, 10, replay=False)
    callback._thread = Long()
    for _ in range(3):
        callback.on_train_batch_start()
    callback.on_validation_start()
    assert waits == [SHORT_WAIT]
    callback.finish()
    assert waits == [SHORT_WAIT, None]


def test_another_number_of_ranks_is_refused_with_the_reason(folder: Path) -> None:
    def two(inside: dict[str, Any]) -> None:
        inside["replay"]["ranks"] = 2

    rewritten(last(folder), two)
    with pytest.raises(CheckpointError, match="rank1"):
        check_usable(last(folder))
    with pytest.raises(CheckpointError, match=r"2 rank\(s\) and this run has 1") as caught:
        run(fit_experiment(THREE), folder, checkpoint=last(folder))
    assert "replay.save=false" in str(caught.value) and "\n" not in str(caught.value)
    without = fit_experiment(THREE | {"replay": {"save": False}})
    assert run(without, folder, checkpoint=last(folder)).updates == UPDATES


def test_a_checkpoint_named_by_a_relative_path_is_kept_as_the_one_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    longer = fit_experiment(THREE | {"optim": {"total_updates": 9}})
    assert run(longer, folder, checkpoint=Path("checkpoints/last.ckpt")).updates == 9
    assert contents(previous(folder))["global_step"] == UPDATES


def test_a_moved_run_keeps_its_best_checkpoint(folder: Path) -> None:
    class Falls(Callback):
        def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
            module.log("eval/score", -1.0)

    best = folder / "checkpoints" / "best.ckpt"
    before = best.read_bytes()
    here = BestCheckpoint(best.parent)
    here.load_state_dict(BestCheckpoint(folder / "elsewhere").state_dict())
    assert not here.best_k_models  # none yet
    longer = fit_experiment(THREE | {"optim": {"total_updates": 9}})
    assert run(longer, folder, Falls(), checkpoint=last(folder)).updates == 9
    assert best.read_bytes() == before


def test_a_replay_outside_the_run_is_not_read(folder: Path) -> None:
    rewritten(last(folder), lambda inside: inside.update(replay={"save": "../../etc/passwd", "ranks": 1}))
    with pytest.raises(CheckpointError) as caught:
        run(fit_experiment(THREE), folder, checkpoint=last(folder))
    assert "replay" in str(caught.value) and "\n" not in str(caught.value)


def test_a_task_that_cannot_be_made_here_is_named(folder: Path) -> None:
    def renamed(inside: dict[str, Any]) -> None:
        inside["experiment"] = inside["experiment"].replace("dmc-cartpole-balance", "gym:Nowhere-v0")

    rewritten(last(folder), renamed)
    with pytest.raises(CheckpointError, match=r"last\.ckpt: .*gym:Nowhere-v0"):
        evaluate(last(folder), episodes=1, seed=0)


class Evil:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "owned")


@pytest.mark.parametrize(
    "damage", ["missing", "empty", "text", "cut", "no spec", "spec", "no weights", "code"]
)
def test_damaged_checkpoints_are_refused_in_one_line(
    damage: str, finished: tuple[Path, FitResult], tmp_path: Path
) -> None:
    """And nothing that lies in one is ever executed."""
    path, owned = tmp_path / "last.ckpt", tmp_path / "owned"
    whole = last(finished[0]).read_bytes()
    good = {"experiment": dump_experiment(fit_experiment())}
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("not a checkpoint")
    elif damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "no spec":
        torch.save({"state_dict": {}}, path)
    elif damage == "spec":
        spec = yaml.safe_load(good["experiment"]) | {"unheard_of": 1}
        torch.save({"experiment": yaml.safe_dump(spec)}, path)
    elif damage == "no weights":
        torch.save(good, path)
    elif damage == "code":
        torch.save(good | {"extra": Evil(owned)}, path, pickle_module=pickle)
    for use in (
        lambda: run(fit_experiment(), tmp_path, checkpoint=path),
        lambda: evaluate(path, episodes=1, seed=0),
    ):
        with pytest.raises(CheckpointError) as caught:
            use()
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not owned.exists()
