"""Learning curves: a run's own, out of MLflow, and published ones, out of their files."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ezm_pl.spec import SpecError
from ezm_pl.tracking.runs.metrics import BY_ENV_STEPS

if TYPE_CHECKING:
    from mlflow import MlflowClient

_RETURN = re.compile(rf"{BY_ENV_STEPS}(?P<task>.+)/return_(?P<protocol>ezm|humanoidbench)")
_BRC_STEPS = 1_000_000
"""Environment steps a task at the end of BRC's curves (Nauman et al. 2025)."""


@dataclass(frozen=True)
class Curve:
    """Returns of one task under one protocol.

    Attributes:
        label: whose they are.
        protocol: `ezm` (falls do not end the episode) or `humanoidbench` (they do).
        env_steps: [N] control steps a task, ascending.
        returns: [N] mean episode returns.
    """

    label: str
    protocol: str
    env_steps: NDArray[np.float64]
    returns: NDArray[np.float64]


def run_curves(client: MlflowClient, run_id: str) -> dict[str, list[Curve]]:
    """Task to its evaluation curves, over all sessions of a run (the newest value where two share a step)."""
    curves: dict[str, list[Curve]] = {}
    for name in sorted(client.get_run(run_id).data.metrics):
        match = _RETURN.fullmatch(name)
        if match is None:
            continue
        history = sorted(client.get_metric_history(run_id, name), key=lambda point: point.timestamp)
        points = {point.step: point.value for point in history}
        steps = sorted(points)
        curves.setdefault(match["task"], []).append(
            Curve(
                "this run",
                match["protocol"],
                np.array(steps, float),
                np.array([points[step] for step in steps], float),
            )
        )
    return curves


def published_curves(path: Path) -> dict[str, list[Curve]]:
    """Task to published curves, one a seed, from EZ-M's or BRC's results as JSON.

    Two layouts are read: task → method → seed → `million_steps`, `return` (EZ-M's, `ezm` protocol; the
    multi-task method `EZ-M` is taken), and task → seeds × evaluations, evenly spaced over 1M steps
    (BRC's, `humanoidbench` protocol).

    Raises:
        SpecError: no such file, or neither layout.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return {task: _published(entry) for task, entry in document.items()}
    except OSError as error:
        raise SpecError(f"--published {path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SpecError(
            f"--published {path}: not published results (task -> method -> seed, as JSON)"
        ) from None


def _published(entry: Any) -> list[Curve]:
    if isinstance(entry, list):
        return [
            Curve(
                "published BRC",
                "humanoidbench",
                np.linspace(0, _BRC_STEPS, len(seed) + 1)[1:],
                np.array(seed, float),
            )
            for seed in entry
        ]
    return [
        Curve(
            "published EZ-M",
            "ezm",
            1e6 * np.array(seed["million_steps"], float),
            np.array(seed["return"], float),
        )
        for seed in entry["EZ-M"].values()
    ]
