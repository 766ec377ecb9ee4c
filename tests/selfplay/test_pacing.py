"""Collection and learning in step: who may go, who waits, and that nobody waits for ever."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from ezm_pl.selfplay import Lockstep, Pacing


def may_collect(pacing: Pacing) -> bool:
    """Whether the collector would be let through, asked without waiting."""
    answer: list[bool] = []
    thread = threading.Thread(target=lambda: answer.append(pacing.wait_to_collect()), daemon=True)
    thread.start()
    thread.join(0.05)
    if not thread.is_alive():
        return answer[0]
    pacing.stop()
    thread.join(5)
    pacing._stopped = False
    assert answer == [False]
    return False


def test_the_collector_never_goes_ahead_of_the_updates() -> None:
    """10 updates for 100 steps: a tenth of one for a tenth of the other."""
    pacing = Pacing(total_updates=10, total_steps=100, max_lead=0.5)
    assert may_collect(pacing)
    pacing.collected(1)
    assert not may_collect(pacing)
    pacing.updated(1)
    assert may_collect(pacing)
    pacing.collected(10)
    assert may_collect(pacing), "as far as the updates is not ahead of them"
    pacing.collected(11)
    assert not may_collect(pacing)
    pacing.updated(2)
    assert may_collect(pacing)


def test_collection_ends_with_its_budget() -> None:
    pacing = Pacing(total_updates=10, total_steps=100, max_lead=0.5)
    pacing.updated(12)
    pacing.collected(99)
    assert not pacing.finished and may_collect(pacing)
    pacing.collected(100)
    assert pacing.finished and not may_collect(pacing)


def test_the_learner_leads_by_no_more_than_it_may() -> None:
    """A lead of 0.2: with nothing collected updates 1, 2 and 3 (0.2 of ten is done before the third)."""
    pacing = Pacing(total_updates=10, total_steps=100, max_lead=0.2)
    for done, allowed in [(0, True), (1, True), (2, True), (3, False)]:
        pacing.updated(done)
        assert pacing.wait_to_learn(0.01) == allowed, done
    pacing.collected(9)
    assert not pacing.wait_to_learn(0.01)
    pacing.collected(10)
    assert pacing.wait_to_learn(0.01)


def test_at_equal_shares_the_learner_goes_without_any_lead() -> None:
    """Rounding has no say in it: (3 + 1) / 10 - 30 / 100 comes out as more than 1 / 10."""
    pacing = Pacing(total_updates=10, total_steps=100, max_lead=0.0)
    for done in range(10):
        pacing.updated(done)
        pacing.collected(10 * done)
        assert pacing.may_learn(), done


def test_the_learner_waits_for_nothing_once_collection_is_over() -> None:
    pacing = Pacing(total_updates=10, total_steps=100, max_lead=0.0)
    pacing.updated(15)
    assert not pacing.wait_to_learn(0.01)
    pacing.collected(100)
    assert pacing.wait_to_learn(0.01)


def test_restoring_both_counters() -> None:
    pacing = Pacing(total_updates=10, total_steps=100, max_lead=0.1)
    pacing.updated(5)
    pacing.collected(51)
    assert pacing.progress == 0.5
    assert not may_collect(pacing)
    assert pacing.wait_to_learn(0.01)
    pacing.updated(6)
    assert may_collect(pacing)


def test_progress_stays_within_one() -> None:
    pacing = Pacing(total_updates=4, total_steps=100, max_lead=0.1)
    assert [pacing.progress, pacing.updated(1), pacing.progress, pacing.updated(9), pacing.progress] == [
        0.0,
        None,
        0.25,
        None,
        1.0,
    ]


def test_waiting_ends_after_the_timeout_and_is_counted() -> None:
    pacing = Pacing(total_updates=10, total_steps=100, max_lead=0.0)
    pacing.updated(1)
    start = time.perf_counter()
    assert not pacing.wait_to_learn(0.1)
    assert 0.09 < time.perf_counter() - start < 5


def test_stopping_wakes_both_sides() -> None:
    pacing = Pacing(total_updates=10, total_steps=100, max_lead=0.0)
    pacing.collected(5)
    answers: list[bool] = []
    waiting = [threading.Thread(target=lambda: answers.append(pacing.wait_to_collect())) for _ in range(2)]
    pacing_learner = Pacing(total_updates=10, total_steps=100, max_lead=0.0)
    pacing_learner.updated(3)
    waiting.append(threading.Thread(target=lambda: answers.append(pacing_learner.wait_to_learn(60))))
    for thread in waiting:
        thread.start()
    time.sleep(0.05)
    assert not answers
    pacing.stop()
    pacing_learner.stop()
    for thread in waiting:
        thread.join(5)
        assert not thread.is_alive()
    assert answers == [False] * 3
    assert not pacing.wait_to_collect(), "for good"


@pytest.mark.parametrize("seed", range(40))
def test_random_budgets_come_to_their_end_in_step(seed: int) -> None:
    """Both threads with random budgets, chunks and hesitations; the learner fetches one batch ahead."""
    random = np.random.default_rng(seed)
    total_updates, total_steps = int(random.integers(1, 40)), int(random.integers(1, 60))
    extra, chunk = int(random.integers(0, 10)), int(random.integers(1, 12))
    lead = float(random.choice([0.0, 0.02, 0.3, 1.0]))
    ahead = bool(seed % 2)
    pacing = Pacing(total_updates, total_steps, lead)
    problems: list[str] = []
    naps = random.random(1000) * 2e-4

    def collect() -> None:
        steps = 0
        while pacing.wait_to_collect():
            # Updates only grow, so what held when we were let through still holds.
            if steps / total_steps > pacing._updates / total_updates + 1e-12:
                problems.append(f"collected ahead at {steps} steps")
            time.sleep(naps[steps % 1000])
            steps += chunk
            pacing.collected(steps)

    def learn() -> None:
        def fetch(updates: int) -> None:
            while not pacing.wait_to_learn(1.0):
                if time.perf_counter() > deadline:
                    problems.append("the learner waits for ever")
                    return
            gap = updates / total_updates - pacing._steps / total_steps
            if not pacing.finished and gap > lead + 1e-9:
                problems.append(f"learned ahead by {gap}")

        if ahead:
            fetch(0)
        for updates in range(total_updates + extra):
            fetch(updates)
            time.sleep(naps[-updates])
            pacing.updated(updates + 1)
        pacing.stop()

    deadline = time.perf_counter() + 10
    threads = [threading.Thread(target=collect, daemon=True), threading.Thread(target=learn, daemon=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads), "a deadlock"
    assert not problems, problems


def test_in_lockstep_only_one_side_moves() -> None:
    """Steps are taken while the learner waits, as many as pacing allows; none while it works."""
    pacing = Lockstep(total_updates=4, total_steps=100, max_lead=1.0)
    taken: list[int] = []

    def collect() -> None:
        while pacing.wait_to_collect():
            taken.append(10)
            pacing.collected(sum(taken))

    thread = threading.Thread(target=collect)
    thread.start()
    seen = []
    for update in range(1, 7):
        while not pacing.wait_to_learn(0.01):
            pass
        seen.append(sum(taken))
        time.sleep(0.02)
        assert sum(taken) == seen[-1], "nothing moves while the learner works"
        pacing.updated(update)
    pacing.stop()
    thread.join(5)
    assert not thread.is_alive()
    assert seen == [10, 30, 60, 80, 100, 100]
