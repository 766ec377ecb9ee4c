"""Weights on their way to the actor."""

from __future__ import annotations

import threading

import torch

from ezm_pl.selfplay import WeightStore


def test_nothing_published_is_nothing_newer() -> None:
    assert WeightStore().newer_than(-1) is None


def test_only_newer_versions_come_back() -> None:
    store = WeightStore()
    store.publish(5, {"w": torch.tensor([1.0])})
    assert store.newer_than(5) is None and store.newer_than(6) is None
    found = store.newer_than(4)
    assert found is not None and found[0] == 5 and found[1]["w"].tolist() == [1.0]


def test_what_was_published_does_not_change_with_the_learner() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    store = WeightStore()
    store.publish(0, {"w": weight})
    with torch.no_grad():
        weight += 5
    found = store.newer_than(-1)
    assert found is not None and found[1]["w"].tolist() == [1.0] and not found[1]["w"].requires_grad


def test_version_and_weights_belong_together() -> None:
    """While another thread publishes as fast as it can."""
    store, enough = WeightStore(), threading.Event()

    def publish() -> None:
        version = 0
        while not enough.is_set():
            store.publish(version, {"a": torch.full((50,), float(version)), "b": torch.tensor(version)})
            version += 1

    thread = threading.Thread(target=publish)
    thread.start()
    version, seen = -1, 0
    try:
        while seen < 200:
            found = store.newer_than(version)
            if found is not None:
                assert found[0] > version
                version, seen = found[0], seen + 1
                assert (found[1]["a"] == version).all() and int(found[1]["b"]) == version
    finally:
        enough.set()
        thread.join()
