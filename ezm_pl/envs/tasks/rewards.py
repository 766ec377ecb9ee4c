"""Reward shaping: `tolerance`, as in dm_control (Tunyasuvunakool et al. 2020, section 4.1), for scalars.

Written with `math` on plain floats: rewards are a handful of scalars per step, where numpy's per-call cost
would outweigh the physics it judges.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

INF = math.inf


def tolerance(
    x: float,
    lower: float = 0.0,
    upper: float = 0.0,
    margin: float = 0.0,
    sigmoid: Literal["gaussian", "linear"] = "gaussian",
    linear_at_margin: float = 0.0,
) -> float:
    """1 within [lower, upper]; outside it falls with the distance in units of `margin`.

    Args:
        x: the quantity judged.
        lower, upper: bounds, inclusive.
        margin: the distance at which a gaussian has fallen to 0.1 and a line to `linear_at_margin`;
            with 0, anything out of bounds gives 0.
        sigmoid: the shape of the fall.
        linear_at_margin: what a line has fallen to at the margin (it goes on falling to 0).
    """
    if lower <= x <= upper:
        return 1.0
    if margin == 0.0:
        return 0.0
    distance = (lower - x if x < lower else x - upper) / margin
    if sigmoid == "gaussian":
        return math.exp(math.log(0.1) * distance * distance)
    return max(0.0, 1.0 - distance * (1.0 - linear_at_margin))


def quiet_forces(forces: NDArray[np.float64]) -> float:
    """HumanoidBench's `small_control`: 0.8 at large actuator forces [A] (10 N m and more), 1 at none."""
    scaled = forces * 0.1
    squares = np.minimum(scaled * scaled, 1.0, out=scaled)
    return 1.0 - 0.2 * float(np.add.reduce(squares)) / squares.size


def stillness(velocity: NDArray[np.float64], margin: float = 2.0) -> float:
    """Mean gaussian tolerance of the horizontal part of a velocity [3] around 0."""
    return 0.5 * (tolerance(velocity[0], margin=margin) + tolerance(velocity[1], margin=margin))


def distance(a: Any, b: Any) -> float:
    """Euclidean distance of two short vectors."""
    return math.dist(a, b)
