"""Aggregates over tasks and seeds that hold with few runs (Agarwal et al. 2021, arXiv 2108.13264)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import permutation_test, trim_mean

REPLICATES = 10_000
_LEVEL = 0.95
CHANCE = 0.05
"""A difference that chance makes more often than this supports no claim; four seeds per point suffice."""


@dataclass(frozen=True)
class Interval:
    """A point estimate with its 95% interval.

    Attributes:
        value: of the data themselves.
        low: lower end; equal to `high` and NaN where no task has two seeds: nothing can be resampled.
        high: upper end.
    """

    value: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        """Whether there is an interval at all."""
        return bool(np.isfinite(self.low) and np.isfinite(self.high))

    def text(self, digits: int) -> str:
        """`0.123 [0.100, 0.150]` to so many digits, or the value alone."""
        value, low, high = (f"{x:,.{digits}f}" for x in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]" if self.known else value

    def overlaps(self, other: Interval) -> bool:
        """Whether the two intervals share a value; false where one is not known."""
        return self.known and other.known and self.low <= other.high and other.low <= self.high


def chance_of_separation(one: int, other: int) -> float:
    """How often seeds of no difference at all would separate completely, either way (permutation test)."""
    return 2 / math.comb(one + other, one)


def iqm(values: ArrayLike) -> float:
    """Interquartile mean: the mean without the lowest and the highest quarter of the values.

    As `scipy.stats.trim_mean(., 0.25)`, which drops `n // 4` values at either end: below four values it
    is the mean.

    Args:
        values: any shape, at least one value.
    """
    return float(trim_mean(np.asarray(values, float).ravel(), 0.25))


def bootstrap_iqm(strata: Sequence[ArrayLike], *, seed: int = 0, replicates: int = REPLICATES) -> Interval:
    """IQM over all scores, with a stratified percentile bootstrap: seeds are resampled within each task.

    Args:
        strata: for each task the scores `[seeds]`; tasks may differ in the number of seeds.
        seed: of the resampling, which has its own generator.
        replicates: bootstrap samples.

    Raises:
        ValueError: no scores.
    """
    scores = _checked(strata)
    value = iqm(np.concatenate(scores))
    if max(map(len, scores)) < 2:
        return Interval(value, np.nan, np.nan)
    return _interval(value, _replicated_iqm(_resampled(scores, np.random.default_rng(seed), replicates)))


def bootstrap_difference(
    ours: Sequence[ArrayLike], theirs: Sequence[ArrayLike], *, replicates: int = REPLICATES
) -> Interval:
    """Difference of two IQMs, the first less the second; both are resampled as in `bootstrap_iqm`."""
    a, b = _checked(ours), _checked(theirs)
    value = iqm(np.concatenate(a)) - iqm(np.concatenate(b))
    if min(max(map(len, a)), max(map(len, b))) < 2:
        return Interval(value, np.nan, np.nan)
    generator = np.random.default_rng(0)
    drawn = [_replicated_iqm(_resampled(scores, generator, replicates)) for scores in (a, b)]
    return _interval(value, drawn[0] - drawn[1])


def probability_of_improvement(ours: Sequence[ArrayLike], theirs: Sequence[ArrayLike]) -> Interval:
    """How probably a run of ours scores above one of theirs on the same task; ties count as half.

    The mean over tasks of the Mann-Whitney statistic, with a stratified percentile bootstrap of both.

    Args:
        ours, theirs: for each task the scores `[seeds]`, the tasks in one order.

    Raises:
        ValueError: no scores, or not the same number of tasks.
    """
    a, b = _checked(ours), _checked(theirs)
    if len(a) != len(b):
        raise ValueError("both need scores of the same tasks")
    value = float(np.mean([_above(x[None], y[None]) for x, y in zip(a, b, strict=True)]))
    if min(max(map(len, a)), max(map(len, b))) < 2:
        return Interval(value, np.nan, np.nan)
    generator = np.random.default_rng(0)
    pairs = zip(*(_resampled(scores, generator, REPLICATES) for scores in (a, b)), strict=True)
    return _interval(value, np.mean([_above(x, y) for x, y in pairs], axis=0))


@dataclass(frozen=True)
class Trend:
    """Whether scores rise from group to group (Jonckheere-Terpstra).

    Attributes:
        ordered: pairs of scores of different groups, of which the later group's is higher; ties are half.
        pairs: how many there are.
        chance: how often scores without a trend are ordered so far, either way (permutation test).
    """

    ordered: float
    pairs: int
    chance: float

    @property
    def text(self) -> str:
        """`23 of 27 pairs, by chance 0.042`."""
        return f"{self.ordered:g} of {self.pairs} pairs, by chance {self.chance:.2g}"


def trend(groups: Sequence[ArrayLike]) -> Trend:
    """The trend over groups in their order.

    Args:
        groups: two or more, the scores `[runs]` of each.

    Raises:
        ValueError: a group has fewer than two scores.
    """
    scores = _checked(groups)
    if min(map(len, scores)) < 2:
        raise ValueError("a trend needs two or more scores in each group")

    def ordered(*drawn: NDArray[np.float64]) -> float:
        between = itertools.combinations(drawn, 2)
        return sum(
            float(_above(later[None], earlier[None])[0]) * later.size * earlier.size
            for earlier, later in between
        )

    found = permutation_test(scores, ordered, permutation_type="independent", n_resamples=REPLICATES, rng=0)
    pairs = sum(a.size * b.size for a, b in itertools.combinations(scores, 2))
    return Trend(float(found.statistic), pairs, float(found.pvalue))


def _checked(strata: Sequence[ArrayLike]) -> list[NDArray[np.float64]]:
    scores = [np.asarray(stratum, float) for stratum in strata]
    if not scores or any(len(stratum) == 0 for stratum in scores):
        raise ValueError("every task needs at least one score")
    return scores


def _resampled(
    scores: Sequence[NDArray[np.float64]], generator: np.random.Generator, replicates: int
) -> list[NDArray[np.float64]]:
    """Per task `[replicates, seeds]`, seeds drawn with replacement."""
    return [own[generator.integers(len(own), size=(replicates, len(own)))] for own in scores]


def _replicated_iqm(samples: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    replicated: NDArray[np.float64] = trim_mean(np.concatenate(samples, axis=1), 0.25, axis=1)
    return replicated


def _above(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """`[R, n]` and `[R, m]` to the share of pairs in which `x` is above `y`, `[R]`."""
    difference = x[:, :, None] - y[:, None, :]
    share: NDArray[np.float64] = ((difference > 0) + 0.5 * (difference == 0)).mean((1, 2))
    return share


def _interval(value: float, replicated: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(replicated, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Interval(value, float(low), float(high))
