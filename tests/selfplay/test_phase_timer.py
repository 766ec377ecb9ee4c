"""Phases of a thread's time."""

from __future__ import annotations

import time

import pytest

from ezm_pl.selfplay import PhaseTimer, shares


def test_phases_and_the_rest_add_up_to_all_the_time() -> None:
    start = time.perf_counter()
    timer = PhaseTimer()
    for phase, seconds in (("search", 0.02), ("physics", 0.01), ("search", 0.01)):
        with timer(phase):
            time.sleep(seconds)
        time.sleep(0.005)
    reading = timer.read()
    total = time.perf_counter() - start
    assert reading.keys() == {"search", "physics", "other"}
    assert reading["search"] >= 0.03 and reading["physics"] >= 0.01 and reading["other"] >= 0.015
    assert sum(reading.values()) == pytest.approx(total, abs=2e-3)


def test_shares_are_of_the_time_between_two_readings() -> None:
    before = {"search": 10.0, "physics": 5.0}
    after = {"search": 13.0, "physics": 5.5, "waiting": 0.5}
    assert shares(before, after) == pytest.approx({"search": 0.75, "physics": 0.125, "waiting": 0.125})
    assert shares(after, after) == {}
