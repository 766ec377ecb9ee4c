"""Environment variables by which launchers (torchrun, SLURM, Lightning) tell a process which rank it is."""

from __future__ import annotations

import os

from ezm_pl.spec.errors import SpecError

RANK_VARIABLES = (
    "RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID",
    "JSM_NAMESPACE_RANK",
)  # fmt: skip
WORLD_VARIABLES = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
"""How many processes torchrun or Lightning, and srun, have started."""


def check_launcher_variables() -> None:
    """Raises `SpecError` where one is not a whole number: importing Lightning would end in a traceback."""
    wrong = [
        f"{name}={value!r}: a launcher's variable, a whole number expected; unset it"
        for name in (*RANK_VARIABLES, *WORLD_VARIABLES)
        if (value := os.environ.get(name)) is not None and not (value.isascii() and value.isdecimal())
    ]
    if wrong:
        raise SpecError("\n".join(wrong))
