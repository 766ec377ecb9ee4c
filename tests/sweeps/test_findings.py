"""What may be claimed of two grid points, and from how many seeds."""

from __future__ import annotations

import numpy as np
import pytest

from ezm_pl.sweeps.findings import verdicts
from ezm_pl.tracking.sweep.runs import Point, Trial
from ezm_pl.tracking.sweep.scores import PointScore, Score
from ezm_pl.tracking.sweep.statistics import bootstrap_iqm


def scored(label: str, seeds: list[float]) -> tuple[PointScore, Score]:
    """A grid point of one task, with these scores."""
    score = Score(bootstrap_iqm([seeds]), np.array(seeds), ())
    trial = Trial(0, "complete", {}, ())
    return PointScore(Point(label, (), (trial,), ()), trial, (), score, score), score


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        ([0.1], [0.9], "no difference can be claimed"),
        ([0.1, 0.2], [0.8, 0.9], "by chance in 1 of 3 comparisons: suggestive at most"),
        ([0.1, 0.15, 0.2], [0.8, 0.85, 0.9], "by chance in 1 of 10 comparisons: suggestive at most"),
        ([0.1, 0.15, 0.2, 0.2], [0.8, 0.85, 0.9, 0.9], "hb-4 against hb-2: higher by 0.700"),
        (
            [0.1, 0.2, 0.3, 0.4],
            [0.2, 0.3, 0.4, 0.5],
            "intervals overlap that of hb-2: no difference can be claimed",
        ),
        ([0.1] * 9 + [0.8], [0.5] * 10, "whole seeds of one lie among those of the other (+0.400)"),
    ],
)
def test_what_may_be_claimed(low: list[float], high: list[float], said: str) -> None:
    (sentence,) = verdicts([scored("hb-2", low), scored("hb-4", high)])
    assert said in sentence
