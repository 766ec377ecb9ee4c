"""What a run logs is what specs take for an objective."""

from __future__ import annotations

from pathlib import Path

from fit_helpers import fit_experiment, run
from lightning.pytorch.loggers import CSVLogger

from ezm_pl.spec.metrics import logged_metrics


def test_optional_terms_are_among_the_metrics_of_a_run_that_has_them(tmp_path: Path) -> None:
    experiment = fit_experiment({"loss": {"observation": 1.0, "pathwise": 1.0}, "trainer": {"log_every": 1}})
    run(experiment, tmp_path, logger=CSVLogger(tmp_path, "csv", version=""))
    header = (tmp_path / "csv" / "metrics.csv").read_text().splitlines()[0].split(",")
    logged = {name for name in header if name.startswith("train/")}
    assert logged == {name for name in logged_metrics(experiment) if name.startswith("train/")}
    assert {"train/loss/observation", "train/loss/pathwise", "train/policy/q_spread"} < logged
    plain = logged_metrics(fit_experiment())
    assert not {"train/loss/observation", "train/loss/pathwise", "train/policy/q_spread"} & set(plain)
