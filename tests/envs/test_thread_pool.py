"""Threads that share jobs with their caller: every job once, the longest first, errors reach the caller."""

from __future__ import annotations

import threading
import time

import pytest

from ezm_pl.envs.stepping.thread_pool import ThreadPool


def test_every_job_is_done_once_and_shared() -> None:
    pool, done, threads = ThreadPool(20, helpers=2), [], set()

    def job(n: int) -> None:
        time.sleep(0.002)
        done.append(n)
        threads.add(threading.current_thread().name)

    for _ in range(3):
        pool.each(job)
    pool.close()
    assert sorted(done) == sorted(3 * list(range(20)))
    assert threads == {threading.current_thread().name, "ezm-envs-0", "ezm-envs-1"}
    assert not any(thread.name.startswith("ezm-envs") for thread in threading.enumerate())


def test_what_took_longest_is_begun_first() -> None:
    pool, order = ThreadPool(4, helpers=0), []

    def job(n: int) -> None:
        order.append(n)
        time.sleep(0.01 * n)

    pool.each(job)
    pool.each(job)
    assert order == [0, 1, 2, 3, 3, 2, 1, 0]


@pytest.mark.parametrize("bad", [0, 7])
def test_a_failure_is_raised_after_everybody_has_stopped(bad: int) -> None:
    pool, running = ThreadPool(8, helpers=1), []

    def job(n: int) -> None:
        running.append(n)
        time.sleep(0.005)
        running.remove(n)
        if n == bad:
            raise ZeroDivisionError(f"job {n}")

    with pytest.raises(ZeroDivisionError, match=f"job {bad}"):
        pool.each(job)
    assert running == []
    pool.each(lambda n: None)
    pool.close()
