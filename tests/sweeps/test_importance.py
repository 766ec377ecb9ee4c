"""Importances over a study rebuilt from values and objectives."""

from __future__ import annotations

import numpy as np
import pytest

from ezm_pl.sweeps.importance import LEAST_TRIALS, importances


def trials(count: int) -> list:
    """The objective hangs on `loss.policy`, hardly on `loss.value`, not at all on the others."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(count):
        policy, value = np.exp(generator.uniform(-4, 2)), generator.uniform(0, 1)
        values = {
            "loss.policy": float(policy),
            "loss.value": float(value),
            "targets.policy": str(generator.choice(["best", "improved"])),
            "targets.td_steps": int(generator.integers(1, 6)),
        }
        found.append((values, -abs(np.log(policy)) + 0.05 * value))
    return found


def test_what_matters_comes_first() -> None:
    shares = importances(trials(40), direction="maximize", log=["loss.policy"])
    assert next(iter(shares)) == "loss.policy"
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["loss.policy"] > 0.5


def test_direction_matters() -> None:
    """The lowest tenth lies at the ends of the range, the highest in its middle; both are found."""
    flipped = [(values, -objective) for values, objective in trials(40)]
    assert importances(flipped, direction="minimize", log=["loss.policy"]) == pytest.approx(
        importances(trials(40), direction="maximize", log=["loss.policy"])
    )


def test_where_there_is_nothing_to_say() -> None:
    assert importances(trials(LEAST_TRIALS - 1), direction="maximize") == {}
    assert importances([({}, float(i)) for i in range(20)], direction="maximize") == {}
    assert importances([(values, 1.0) for values, _ in trials(20)], direction="maximize") == {}
    assert importances([], direction="maximize") == {}
