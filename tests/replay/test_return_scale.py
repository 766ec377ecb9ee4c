"""The scale of a task's discounted returns."""

from __future__ import annotations

import numpy as np
import pytest

from ezm_pl.replay.returns import ReturnScale


def test_by_hand() -> None:
    """Discount 1/2. Row 0 (task 0): rewards 4, 2, then a new episode with 6: returns 4, 4, 6.
    Row 1 (task 0): rewards 0, 8, 2: returns 0, 8, 6. Row 2 (task 1): rewards 0.5 throughout, below 1.
    """
    scale = ReturnScale(np.array([0, 0, 1]), 2, 0.5)
    no_end = np.zeros(3, bool)
    scale.update(np.array([4.0, 0.0, 0.5], np.float32), no_end)
    scale.update(np.array([2.0, 8.0, 0.5], np.float32), np.array([True, False, False]))
    scale.update(np.array([6.0, 2.0, 0.5], np.float32), no_end)
    assert scale.squares[0] == pytest.approx(16 + 16 + 36 + 0 + 64 + 36)
    assert scale.count.tolist() == [6, 3]
    np.testing.assert_allclose(scale.scale, [(168 / 6) ** 0.5, 1.0], rtol=1e-6)


def test_negative_returns_count_like_positive_ones() -> None:
    scale = ReturnScale(np.array([0]), 1, 0.9)
    scale.update(np.array([-3.0], np.float32), np.array([False]))
    assert scale.scale.tolist() == [3.0]


def test_nothing_yet_means_one() -> None:
    assert ReturnScale(np.array([0, 1]), 2, 0.9).scale.tolist() == [1.0, 1.0]
