"""Aggregates over tasks and seeds that hold with few runs (Agarwal et al. 2021, arXiv 2108.13264)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import trim_mean

REPLICATES = 10_000
_LEVEL = 0.95


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

    def overlaps(self, other: Interval) -> bool:
        """Whether the two intervals share a value; false where one is not known."""
        return self.known and other.known and self.low <= other.high and other.low <= self.high


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
    scores = [np.asarray(stratum, float) for stratum in strata]
    if not scores or any(len(stratum) == 0 for stratum in scores):
        raise ValueError("every task needs at least one score")
    value = iqm(np.concatenate(scores))
    if max(map(len, scores)) < 2:
        return Interval(value, np.nan, np.nan)
    generator = np.random.default_rng(seed)
    samples: list[NDArray[np.float64]] = [
        stratum[generator.integers(len(stratum), size=(replicates, len(stratum)))] for stratum in scores
    ]
    replicated = trim_mean(np.concatenate(samples, axis=1), 0.25, axis=1)
    low, high = np.quantile(replicated, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Interval(value, float(low), float(high))
