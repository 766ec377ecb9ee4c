"""Whatever Lightning refuses about the trainer's settings is one line, before a run is made."""

from __future__ import annotations

import numpy as np
import pytest

from ezm_pl.spec import SpecError, build_experiment
from ezm_pl.training.fit import check_settings

SPEC = {"name": "trial", "preset": "smoke", "tasks": ["dmc-cartpole-balance"]}
TRAINER = {
    "accelerator": ["auto", "cpu", "cuda", "mps", "gpu"],
    "devices": ["auto", 1, 2, "0,1", "7", 3000],
    "num_nodes": [1, 2],
    "strategy": ["auto", "ddp"],
    "precision": ["auto", "32-true", "bf16-mixed"],
}
ENVIRONMENT = {
    "SLURM_NTASKS": ["4", "x", ""],
    "SLURM_NTASKS_PER_NODE": ["2", "x"],
    "SLURM_NNODES": ["3", "x"],
    "SLURM_JOB_NAME": ["job", "bash"],
    "LOCAL_RANK": ["1", "x", ""],
    "NODE_RANK": ["1", "-1", "x"],
    "WORLD_SIZE": ["2", "x"],
    "MASTER_PORT": ["x", "99999999"],
    "CUDA_VISIBLE_DEVICES": ["", "x", "7"],
}


def refused(trainer: dict[str, object]) -> str | None:
    try:
        check_settings(build_experiment({**SPEC, "trainer": trainer}))
    except SpecError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("trainer", "environment", "line"),
    [
        ({}, {"SLURM_NTASKS": "4"}, "trainer: You set `--ntasks=4` in your SLURM bash script"),
        ({"devices": "0,1", "accelerator": "cpu"}, {}, "trainer: `devices` selected with `CPUAccelerator`"),
        ({"accelerator": "mps"}, {}, "trainer: `MPSAccelerator` can not run on your system"),
    ],
)
def test_refusals(
    trainer: dict[str, object], environment: dict[str, str], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (refused(trainer) or "").startswith(line)


def test_whatever_settings_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are taken, or refused in one line."""
    random, answers = np.random.default_rng(0), []
    for _ in range(60):
        trainer = {name: values[random.integers(len(values))] for name, values in TRAINER.items()}
        with monkeypatch.context() as patch:
            for name, choices in ENVIRONMENT.items():
                if random.random() < 0.25:
                    patch.setenv(name, choices[random.integers(len(choices))])
            answers.append(refused(trainer))
    lines = [answer for answer in answers if answer is not None]
    assert 0 < len(lines) < len(answers)
    assert all(len(line.splitlines()) == 1 for line in lines)
