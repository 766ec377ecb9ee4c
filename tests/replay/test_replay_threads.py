"""One thread adds while others sample, set priorities and save: every window stays one episode's."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
from replay_helpers import TERMINATED, TRUNCATED, CountingRows, check_window, make_buffer, samplable

from ezm_pl.replay import ReplayStore, Windows

ENOUGH = 20
"""Batches to draw while the other thread adds, however busy the machine."""


def test_adding_while_sampling(tmp_path: Path) -> None:
    """Short random episodes over block borders; the ring turns many times."""
    task_ids = [0, 0, 1, 1, 2]
    buffer = make_buffer(task_ids, capacity=60)
    rows = CountingRows(buffer, 5)
    random = np.random.default_rng(0)
    done = threading.Event()
    failures: list[BaseException] = []
    drawn: list[Windows] = []

    def add() -> None:
        try:
            played = 0
            while played < 3000 or len(drawn) <= ENOUGH:
                played += 1
                ended = np.flatnonzero(random.random(5) < 0.08)
                rows.play({int(i): (TERMINATED, TRUNCATED)[int(i) % 2] for i in ended})
        except BaseException as error:  # noqa: BLE001 - shown by the main thread
            failures.append(error)
        finally:
            done.set()

    def save() -> None:
        try:
            store, saves = ReplayStore(buffer, tmp_path), 0
            while not done.wait(0.05):
                saves += 1
                store.write(store.begin(str(saves)))
                store.keep([str(saves)])
                loaded = make_buffer(task_ids, capacity=60)
                assert ReplayStore(loaded, tmp_path).load(str(saves)) == []
                for task in range(3):
                    for row, episode, step in samplable(loaded, task):
                        assert task_ids[row] == task and step < rows.lengths.get((row, episode), 10**6)
        except BaseException as error:  # noqa: BLE001 - shown by the main thread
            failures.append(error)

    threads = [threading.Thread(target=add), threading.Thread(target=save)]
    for thread in threads:
        thread.start()
    noise = np.random.default_rng(1)
    while not done.is_set():
        if buffer.ready:
            windows = buffer.sample(12)
            buffer.update_priorities(
                windows.task,
                windows.replay_index,
                windows.transition_id,
                noise.exponential(size=12).astype(np.float32),
            )
            if len(drawn) < 1500:
                drawn.append(windows)
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert len(drawn) > ENOUGH
    # By now every sampled episode's length is known (open ones were complete windows of longer ones).
    for i in range(5):
        rows.lengths.setdefault((i, int(rows.episode[i])), 10**6)
    for windows in drawn:
        for i in range(12):
            row, _, _ = check_window(windows, i, rows, 2, 2)
            assert windows.task[i] == task_ids[row]
    assert (buffer.tree.total > 0).all()
