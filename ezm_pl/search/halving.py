"""Sequential halving as a plan of waves, known before the search begins."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Wave:
    """One network call: `width` root actions that all have `visit` visits get one more."""

    visit: int
    width: int


@lru_cache
def plan_waves(considered: int, num_simulations: int, wave: int | None = None) -> tuple[Wave, ...]:
    """The waves of sequential halving (Karnin et al. 2013; Danihelka et al. 2022, section 3.3).

    Each phase visits its candidates equally often, then drops the worse half; 16 candidates and 32
    simulations give 16 once, 8 once more, 4 twice more. A simulation budget below the number of
    candidates ends inside the first phase.

    Args:
        considered: candidates at the start, at least 1.
        num_simulations: sum of the widths that come back.
        wave: most simulations per wave; None for a whole visit of all a phase's candidates.

    Raises:
        ValueError: any argument below 1.
    """
    if min(considered, num_simulations, 1 if wave is None else wave) < 1:
        raise ValueError("considered, num_simulations and wave must be at least 1")
    rounds: list[tuple[int, int]] = []
    phases = max(1, math.ceil(math.log2(considered)))
    visits, left, count = 0, num_simulations, considered
    while left:
        for _ in range(max(1, num_simulations // (phases * count))):
            width = min(count, left)
            if width:
                rounds.append((visits, width))
            visits, left = visits + 1, left - width
        count = max(2, count // 2) if considered > 1 else 1
    most = wave or considered
    return tuple(
        Wave(visit, min(most, width - start)) for visit, width in rounds for start in range(0, width, most)
    )
