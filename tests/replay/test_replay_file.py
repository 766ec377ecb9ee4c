"""Buffers on disk: what comes back, what is refused, what a crash leaves behind; and their size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from replay_worlds import TERMINATED, TRUNCATED, CountingRows, check_window, make_buffer, samplable

from ezm_pl.replay import ReplayBuffer, ReplayError


def some_buffer(open_steps: int = 0, seed: int = 0) -> tuple[ReplayBuffer, CountingRows]:
    """Rows of two tasks with two ended episodes and one open of `open_steps` steps."""
    buffer = make_buffer([0, 1], seed=seed)
    rows = CountingRows(buffer, 2)
    rows.play_episode(9, TERMINATED)
    rows.play_episode(8, TRUNCATED)
    if open_steps:
        rows.play_episode(open_steps, None)
    return buffer, rows


def test_round_trip(tmp_path: Path) -> None:
    buffer, _ = some_buffer()
    windows = buffer.sample(8)
    buffer.update_priorities(windows.task, windows.leaf, windows.born, np.arange(8, dtype=np.float32))
    buffer.save(tmp_path / "replay.npz")
    loaded = make_buffer([0, 1])
    loaded.load(tmp_path / "replay.npz")
    for task in range(2):
        leaves = np.arange(buffer.rows * buffer.block_size)
        tasks = np.full(len(leaves), task)
        np.testing.assert_array_equal(loaded.tree.get(tasks, leaves), buffer.tree.get(tasks, leaves))
        assert samplable(loaded, task) == samplable(buffer, task)
    np.testing.assert_array_equal(loaded.tree.total, buffer.tree.total)
    np.testing.assert_array_equal(loaded.returns.scale, buffer.returns.scale)
    np.testing.assert_array_equal(loaded.added, buffer.added)
    assert len(loaded) == len(buffer) == 34
    loaded._random = np.random.default_rng(3)
    buffer._random = np.random.default_rng(3)
    mine, theirs = loaded.sample(16), buffer.sample(16)
    for name in mine.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name), err_msg=name)


@pytest.mark.parametrize("open_steps", range(1, 15))
def test_an_open_episode_counts_as_truncated(tmp_path: Path, open_steps: int) -> None:
    """Also when its block is full and only the tail is still missing."""
    buffer, rows = some_buffer(open_steps)
    buffer.save(tmp_path / "replay.npz")
    loaded = make_buffer([0, 1])
    loaded.load(tmp_path / "replay.npz")
    assert [p for p in samplable(loaded) if p[1] == 2] == [[0, 2, t] for t in range(open_steps)]
    rows.lengths |= {(0, 2): open_steps, (1, 2): open_steps}
    for _ in range(20):
        windows = loaded.sample(16)
        for i in range(16):
            check_window(windows, i, rows, 2, 2)


def test_a_loaded_buffer_goes_on(tmp_path: Path) -> None:
    """New steps go behind the old ones, and old data can still be told from new."""
    buffer, rows = some_buffer(open_steps=4)
    old = buffer.sample(16)
    buffer.save(tmp_path / "replay.npz")
    loaded = make_buffer([0, 1])
    loaded.load(tmp_path / "replay.npz")
    rows.lengths |= {(0, 2): 4, (1, 2): 4}
    rows.buffer = loaded
    rows.episode += 1
    rows.step[:] = 0
    rows.play_episode(20, None)
    assert len(loaded) == len(buffer) + 40
    assert loaded.added.tolist() == [41, 41]
    for _ in range(20):
        windows = loaded.sample(16)
        for i in range(16):
            check_window(windows, i, rows, 2, 2)
    loaded.update_priorities(old.task, old.leaf, old.born, np.full(16, 7.0, np.float32))
    assert loaded.tree.get(old.task, old.leaf) == pytest.approx(7.0, abs=1e-5)


def test_a_full_ring_comes_back_as_it_was(tmp_path: Path) -> None:
    buffer = make_buffer([0], capacity=18)
    rows = CountingRows(buffer, 1)
    rows.play_episode(23, TRUNCATED)
    buffer.save(tmp_path / "replay.npz")
    loaded = make_buffer([0], capacity=18)
    loaded.load(tmp_path / "replay.npz")
    assert samplable(loaded) == samplable(buffer)
    rows.buffer = loaded
    rows.play_episode(1, None)
    assert len(loaded) == 12, "one new step in the place of the oldest block of 6, 5 of 6 in the newest"


@pytest.mark.parametrize(
    "changes",
    [{"observation_size": 4}, {"action_size": 2}, {"block_size": 7}, {"td_steps": 3}, {"capacity": 6}],
    ids=lambda changes: next(iter(changes)),
)
def test_other_sizes_are_refused_in_one_line(tmp_path: Path, changes: dict[str, int]) -> None:
    buffer, _ = some_buffer(open_steps=6)
    buffer.save(tmp_path / "replay.npz")
    other = make_buffer([0, 1], **changes)
    with pytest.raises(ReplayError, match="this experiment needs") as caught:
        other.load(tmp_path / "replay.npz")
    assert str(tmp_path / "replay.npz") in str(caught.value) and "\n" not in str(caught.value)
    assert len(other) == 0, "nothing was taken over"


def test_another_number_of_tasks_is_refused(tmp_path: Path) -> None:
    some_buffer()[0].save(tmp_path / "replay.npz")
    with pytest.raises(ReplayError, match="this experiment needs"):
        make_buffer([0, 1, 2]).load(tmp_path / "replay.npz")


def test_priorities_of_another_size_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "replay.npz"
    some_buffer()[0].save(path)
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["priority"] = arrays["priority"][:, :-1]
    np.savez(path, **arrays)
    with pytest.raises(ReplayError, match="priority"):
        make_buffer([0, 1]).load(path)


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "cut", "flipped", "array", "pickle", "field"])
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "replay.npz"
    some_buffer()[0].save(path)
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("not a buffer")
    elif damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "flipped":
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes(b ^ 0xFF for b in whole[middle:-4000]) + whole[-4000:])
    elif damage == "array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif damage == "pickle":
        np.savez(path, steps=np.array([{}], dtype=object), observation=np.array([{}], dtype=object))
    else:
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in archive if name != "born"}
        np.savez(path, **arrays)
    buffer = make_buffer([0, 1])
    with pytest.raises(ReplayError) as caught:
        buffer.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert len(buffer) == 0


def test_a_crash_while_saving_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "replay.npz"
    buffer, rows = some_buffer()
    buffer.save(path)
    before = path.read_bytes()
    rows.play_episode(5, TRUNCATED)

    def fail(file: object, **arrays: object) -> None:
        file.write(b"half a file")  # type: ignore[attr-defined]
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        buffer.save(path)
    assert path.read_bytes() == before
    monkeypatch.undo()
    buffer.save(path)  # and the lock is free again
    loaded = make_buffer([0, 1])
    loaded.load(path)
    assert len(loaded) == len(buffer)


def test_saving_an_empty_buffer(tmp_path: Path) -> None:
    make_buffer([0, 1]).save(tmp_path / "replay.npz")
    loaded = make_buffer([0, 1])
    loaded.load(tmp_path / "replay.npz")
    assert len(loaded) == 0 and not loaded.ready


@pytest.mark.parametrize("capacity", [20_000, 2**16, 100_000])
def test_the_memory_estimate(capacity: int) -> None:
    """Within 10% of what the arrays take."""
    buffer = ReplayBuffer(
        np.repeat(np.arange(3), 4),
        tasks=3,
        observation_size=51,
        action_size=19,
        capacity=capacity,
        block_size=100,
        unroll_steps=5,
        td_steps=5,
        discount=0.99,
    )
    arrays = [a for a in vars(buffer).values() if isinstance(a, np.ndarray)]
    real = sum(a.nbytes for a in [*arrays, buffer.tree._sum, buffer.tree._max])
    assert buffer.nbytes == pytest.approx(real, rel=1e-3)
    estimate = ReplayBuffer.estimate_bytes(
        tasks=3, observation_size=51, action_size=19, capacity=capacity, block_size=100, tail=10
    )
    assert 0.9 * real <= estimate <= 1.1 * real
