"""Buffers on disk: what comes back, what is refused, what a crash leaves behind; and their size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from replay_helpers import TERMINATED, TRUNCATED, CountingRows, check_window, make_buffer, samplable

from ezm_pl.replay import ReplayBuffer, ReplayError, ReplayStore, storage
from ezm_pl.replay.atomic_write import write_atomically
from ezm_pl.spec.experiment import ReplaySpec, TargetSpec


def some_buffer(open_steps: int = 0, seed: int = 0) -> tuple[ReplayBuffer, CountingRows]:
    """Rows of two tasks with two ended episodes and one open of `open_steps` steps."""
    buffer = make_buffer([0, 1], seed=seed)
    rows = CountingRows(buffer, 2)
    rows.play_episode(9, TERMINATED)
    rows.play_episode(8, TRUNCATED)
    if open_steps:
        rows.play_episode(open_steps, None)
    return buffer, rows


def save(buffer: ReplayBuffer, folder: Path, name: str = "1") -> ReplayStore:
    store = ReplayStore(buffer, folder)
    store.write(store.begin(name))
    return store


def load(buffer: ReplayBuffer, folder: Path, name: str = "1") -> list[str]:
    return ReplayStore(buffer, folder).load(name)


def same(one: ReplayBuffer, other: ReplayBuffer) -> None:
    """Every stored number is the same in both, but for steps that nothing points to."""
    for name in ("steps", "length", "transition_id", "next_block", "added"):
        mine, theirs = (getattr(b.blocks, name) for b in (one, other))
        np.testing.assert_array_equal(mine, theirs, err_msg=name)
    for task, block in np.argwhere(one.blocks.steps > 0):
        steps = one.blocks.steps[task, block]
        for name in ("observation", "action", "reward", "terminated"):
            mine, theirs = (getattr(b.blocks, name)[task, block, :steps] for b in (one, other))
            np.testing.assert_array_equal(mine, theirs, err_msg=name)
    count = one.blocks.num_blocks * one.blocks.block_size
    np.testing.assert_array_equal(one.tree.front(count), other.tree.front(count))
    np.testing.assert_array_equal(one.returns.scale, other.returns.scale)


def test_round_trip(tmp_path: Path) -> None:
    buffer, _ = some_buffer()
    windows = buffer.sample(8)
    buffer.update_priorities(
        windows.task, windows.replay_index, windows.transition_id, np.arange(8, dtype=np.float32)
    )
    buffer.sample(3)  # the sampling generator goes on from here
    save(buffer, tmp_path)
    loaded = make_buffer([0, 1])
    load(loaded, tmp_path)
    for task in range(2):
        leaves = np.arange(buffer.blocks.num_blocks * buffer.blocks.block_size)
        tasks = np.full(len(leaves), task)
        np.testing.assert_array_equal(loaded.tree.get(tasks, leaves), buffer.tree.get(tasks, leaves))
        assert samplable(loaded, task) == samplable(buffer, task)
    np.testing.assert_array_equal(loaded.tree.total, buffer.tree.total)
    np.testing.assert_array_equal(loaded.returns.scale, buffer.returns.scale)
    np.testing.assert_array_equal(loaded.blocks.added, buffer.blocks.added)
    assert len(loaded) == len(buffer) == 34
    mine, theirs = loaded.sample(16), buffer.sample(16)
    for name in mine.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name), err_msg=name)


@pytest.mark.parametrize("open_steps", range(1, 15))
def test_an_open_episode_counts_as_truncated(tmp_path: Path, open_steps: int) -> None:
    """Also when its block is full and only the tail is still missing."""
    buffer, rows = some_buffer(open_steps)
    save(buffer, tmp_path)
    loaded = make_buffer([0, 1])
    load(loaded, tmp_path)
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
    save(buffer, tmp_path)
    loaded = make_buffer([0, 1])
    load(loaded, tmp_path)
    rows.lengths |= {(0, 2): 4, (1, 2): 4}
    rows.buffer = loaded
    rows.episode += 1
    rows.step[:] = 0
    rows.play_episode(20, None)
    assert len(loaded) == len(buffer) + 40
    assert loaded.blocks.added.tolist() == [41, 41]
    for _ in range(20):
        windows = loaded.sample(16)
        for i in range(16):
            check_window(windows, i, rows, 2, 2)
    loaded.update_priorities(old.task, old.replay_index, old.transition_id, np.full(16, 7.0, np.float32))
    assert loaded.tree.get(old.task, old.replay_index) == pytest.approx(7.0, abs=1e-5)


def test_a_full_ring_comes_back_as_it_was(tmp_path: Path) -> None:
    buffer = make_buffer([0], capacity=18)
    rows = CountingRows(buffer, 1)
    rows.play_episode(23, TRUNCATED)
    save(buffer, tmp_path)
    loaded = make_buffer([0], capacity=18)
    load(loaded, tmp_path)
    assert samplable(loaded) == samplable(buffer)
    rows.buffer = loaded
    rows.play_episode(1, None)
    assert len(loaded) == 12, "one new step in the place of the oldest block of 6, 5 of 6 in the newest"


@pytest.mark.parametrize(
    "changes",
    [{"observation_size": 4}, {"action_size": 2}, {"block_size": 7}, {"td_steps": 3}, {"capacity": 606}],
    ids=lambda changes: next(iter(changes)),
)
def test_other_sizes_are_refused_in_one_line(tmp_path: Path, changes: dict[str, int]) -> None:
    save(some_buffer(open_steps=6)[0], tmp_path)
    other = make_buffer([0, 1], **changes)
    with pytest.raises(ReplayError, match="this experiment needs") as caught:
        load(other, tmp_path)
    assert str(tmp_path / "1.json") in str(caught.value) and "\n" not in str(caught.value)
    assert len(other) == 0, "nothing was taken over"


def test_another_number_of_tasks_is_refused(tmp_path: Path) -> None:
    save(some_buffer()[0], tmp_path)
    with pytest.raises(ReplayError, match="this experiment needs"):
        load(make_buffer([0, 1, 2]), tmp_path)


@pytest.mark.parametrize("kind", ["json", "state"])
@pytest.mark.parametrize("damage", ["missing", "empty", "text", "cut", "flipped"])
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, kind: str, damage: str) -> None:
    save(some_buffer()[0], tmp_path)
    path = tmp_path / f"1.{kind}"
    whole = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("not a buffer")
    elif damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "flipped":
        whole[len(whole) // 2] ^= 0x20
        path.write_bytes(whole)
    buffer = make_buffer([0, 1])
    with pytest.raises(ReplayError) as caught:
        load(buffer, tmp_path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert len(buffer) == 0


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped"])
def test_a_damaged_segment_costs_its_rows_only(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "SEGMENT_BYTES", 1000)
    monkeypatch.setattr(storage, "SMALL", 0)
    buffer, _ = some_buffer(open_steps=3)
    save(buffer, tmp_path)
    segments = sorted(tmp_path.glob("*.blocks"))
    assert len(segments) > 1
    whole = bytearray(segments[0].read_bytes())
    if damage == "missing":
        segments[0].unlink()
    elif damage == "cut":
        segments[0].write_bytes(whole[:-1])
    else:
        whole[-3] ^= 1
        segments[0].write_bytes(whole)
    loaded = make_buffer([0, 1])
    (note,) = load(loaded, tmp_path)
    assert str(segments[0]) in note and "transitions of the replay are left out" in note
    assert 0 < len(loaded) < len(buffer) and loaded.ready
    kept = [p for task in range(2) for p in samplable(loaded, task)]
    assert all(p in [q for task in range(2) for q in samplable(buffer, task)] or p[1] == 2 for p in kept)
    loaded.sample(32)
    assert load(make_buffer([0, 1]), tmp_path) == [note]
    save(loaded, tmp_path, "2")
    again = make_buffer([0, 1])
    assert load(again, tmp_path, "2") == []
    same(again, loaded)


def test_what_has_not_changed_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And each save alone gives back the buffer of its time, the older ones until they are dropped."""
    monkeypatch.setattr(storage, "SEGMENT_BYTES", 2000)
    monkeypatch.setattr(storage, "SMALL", 0)
    buffer = make_buffer([0, 1, 1], capacity=120)
    rows, store, times = CountingRows(buffer, 3), ReplayStore(buffer, tmp_path), {}
    noise = np.random.default_rng(0)
    for save_number in range(40):
        rows.play_episode(int(noise.integers(1, 25)), (TERMINATED, TRUNCATED, None)[save_number % 3])
        if save_number % 3 == 2:  # still open: goes on in the next round, as the same episode
            rows.play_episode(int(noise.integers(1, 4)), None)
        before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.blocks")}
        name = f"{save_number:03}"
        store.write(store.begin(name))
        assert before.items() <= {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.blocks")}.items()
        times[name] = len(buffer)
        fresh = make_buffer([0, 1, 1], capacity=120)
        assert load(fresh, tmp_path, name) == []
        assert len(fresh) == len(buffer)
        closed = buffer.blocks.complete()
        np.testing.assert_array_equal(fresh.blocks.steps, buffer.blocks.steps)
        np.testing.assert_array_equal(fresh.blocks.reward[closed], buffer.blocks.reward[closed])
        if save_number:
            older = f"{save_number - 1:03}"
            fresh = make_buffer([0, 1, 1], capacity=120)
            assert load(fresh, tmp_path, older) == []
            assert len(fresh) == times[older]
        store.keep([f"{save_number - 1:03}", name])
    live = int(store.block_type.itemsize * (buffer.blocks.steps > 0).sum())
    there = sum(path.stat().st_size for path in tmp_path.glob("*.blocks"))
    assert there < 2.5 * live, "segments that nothing needs are gone"
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_small_segments_are_put_together(tmp_path: Path) -> None:
    buffer = make_buffer([0])
    rows, store = CountingRows(buffer, 1), ReplayStore(buffer, tmp_path)
    for number in range(20):
        rows.play_episode(9, TRUNCATED)
        store.write(store.begin(f"{number:02}"))
        store.keep([f"{number:02}"])
    assert len(list(tmp_path.glob("*.blocks"))) == 1
    loaded = make_buffer([0])
    load(loaded, tmp_path, "19")
    same(loaded, buffer)


def test_a_resumed_store_goes_on_with_the_segments_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "SMALL", 0)
    buffer, _ = some_buffer()
    save(buffer, tmp_path)
    loaded = make_buffer([0, 1])
    store = ReplayStore(loaded, tmp_path)
    store.load("1")
    rows = CountingRows(loaded, 2)
    rows.play_episode(7, TRUNCATED)
    store.write(store.begin("2"))
    store.keep(["2"])
    assert sorted(p.name for p in tmp_path.glob("*.blocks")) == ["1-0.blocks", "2-0.blocks"]
    again = make_buffer([0, 1])
    assert load(again, tmp_path, "2") == []
    same(again, loaded)


