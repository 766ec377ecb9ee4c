"""Whether tasks can be made here: an attempt is made only where it is in doubt."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from ezm_pl.spec.tasks import doubtful_tasks


def check_tasks(tasks: Iterable[str], backend: Literal["auto", "builtin", "humanoid_bench"]) -> None:
    """Raises `SpecError` for tasks that cannot be made here. It costs nothing for those built in."""
    doubtful = doubtful_tasks(tasks, backend)
    if doubtful:
        from ezm_pl.envs import check_tasks as make_each

        make_each(doubtful, backend)
