"""Random damage to checkpoints and replay files: a clear error or a valid load, and nothing is executed."""

from __future__ import annotations

import pickle
import shutil
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fit_helpers import fit_experiment, last, run

from ezm_pl.envs import sizes
from ezm_pl.replay import ReplayBuffer, ReplayError, ReplayStore
from ezm_pl.training import CheckpointError, SelfPlayDataModule
from ezm_pl.training.fault_tolerance.checkpoint import (
    FORMAT,
    checkpoint_experiment,
    fingerprint,
    newest_valid,
    read_checkpoint,
)

EXPERIMENT = fit_experiment()


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    run(EXPERIMENT, folder)
    return folder


class Evil:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "owned")


def damaged(whole: bytes, random: np.random.Generator) -> bytes:
    """Bytes flipped, cut off, taken out, doubled, zeroed or put elsewhere."""
    data = bytearray(whole)
    size = len(data)
    at, other = sorted(int(x) for x in random.integers(0, size, 2))
    match int(random.integers(7)):
        case 0:
            for i in random.integers(0, size, int(random.integers(1, 9))):
                data[i] ^= 1 << int(random.integers(8))
        case 1:
            del data[at:]
        case 2:
            del data[at : at + int(random.integers(1, 100))]
        case 3:
            data[at:at] = random.bytes(int(random.integers(1, 100)))
        case 4:
            data[at : at + 64] = bytes(min(64, size - at))
        case 5:
            data[at : at + 16], data[other : other + 16] = data[other : other + 16], data[at : at + 16]
        case 6:  # where a zip archive's directory and a manifest's numbers are
            data[-int(random.integers(1, min(4000, size)))] = int(random.integers(256))
    return bytes(data)


def members_swapped(path: Path, random: np.random.Generator, owned: Path) -> None:
    """Puts one member of a checkpoint's archive in the place of another; or code in that of its pickle."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    names = list(members)
    one, other = (names[int(i)] for i in random.integers(0, len(names), 2))
    members[one], members[other] = members[other], members[one]
    if random.random() < 0.2:
        (pickled,) = [name for name in names if name.endswith("data.pkl")]
        members[pickled] = pickle.dumps({"experiment": Evil(owned)})
    if random.random() < 0.2:
        members.pop(one)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def small(store_folder: Path) -> tuple[ReplayBuffer, ReplayStore]:
    buffer = SelfPlayDataModule(EXPERIMENT, sizes(EXPERIMENT.tasks)).buffer
    return buffer, ReplayStore(buffer, store_folder)


def tried(use: Callable[[], Any], failures: tuple[type[Exception], ...]) -> bool:
    """Whether it went well; an error must be of these kinds, and a line."""
    try:
        use()
    except failures as error:
        assert str(error) and "\n" not in str(error), repr(error)
        return False
    return True


def many(most: int) -> Any:
    """A sample of the mutations in every run of the tests, `most` with the slow ones."""
    return pytest.mark.parametrize(
        "seeds", [range(40), pytest.param(range(40, most), marks=pytest.mark.slow)], ids=["some", "all"]
    )


@many(1000)
def test_damaged_checkpoint_files(seeds: range, run_folder: Path, tmp_path: Path) -> None:
    whole, path, owned = last(run_folder).read_bytes(), tmp_path / "last.ckpt", tmp_path / "owned"
    shutil.copytree(run_folder / "checkpoints" / "replay", tmp_path / "replay")
    valid = 0
    for seed in seeds:
        random = np.random.default_rng(seed)
        path.write_bytes(whole if seed % 4 == 0 else damaged(whole, random))
        if seed % 4 == 0:
            members_swapped(path, random, owned)
        if tried(lambda: read_checkpoint(path), (CheckpointError,)):
            valid += 1  # padding was hit: nothing that is read has changed
            checkpoint_experiment(path)
        assert not owned.exists()
    assert valid < len(seeds) / 2


def test_a_checkpoint_of_another_version_is_refused_in_one_line(run_folder: Path, tmp_path: Path) -> None:
    contents, path = read_checkpoint(last(run_folder)), tmp_path / "last.ckpt"
    for changed in ({**contents, "format": FORMAT + 1}, {k: x for k, x in contents.items() if k != "format"}):
        torch.save({**changed, "fingerprint": fingerprint(changed)}, path)
        with pytest.raises(CheckpointError, match="another version") as caught:
            newest_valid(path)
        assert "\n" not in str(caught.value)


@many(1000)
def test_damaged_replay_files(seeds: range, run_folder: Path, tmp_path: Path) -> None:
    """Each file in turn: refused, or loaded without the blocks of a damaged segment."""
    source = run_folder / "checkpoints" / "replay" / "rank0"
    (name,) = {path.stem for path in source.glob("*.json")}
    refused = 0
    for seed in seeds:
        random = np.random.default_rng(seed)
        folder = tmp_path / str(seed)
        shutil.copytree(source, folder)
        files = sorted(folder.iterdir())
        path = files[int(random.integers(len(files)))]
        path.write_bytes(damaged(path.read_bytes(), random))
        buffer, store = small(folder)
        if tried(partial(store.load, name), (ReplayError,)):
            assert ((buffer.blocks.steps >= 0) & (buffer.blocks.steps <= buffer.blocks.width)).all()
            if buffer.ready:
                buffer.sample(16)
            store.write(store.begin("next"))
            store.keep(["next"])
        else:
            assert len(buffer) == 0
            refused += 1
        shutil.rmtree(folder)
    assert refused > len(seeds) / 4
