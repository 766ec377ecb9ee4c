"""The built-in tasks against recordings of the original package (docs/parity.md)."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from ezm_pl.envs import parity, parity_facts
from ezm_pl.spec.tasks import HUMANOID_BENCH

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
RECORDINGS = Path(os.environ.get("EZM_PARITY_DIR", SHARED / "parity"))
OBJECT_RECORDINGS = Path(os.environ.get("EZM_PARITY_OBJECTS_DIR", SHARED / "parity-objects"))
TASKS = list(HUMANOID_BENCH)


def recordings(task: str) -> Path:
    """The folder with a task's recording; skips the test where it is not."""
    folder = OBJECT_RECORDINGS if task in parity.OBJECT_TASKS else RECORDINGS
    if not (folder / f"{task}.npz").is_file():
        pytest.skip(f"no recording of {task} in {folder}: set EZM_PARITY_DIR, EZM_PARITY_OBJECTS_DIR")
    return folder


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_the_originals(task: str) -> None:
    (row,) = parity.check(recordings(task), [task])
    assert row.facts == ()
    assert row.terms == ()
    assert row.odd_events == ()
    assert row.steps > 100
    assert (row.events > 0) == (task in parity.OBJECT_TASKS)
    assert row.qpos_median <= row.qpos_median_bound
    assert row.qpos_p90 <= row.qpos_p90_bound
    assert row.reward_median <= row.reward_bounds[0]
    assert row.reward_p90 <= row.reward_bounds[1]
    assert row.terminated >= parity.TERMINATED_AGREEMENT
    assert row.first_obs <= parity.FIRST_OBSERVATION
    assert row.passed


def test_an_event_that_differs_is_named(tmp_path: Path) -> None:
    task = "h1hand-push"
    folder = recordings(task)
    (tmp_path / "events").mkdir()
    for name in ("floor.json", f"{task}.npz"):
        shutil.copy(folder / name, tmp_path / name)
    with np.load(folder / "events" / f"{task}.npz") as stored:
        event = dict(stored)
    event["reward"] = event["reward"] + np.array([0.0, 0.5, 0.0, 0.0])
    internal = json.loads(str(event["internal"]))
    internal[3]["goal"] = [0.0, 0.0, 1.0]  # which step 2 is to have left
    event["internal"] = np.array(json.dumps(internal))
    np.savez(tmp_path / "events" / f"{task}.npz", **event)
    (row,) = parity.check(tmp_path, [task])
    assert not row.passed
    assert [line.split(":")[0] for line in row.odd_events] == [
        "event 1 (just outside)",
        "event 2 (at goal)",
        "event 3 (at goal)",
    ]
    assert "reward" in row.odd_events[0] and "goal" in row.odd_events[1] and "reward" in row.odd_events[2]


def test_what_is_no_recording_is_one_clear_error(tmp_path: Path) -> None:
    """Nothing that cannot be compared passes, and each says which file is at fault."""
    floor, recording = tmp_path / "floor.json", tmp_path / "h1-walk.npz"

    def fails(kind: type[Exception], message: str, tasks: list[str] | None = None) -> None:
        with pytest.raises(kind, match=message) as caught:
            parity.check(tmp_path, tasks)
        assert "\n" not in str(caught.value)

    fails(FileNotFoundError, r"floor\.json is missing")
    for text in ("no JSON", "[]", "{}"):
        floor.write_text(text)
        fails(ValueError, r"floor\.json is no table of floors")
    floor.write_text('{"tasks": {}}')
    fails(FileNotFoundError, r"no built-in task has a \.npz file")
    fails(FileNotFoundError, r"no recording of h1-walk: .*h1-walk\.npz is missing", ["h1-walk"])
    recording.write_bytes(b"junk")
    fails(ValueError, r"floor\.json has no median and p90 of h1-walk")
    floor.write_text('{"tasks": {"h1-walk": {"median": 1, "p90": 1}}}')
    fails(ValueError, r"h1-walk\.npz is no recording: it cannot be read")
    np.savez(recording, qpos=np.zeros((1, 26)))
    fails(ValueError, r"h1-walk\.npz is no recording: it has no entry 'internal'")


def test_a_wrong_model_is_noticed() -> None:
    """The comparison of facts can fail: numbers, names, shapes."""
    assert parity_facts._difference("body_mass", [1.0, 2.0], [1.0, 2.0]) == ""
    assert "body_mass[1]" in parity_facts._difference("body_mass", [1.0, 2.00001], [1.0, 2.0])
    assert "'a', recorded 'c'" in parity_facts._difference("joints", ["a", "b"], ["c", "b"])
    assert "shape" in parity_facts._difference("gainprm", [1.0], [1.0, 2.0])
