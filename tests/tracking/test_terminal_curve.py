"""Learning curves in the terminal."""

from __future__ import annotations

import numpy as np

from ezm_pl.tracking.results.terminal_curve import sparkline, terminal_curves
from ezm_pl.training import Evaluation


def test_blocks_rise_with_the_values_and_stay_inside() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 0, 7) == "▁▂▃▄▅▆▇█"
    assert sparkline([-5, 99], 0, 7) == "▁█"
    assert sparkline([3, 3], 3, 3) == "▁▁"


def evaluation(updates: int, *returns: float) -> Evaluation:
    each = np.array(returns)[:, None]
    return Evaluation(("h1-stand", "h1-walk"), updates, 4 * updates, each, each, "humanoidbench")


def test_a_line_per_task_and_the_mean_score() -> None:
    title, stand, walk, mean = terminal_curves(
        [evaluation(0, 10, 5), evaluation(9, 400, 0), evaluation(20, 805, 2)]
    )
    assert title == "Returns over 3 evaluations, 0 to 80 env steps per task"
    assert stand == "h1-stand    ▁▄█  10 -> 805"
    assert walk == "h1-walk     █▁▄  5 -> 2"
    assert mean.startswith("mean score  ▁") and "█" in mean


def test_one_evaluation_is_no_curve() -> None:
    assert terminal_curves([evaluation(0, 10, 5)]) == []
