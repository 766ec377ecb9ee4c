"""Learning curves: a run's own, out of MLflow, and published ones, out of their files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ezm_pl.spec import DMC, SpecError, read_json
from ezm_pl.tracking.runs.metrics import BY_ENV_STEPS

if TYPE_CHECKING:
    from mlflow import MlflowClient

_RETURN = re.compile(rf"{BY_ENV_STEPS}(?P<task>.+)/return_(?P<protocol>ezm|humanoidbench)")
_BRC_STEPS = 1_000_000
"""Environment steps per task at the end of BRC's curves (Nauman et al. 2025)."""
_OURS = {task.removeprefix("dmc-").replace("_", "-").replace("ball-in-cup", "cup"): task for task in DMC}
"""dm_control's tasks: the name in publications to the name here."""


@dataclass(frozen=True)
class Curve:
    """Returns of one task under one protocol.

    Attributes:
        label: whose they are.
        protocol: `ezm` (falls do not end the episode) or `humanoidbench` (they do).
        env_steps: [N] control steps per task, ascending.
        returns: [N] mean episode returns.
        averaged: whether the curve is a mean over seeds as it was published; otherwise it is one seed's.
    """

    label: str
    protocol: str
    env_steps: NDArray[np.float64]
    returns: NDArray[np.float64]
    averaged: bool = False


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
    """Task to published curves, from results as JSON.

    Three layouts are read: task -> method -> seed -> `million_steps`, `return` (EZ-M's results, `ezm`
    protocol); task -> seeds x evaluations, evenly spaced over 1M steps (BRC's, `humanoidbench` protocol);
    task -> method -> `env_steps`, `return` (means over seeds; `humanoidbench` protocol). Tasks of
    dm_control, such as `cup-catch`, get their names here; nothing falls there, so they count as `ezm`.

    Raises:
        SpecError: no such file, or none of the layouts.
    """
    try:
        document = read_json(path)
        return {
            _OURS.get(task, task): _published(_OURS.get(task, task), entry)
            for task, entry in document.items()
        }
    except OSError as error:
        raise SpecError(f"--published {path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SpecError(
            f"--published {path}: not published results (task -> method -> seed, as JSON)"
        ) from None


def read_published(paths: Sequence[Path]) -> dict[str, dict[str, list[Curve]]]:
    """File (its name without folder and suffix) to its curves, as `published_curves`.

    Raises:
        SpecError: as `published_curves`, or two files of one name.
    """
    found: dict[str, dict[str, list[Curve]]] = {}
    for path in paths:
        if path.stem in found:
            raise SpecError(f"--published {path}: there is another file named {path.stem}; rename one")
        found[path.stem] = published_curves(path)
    return found


def _published(task: str, entry: Any) -> list[Curve]:
    if isinstance(entry, list):
        steps = [np.linspace(0, _BRC_STEPS, len(seed) + 1)[1:] for seed in entry]
        return [_curve("BRC", "humanoidbench", at, seed) for at, seed in zip(steps, entry, strict=True)]
    curves = []
    for method, seeds in entry.items():
        if "env_steps" in seeds:
            protocol = "ezm" if task in DMC else "humanoidbench"
            curves.append(_curve(method, protocol, seeds["env_steps"], seeds["return"], averaged=True))
            continue
        for seed in seeds.values():
            millions = np.array(seed["million_steps"], float)
            curves.append(_curve(method, "ezm", 1e6 * millions, seed["return"]))
    if not curves:
        raise ValueError(f"{task}: no curves")
    return curves


def _curve(method: str, protocol: str, steps: ArrayLike, returns: ArrayLike, averaged: bool = False) -> Curve:
    curve = Curve(f"published {method}", protocol, np.array(steps, float), np.array(returns, float), averaged)
    if curve.env_steps.shape != curve.returns.shape or curve.env_steps.ndim != 1 or not len(curve.env_steps):
        raise ValueError(f"{method}: as many returns as steps expected")
    return curve
