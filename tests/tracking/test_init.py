"""`ezm train --init`: a run that begins with another's weights."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
import torch
import yaml

from ezm_pl.cli import main

SPEC = {
    "name": "first",
    "preset": "smoke",
    "tasks": ["dmc-cartpole-balance"],
    "env": {"action_repeat": 50},
    "optim": {"total_updates": 3},
    "eval": {"every": 3, "episodes": 1},
}
SECOND = {
    "name": "second",
    "tasks": ["dmc-cartpole-swingup"],
    "optim": {"total_updates": 1, "learning_rate": 1e-12},
}


@pytest.mark.timeout(900)
def test_a_run_begins_with_anothers_weights(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = workplace / "mlruns" / "runs"
    (workplace / "first.yaml").write_text(yaml.safe_dump(SPEC))
    (workplace / "second.yaml").write_text(yaml.safe_dump(SPEC | SECOND))
    assert main(["train", "first.yaml"]) == 0
    (source,) = runs.glob("*/checkpoints/last.ckpt")
    assert main(["train", "second.yaml", "--init", "last"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "5 of 5 observations, 1 of 1 actuators, 0 of 1 tasks (new: dmc-cartpole-swingup)" in printed
    (new,) = set(runs.glob("*/checkpoints/last.ckpt")) - {source}
    before, after = (torch.load(path, weights_only=True)["state_dict"] for path in (source, new))
    for name in ("model.dynamics.outer.weight", "model.encoder.0.weight", "model.policy_head.weights.0"):
        assert torch.allclose(before[name], after[name], atol=1e-6), name
        assert before[name].abs().max() > 0
    client = mlflow.MlflowClient(f"sqlite:///{workplace}/mlruns/mlflow.db")
    tags = client.get_run(new.parents[1].name).data.tags
    assert Path(tags["init"]).resolve() == source.resolve()
    for checkpoint in new.parent.glob("*.ckpt"):
        checkpoint.unlink()
    assert main(["train", "second.yaml", "--resume", str(new.parents[1])]) == 2
    assert f"begin anew with --init {tags['init']}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--init", "nowhere"], "--init nowhere: no such checkpoint, run folder or run id"),
        (["--init", "last", "--resume", "last"], "not allowed with argument"),
        (["--init", "last", "--set", "model.latent_size=64"], "model.latent_size: 32 there, 64 here"),
    ],
)
def test_what_cannot_be_carried_over_is_one_line(
    arguments: list[str], line: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "second.yaml", *arguments]) == 2
    error = capsys.readouterr().err
    assert line in error and len(error.splitlines()) == 1
