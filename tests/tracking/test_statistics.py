"""Interquartile means and their bootstrap, against hand-computed cases and their own promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from ezm_pl.tracking.sweep.statistics import Interval, Trend, bootstrap_iqm, iqm, trend


def test_iqm_by_hand() -> None:
    assert iqm([0, 1, 2, 3, 4, 5, 6, 1000]) == pytest.approx((2 + 3 + 4 + 5) / 4)
    assert iqm([[9, -50], [1, 3], [2, 900]]) == pytest.approx((1 + 2 + 3 + 9) / 4)
    assert iqm([1, 2, 6]) == pytest.approx(3)
    assert iqm([7]) == 7


def test_interval_holds_the_estimate_and_repeats() -> None:
    scores = np.random.default_rng(1).normal(0.5, 0.1, size=(4, 5))
    first, again = bootstrap_iqm(scores, seed=3), bootstrap_iqm(scores, seed=3)
    assert first == again
    assert first.value == iqm(scores)
    assert first.low < first.value < first.high
    assert bootstrap_iqm(scores, seed=4) != first


def test_seeds_are_resampled_within_tasks_only() -> None:
    """Tasks far apart, seeds alike: the spread between tasks must not widen the interval."""
    interval = bootstrap_iqm([[0.0, 0.0, 0.0], [10.0, 10.0, 10.0], [20.0, 20.0], [30.0, 30.0, 30.0]])
    assert interval.low == interval.value == interval.high


def test_two_seeds_by_enumeration() -> None:
    """One task with scores 0 and 1: a resample's mean is 0, 1/2 or 1, so the interval is all of [0, 1]."""
    assert bootstrap_iqm([[0.0, 1.0]]) == Interval(0.5, 0.0, 1.0)


def test_one_seed_has_no_interval() -> None:
    interval = bootstrap_iqm([[0.1], [0.3]])
    assert interval.value == pytest.approx(0.2)
    assert not interval.known
    assert not interval.overlaps(Interval(0.2, 0.0, 1.0))


def test_no_scores() -> None:
    with pytest.raises(ValueError, match="at least one score"):
        bootstrap_iqm([])
    with pytest.raises(ValueError, match="at least one score"):
        bootstrap_iqm([[1.0], []])


def test_overlap() -> None:
    assert Interval(1, 0, 2).overlaps(Interval(3, 2, 4))
    assert not Interval(1, 0, 2).overlaps(Interval(3, 2.1, 4))


def test_coverage() -> None:
    """Of 95% intervals, about 95% hold the truth (percentile intervals of 20 seeds fall a little short)."""
    generator = np.random.default_rng(0)
    means = np.array([0.0, 0.2, 0.4, 0.6])
    truth = iqm(means[:, None] + np.random.default_rng(7).normal(0, 0.2, size=(4, 100_000)))
    held = 0
    for trial in range(200):
        scores = means[:, None] + generator.normal(0, 0.2, size=(4, 20))
        interval = bootstrap_iqm(scores, seed=trial, replicates=500)
        held += interval.low <= truth <= interval.high
    assert 0.88 <= held / 200 <= 0.99


def test_a_trend_by_hand() -> None:
    """Six runs in order are one of ninety arrangements; a tie is half a pair."""
    assert trend([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]) == Trend(12.0, 12, pytest.approx(2 / 90))  # type: ignore[arg-type]
    assert trend([[1.0, 2.0], [2.0, 4.0], [5.0, 6.0]]).ordered == 11.5
    with pytest.raises(ValueError, match="two or more"):
        trend([[1.0, 2.0], [3.0]])
    assert trend([[1.0, 2.0], [3.0, 0.0]]).text == "2 of 4 pairs, by chance 1"


def test_a_trend_of_two_groups_is_the_mann_whitney_test() -> None:
    generator = np.random.default_rng(3)
    low, high = generator.normal(size=6), generator.normal(0.8, size=5)
    expected = mannwhitneyu(high, low, method="exact")
    found = trend([low, high])
    assert (found.ordered, found.pairs) == (expected.statistic, 30)
    assert found.chance == pytest.approx(expected.pvalue)
