"""The built-in tasks: name -> (robot, task), and what can be said of them in words."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from ezm_pl.envs import tasks
from ezm_pl.envs.robots.humanoid import Task
from ezm_pl.spec.tasks import HUMANOID_BENCH


def _task_classes() -> dict[str, type[Task]]:
    """Every class with a `name` of its own in the modules of `ezm_pl.envs.tasks`, by that name."""
    found: dict[str, type[Task]] = {}
    for module in pkgutil.iter_modules(tasks.__path__, f"{tasks.__name__}."):
        classes = inspect.getmembers(importlib.import_module(module.name), inspect.isclass)
        found |= {kind.name: kind for _, kind in classes if issubclass(kind, Task) and "name" in vars(kind)}
    return found


def _catalogue() -> dict[str, tuple[str, type[Task]]]:
    classes = _task_classes()
    return {row: (row.split("-")[0], classes[row.split("-")[1]]) for row in HUMANOID_BENCH}


CATALOGUE = _catalogue()
"""Full name -> (robot, task's class): HumanoidBench in canonical order, then what `register` adds."""


def description(task: str) -> str:
    """One sentence on what a humanoid task asks: the first line of its class's docstring."""
    return (CATALOGUE[task][1].__doc__ or "").strip().split("\n")[0]


def family(task: str) -> str:
    """The family of a humanoid task: the name of the file that holds it."""
    return CATALOGUE[task][1].__module__.rsplit(".", 1)[-1]
