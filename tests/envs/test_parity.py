"""The built-in tasks against recordings of the original package (TASKS.md, "Parity")."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ezm_pl.envs import parity
from ezm_pl.spec.tasks import BUILTIN, HUMANOID_BENCH

RECORDINGS = Path(
    os.environ.get("EZM_PARITY_DIR", Path(__file__).resolve().parents[2].parent / "shared" / "parity")
)
TASKS = [task for task in HUMANOID_BENCH if task in BUILTIN]


@pytest.mark.skipif(
    not (RECORDINGS / "floor.json").is_file(),
    reason=f"no parity recordings in {RECORDINGS}: set EZM_PARITY_DIR",
)
@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_the_originals(task: str) -> None:
    (row,) = parity.check(RECORDINGS, [task])
    assert row.facts == ()
    assert row.terms == ()
    assert row.steps > 100
    assert row.qpos_median <= row.qpos_median_bound
    assert row.qpos_p90 <= row.qpos_p90_bound
    assert row.reward_median <= parity.REWARD_MEDIAN
    assert row.reward_p90 <= parity.REWARD_P90
    assert row.terminated >= parity.TERMINATED_AGREEMENT
    assert row.passed


def test_a_folder_without_recordings_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"floor\.json is missing"):
        parity.check(tmp_path)


def test_a_wrong_model_is_noticed() -> None:
    """The comparison of facts can fail: numbers, names, shapes."""
    assert parity._difference("body_mass", [1.0, 2.0], [1.0, 2.0]) == ""
    assert "body_mass[1]" in parity._difference("body_mass", [1.0, 2.00001], [1.0, 2.0])
    assert "'a', recorded 'c'" in parity._difference("joints", ["a", "b"], ["c", "b"])
    assert "shape" in parity._difference("gainprm", [1.0], [1.0, 2.0])
