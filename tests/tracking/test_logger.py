"""What a resumed run writes: each step of each metric once, and counters that never turn back."""

from __future__ import annotations

from pathlib import Path

import pytest

from ezm_pl.spec import Experiment
from ezm_pl.tracking.logger import RunLogger
from ezm_pl.tracking.run import Run, new_run


@pytest.fixture
def run(workplace: Path, experiment: Experiment) -> Run:
    return new_run(experiment)


def points(run: Run, name: str) -> list[tuple[int, float]]:
    history = run.client.get_metric_history(run.run_id, name)
    return [(point.step, point.value) for point in history]


def test_updates_that_are_repeated_are_not_written_again(run: Run) -> None:
    """Killed at update 6, resumed from the checkpoint of update 3."""
    first = RunLogger(run.client, run.run_id)
    for step in range(1, 7):
        first.log_metrics({"train/loss/total": float(step), "env_steps": 10.0 * step}, step)
        if step == 4:
            first.log_metrics({"eval/score": 0.4, "env_steps": 40.0}, step)
    second = RunLogger(run.client, run.run_id)
    for step in range(4, 10):
        second.log_metrics({"train/loss/total": 100.0 + step, "env_steps": 10.0 * step}, step)
        if step % 4 == 0:
            second.log_metrics({"eval/score": step / 10, "env_steps": 10.0 * step}, step)
    losses = points(run, "train/loss/total")
    assert [step for step, _ in losses] == list(range(1, 10))
    assert [value for _, value in losses][5:] == [6.0, 107.0, 108.0, 109.0]
    assert points(run, "eval/score") == [(4, 0.4), (8, 0.8)]
    assert points(run, "by_env_steps/score") == [(40, 0.4), (80, 0.8)]
    assert [step for step, _ in points(run, "env_steps")] == list(range(1, 10))


def test_what_was_not_written_before_the_crash_is_written_after_it(run: Run) -> None:
    """Each metric goes on behind its own last step."""
    RunLogger(run.client, run.run_id).log_metrics({"train/loss/total": 1.0}, 5)
    RunLogger(run.client, run.run_id).log_metrics(
        {"train/loss/total": 2.0, "selfplay/h1-walk/return": 3.0}, 5
    )
    assert points(run, "train/loss/total") == [(5, 1.0)]
    assert points(run, "selfplay/h1-walk/return") == [(5, 3.0)]


def test_a_counter_waits_until_it_has_caught_up(run: Run) -> None:
    RunLogger(run.client, run.run_id).log_metrics({"env_steps": 100.0, "eval/score": 0.1}, 5)
    logger = RunLogger(run.client, run.run_id)
    for step, env_steps in ((6, 90.0), (7, 100.0), (8, 110.0)):
        logger.log_metrics({"env_steps": env_steps, "eval/score": 0.2}, step)
    assert points(run, "env_steps") == [(5, 100.0), (7, 100.0), (8, 110.0)]
    assert [step for step, _ in points(run, "by_env_steps/score")] == [100, 110]
    assert [step for step, _ in points(run, "eval/score")] == [5, 6, 7, 8]
