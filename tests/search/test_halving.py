"""Sequential halving: plans worked out by hand, and mctx's sequences for many sizes."""

from __future__ import annotations

import importlib
from itertools import product

import pytest

from ezm_pl.search import Wave, plan_waves

BY_HAND = {
    # (considered, simulations): (visit, width) of each wave
    (16, 32): [(0, 16), (1, 8), (2, 4), (3, 4)],
    (8, 16): [(0, 8), (1, 4), (2, 2), (3, 2)],
    (4, 8): [(0, 4), (1, 2), (2, 2)],
    (2, 4): [(0, 2), (1, 2)],
    (1, 3): [(0, 1), (1, 1), (2, 1)],
    # ceil(log2 6) = 3 phases: 6 once, 3 twice, then pairs four times
    (6, 24): [(0, 6), (1, 3), (2, 3), (3, 2), (4, 2), (5, 2), (6, 2), (7, 2), (8, 2)],
    # 64 // (4 * 16) = 1, 64 // (4 * 8) = 2, 64 // (4 * 4) = 4, 64 // (4 * 2) = 8 visits
    (16, 64): [(0, 16), (1, 8), (2, 8), *((v, 4) for v in range(3, 7)), *((v, 2) for v in range(7, 15))],
    # fewer simulations than candidates: the first phase is all there is
    (16, 9): [(0, 9)],
    # the budget ends inside a round
    (16, 30): [(0, 16), (1, 8), (2, 4), (3, 2)],
    (4, 7): [(0, 4), (1, 2), (2, 1)],
}


@pytest.mark.parametrize(("sizes", "waves"), BY_HAND.items())
def test_plans_worked_out_by_hand(sizes: tuple[int, int], waves: list[tuple[int, int]]) -> None:
    considered, simulations = sizes
    assert plan_waves(considered, simulations) == tuple(Wave(*wave) for wave in waves)
    assert sum(width for _, width in waves) == simulations


def test_wave_splits_rounds_but_never_joins_them() -> None:
    # Rounds of 16, 8, 4 and 4, at most 6 at once.
    widths = [(wave.visit, wave.width) for wave in plan_waves(16, 32, 6)]
    assert widths == [(0, 6), (0, 6), (0, 4), (1, 6), (1, 2), (2, 4), (3, 4)]
    assert plan_waves(16, 32, 1) == tuple(
        Wave(visit, 1) for visit, width in BY_HAND[16, 32] for _ in range(width)
    )
    assert plan_waves(16, 32, 100) == plan_waves(16, 32, 16) == plan_waves(16, 32)


@pytest.mark.parametrize(
    ("considered", "simulations", "wave"),
    [(0, 8, None), (-1, 8, None), (8, 0, None), (8, -3, None), (8, 8, 0), (8, 8, -1)],
)
def test_sizes_below_one_are_refused(considered: int, simulations: int, wave: int | None) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        plan_waves(considered, simulations, wave)


def test_order_of_visits_equals_mctx() -> None:
    pytest.importorskip("mctx", reason="the oracle extra (jax, mctx) is not installed")
    halving = importlib.import_module("mctx._src.seq_halving")
    for considered, simulations, wave in product(range(1, 34), [*range(1, 40), 64, 100], [None, 1, 3]):
        visits = [w.visit for w in plan_waves(considered, simulations, wave) for _ in range(w.width)]
        expected = halving.get_sequence_of_considered_visits(considered, simulations)
        assert tuple(visits) == expected, (considered, simulations, wave)
