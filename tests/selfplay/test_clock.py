"""Every moment belongs to exactly one part."""

from __future__ import annotations

import time

import pytest

from ezm_pl.selfplay import Clock, shares


def test_parts_add_up_to_all_the_time() -> None:
    start = time.perf_counter()
    clock = Clock()
    for part, seconds in (("search", 0.02), ("physics", 0.01), ("search", 0.01)):
        time.sleep(seconds)
        clock.lap(part)
    total = time.perf_counter() - start
    reading = clock.read()
    assert reading.keys() == {"search", "physics"}
    assert reading["search"] >= 0.03 and reading["physics"] >= 0.01
    assert sum(reading.values()) == pytest.approx(total, abs=2e-3)


def test_shares_are_of_the_time_between_two_readings() -> None:
    before = {"search": 10.0, "physics": 5.0}
    after = {"search": 13.0, "physics": 5.5, "waiting": 0.5}
    assert shares(before, after) == pytest.approx({"search": 0.75, "physics": 0.125, "waiting": 0.125})
    assert shares(after, after) == {}
