"""How many operations of an update reach the device, at the sizes of the presets."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from fit_helpers import fit_experiment, run
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from training_helpers import TASKS

from ezm_pl.spec import build_experiment

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
MOST = 1_000


class Count(Callback):
    """Counts the operations of an update after the second, and ends the run."""

    kernels = 0

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        if trainer.global_step != 2:
            return
        self.kernels = importlib.import_module("operations").count_kernels(module)
        trainer.should_stop = True


@pytest.mark.parametrize("preset", ["laptop", "paper"])
def test_an_update_is_few_operations(preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's networks are one block deeper, and it counts on one window per task."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    count = Count()
    simulations = build_experiment({"name": preset, "preset": preset, "tasks": TASKS}).search.num_simulations
    spec: dict[str, Any] = {
        "preset": preset,
        "search": {"num_simulations": simulations, "dtype": "bfloat16"},
        "targets": {"search_value_after": 0},  # all that an update ever does
        "trainer": {"precision": "bf16-mixed"},
    }
    run(fit_experiment(spec), tmp_path, count)
    print(f"{preset}: {count.kernels} operations")
    assert 500 < count.kernels <= MOST
