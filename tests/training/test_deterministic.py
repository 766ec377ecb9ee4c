"""`trainer.deterministic`: two runs of a spec give the same metrics, bit for bit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fit_helpers import fit_experiment, run
from lightning.pytorch.loggers import CSVLogger

from ezm_pl.envs import MultiTaskVectorEnv
from ezm_pl.training import EZMModule
from ezm_pl.training.batch import Batch, Targets

VARIES = ("time/", "device/")


@pytest.fixture(autouse=True)
def torch_as_before() -> Iterator[None]:
    """Lightning leaves torch's deterministic mode on."""
    yield
    torch.use_deterministic_algorithms(False)


def metrics(folder: Path) -> list[str]:
    """Every logged value as text, but for times and memory."""
    header, *rows = (folder / "csv" / "metrics.csv").read_text().splitlines()
    names = header.split(",")
    return [
        f"{number} {name}={value}"
        for number, row in enumerate(rows)
        for name, value in zip(names, row.split(","), strict=True)
        if value and not name.startswith(VARIES)
    ]


def test_two_runs_of_a_spec_have_equal_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the second's collector and reanalysis are slower, by another amount each time."""
    experiment = fit_experiment(
        {
            "trainer": {"deterministic": True, "log_every": 1},
            "optim": {"total_updates": 12},
            "eval": {"every": 5},
            "env": {"workers": "threads"},
        }
    )
    found, weights = [], []
    step, reanalyse = MultiTaskVectorEnv.step, EZMModule.reanalyse
    random = np.random.default_rng(0)

    def slow(self: MultiTaskVectorEnv, action: Any) -> Any:
        time.sleep(random.uniform(0, 0.03))
        return step(self, action)

    def slow_targets(self: EZMModule, batch: Batch, updates: int) -> Targets:
        time.sleep(random.uniform(0, 0.05))
        return reanalyse(self, batch, updates)

    for name in ("one", "two"):
        folder = tmp_path / name
        if name == "two":
            monkeypatch.setattr(MultiTaskVectorEnv, "step", slow)
            monkeypatch.setattr(EZMModule, "reanalyse", slow_targets)
        result = run(experiment, folder, logger=CSVLogger(folder, "csv", version=""))
        found.append(metrics(folder))
        saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        weights.append(saved["state_dict"])
        # The last batch is drawn an update early, so the last turn of the collector may be missing.
        assert result.updates == 12 and (result.env_steps >= 1400).all()
    assert found[0] == found[1]
    named = {line.split()[1].split("=")[0] for line in found[0]}
    assert {"train/loss/total", "eval/score", "env_steps"} <= named
    assert any(name.startswith("selfplay/") for name in named)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
