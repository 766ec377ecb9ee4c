"""What a resumed run writes: each step of each metric once, and counters that never turn back."""

from __future__ import annotations

from pathlib import Path

import pytest

from ezm_pl.spec import Experiment
from ezm_pl.tracking.results.curves import run_curves
from ezm_pl.tracking.runs.logger import RunLogger
from ezm_pl.tracking.runs.mlflow_run import Run, new_run


@pytest.fixture
def run(workplace: Path, experiment: Experiment) -> Run:
    return new_run(experiment)


def session(run: Run, *metrics: tuple[int, dict[str, float]]) -> None:
    """What one process logs, sent to the last point."""
    logger = RunLogger(run.client, run.run_id)
    for step, values in metrics:
        logger.log_metrics(values, step)
    assert logger.sender.flush(60)
    assert logger.sender.close(0, run.directory / "unsent.jsonl") is None


def points(run: Run, name: str) -> list[tuple[int, float]]:
    history = run.client.get_metric_history(run.run_id, name)
    return [(point.step, point.value) for point in history]


def test_updates_that_are_repeated_are_not_written_again(run: Run) -> None:
    """Killed at update 6, resumed from the checkpoint of update 3."""
    first = [(n, {"train/loss/total": float(n), "env_steps": 10.0 * n}) for n in range(1, 7)]
    second = [(n, {"train/loss/total": 100.0 + n, "env_steps": 10.0 * n}) for n in range(4, 10)]
    session(run, *first, (4, {"eval/score": 0.4, "env_steps": 40.0}))
    session(
        run, *second, (4, {"eval/score": 0.5, "env_steps": 40.0}), (8, {"eval/score": 0.8, "env_steps": 80.0})
    )
    losses = points(run, "train/loss/total")
    assert [step for step, _ in losses] == list(range(1, 10))
    assert [value for _, value in losses][5:] == [6.0, 107.0, 108.0, 109.0]
    assert points(run, "eval/score") == [(4, 0.4), (8, 0.8)]
    assert points(run, "by_env_steps/score") == [(40, 0.4), (80, 0.8)]
    assert [step for step, _ in points(run, "env_steps")] == list(range(1, 10))


def test_what_was_not_written_before_the_crash_is_written_after_it(run: Run) -> None:
    """Each metric goes on behind its own last step."""
    session(run, (5, {"train/loss/total": 1.0}))
    session(run, (5, {"train/loss/total": 2.0, "selfplay/h1-walk/return": 3.0}))
    assert points(run, "train/loss/total") == [(5, 1.0)]
    assert points(run, "selfplay/h1-walk/return") == [(5, 3.0)]


def test_a_counter_waits_until_it_has_caught_up(run: Run) -> None:
    session(run, (5, {"env_steps": 100.0, "eval/score": 0.1}))
    later = ((6, 90.0), (7, 100.0), (8, 110.0))
    session(run, *((step, {"env_steps": steps, "eval/score": 0.2}) for step, steps in later))
    assert points(run, "env_steps") == [(5, 100.0), (7, 100.0), (8, 110.0)]
    assert [step for step, _ in points(run, "by_env_steps/score")] == [100, 100, 110]
    assert [step for step, _ in points(run, "eval/score")] == [5, 6, 7, 8]


def test_of_evaluations_after_collection_the_last_counts(run: Run) -> None:
    name = "h1-walk/return_ezm"
    session(run, *((update, {f"eval/{name}": 10.0 * update, "env_steps": 80.0}) for update in (20, 22, 25)))
    assert points(run, f"by_env_steps/{name}") == [(80, 200.0), (80, 220.0), (80, 250.0)]
    (curve,) = run_curves(run.client, run.run_id)["h1-walk"]
    assert (curve.env_steps.tolist(), curve.returns.tolist()) == ([80], [250])