def test_rows_overwritten_while_they_are_saved_are_left_out(tmp_path: Path) -> None:
    """A save tells of the instant it was begun at, but for the oldest rows that are gone by then."""
    buffer = make_buffer([0], capacity=60)
    rows, store = CountingRows(buffer, 1), ReplayStore(buffer, tmp_path)
    rows.play_episode(60, TRUNCATED)
    plan = store.begin("1")
    oldest = samplable(buffer)
    rows.play_episode(15, TRUNCATED)
    store.write(plan)
    loaded = make_buffer([0], capacity=60)
    assert load(loaded, tmp_path) == []
    assert samplable(loaded) == [p for p in oldest if p[2] >= 18], "three blocks of six were taken again"
    assert loaded.blocks.added.tolist() == [60]
    rows.buffer = loaded
    rows.play_episode(30, TRUNCATED)
    loaded.sample(8)


@pytest.mark.parametrize("moment", range(4))
def test_a_failed_save_leaves_the_old_one(
    tmp_path: Path, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of its files the disk is full at; the next save is whole again."""
    buffer, rows = some_buffer()
    store = save(buffer, tmp_path)
    before = make_buffer([0, 1])
    load(before, tmp_path)
    rows.play_episode(5, TRUNCATED)
    rows.play_episode(5, None)
    calls = iter(range(100))

    def full(path: Path, parts: object) -> object:
        if next(calls) == moment:
            path.with_name(path.name + ".tmp").write_bytes(b"half a file")
            raise OSError(28, "No space left on device")
        return write_atomically(path, parts)  # type: ignore[arg-type]

    monkeypatch.setattr(storage, "write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        store.write(store.begin("2"))
    again = make_buffer([0, 1])
    assert load(again, tmp_path) == []
    same(again, before)
    monkeypatch.undo()
    store.write(store.begin("3"))
    store.keep(["3"])
    assert not list(tmp_path.glob("*.tmp"))
    loaded = make_buffer([0, 1])
    assert load(loaded, tmp_path, "3") == []
    assert len(loaded) == len(buffer)


def test_what_cannot_be_read_back_is_not_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ezm_pl.replay import atomic_write

    path = tmp_path / "file"
    write_atomically(path, [b"old"])
    monkeypatch.setattr(atomic_write, "checksum", lambda path: atomic_write.Checksum(3, 0))
    with pytest.raises(OSError, match="could not be read back"):
        write_atomically(path, [b"new"])
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_saving_an_empty_buffer(tmp_path: Path) -> None:
    save(make_buffer([0, 1]), tmp_path)
    loaded = make_buffer([0, 1])
    assert load(loaded, tmp_path) == []
    assert len(loaded) == 0 and not loaded.ready


@pytest.mark.parametrize(("capacity", "block"), [(20_000, 100), (2**16, 100), (100_000, 100), (20_000, 5000)])
def test_the_memory_estimate(capacity: int, block: int) -> None:
    """Within 10% of what the arrays take; four environments need nine blocks, however long these are."""
    specs = ReplaySpec(capacity=capacity, block_size=block), TargetSpec()
    sizes = {"observation_size": 51, "action_size": 19}
    buffer = ReplayBuffer(np.repeat(np.arange(3), 4), *specs, **sizes)
    arrays = [a for a in vars(buffer.blocks).values() if isinstance(a, np.ndarray)]
    real = sum(a.nbytes for a in [*arrays, *buffer.tree._sum, *buffer.tree._max])
    assert buffer.nbytes == pytest.approx(real, rel=1e-3)
    estimate = ReplayBuffer.estimate_bytes(*specs, **sizes, tasks=3, envs_per_task=4, steps=10**9)
    assert 0.9 * real <= estimate <= 1.1 * real
    started = ReplayBuffer.estimate_bytes(*specs, **sizes, tasks=3, envs_per_task=4, steps=capacity // 4)
    assert started <= 0.4 * estimate
