"""`ezm export --to onnx`: the file against its source, its metadata, and the example without torch."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from workplaces import train_briefly

from ezm_pl.cli import main
from ezm_pl.distillation import Student, load_student
from ezm_pl.export import onnx_file
from ezm_pl.tracking.distill.student_lookup import find_policy

ROOT = Path(__file__).parents[2]
WITHOUT_TORCH = """
import runpy, sys
for name in ("torch", "lightning", "mlflow", "optuna"):
    sys.modules[name] = None  # importing it raises
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def student_file(student_checkpoint: Path) -> Path:
    """The student as a file."""
    file = student_checkpoint.with_name("policy.onnx")
    assert main(["export", str(student_checkpoint.parents[1]), "--to", "onnx", "--out", str(file)]) == 0
    return file


def test_the_file_is_the_student(student_file: Path, student_checkpoint: Path) -> None:
    student = load_student(student_checkpoint).student
    session = onnxruntime.InferenceSession(str(student_file))
    generator = torch.Generator().manual_seed(0)
    for rows in (1, 7):
        observation = torch.randn(rows, 5, generator=generator) * 3
        task = torch.arange(rows) % 2
        (action,) = session.run(["action"], {"observation": observation.numpy(), "task": task.numpy()})
        expected = student(observation, task).detach().numpy()
        assert action.shape == (rows, 1)
        assert np.abs(action - expected).max() < 1e-5
    assert np.abs(expected[0] - expected[1]).max() > 1e-3, "the task counts"


def test_the_file_says_what_its_numbers_are(student_file: Path, student_checkpoint: Path) -> None:
    facts = onnxruntime.InferenceSession(str(student_file)).get_modelmeta().custom_metadata_map
    assert (facts["policy"], facts["updates"], facts["ezm_format"]) == ("student", "60", "1")
    assert facts["teacher"] == load_student(student_checkpoint).teacher_run
    cartpole, pendulum = json.loads(facts["tasks"])
    assert (cartpole["id"], cartpole["name"], cartpole["action_repeat"]) == (0, "dmc-cartpole-balance", 50)
    assert (cartpole["observation_size"], pendulum["observation_size"]) == (5, 3)
    assert cartpole["control_interval"] == pytest.approx(0.01)
    assert [each["name"] for each in pendulum["observation"]][-1] == "velocity[0]"
    assert [(each["name"], each["low"], each["high"]) for each in pendulum["action"]] == [("torque", -1, 1)]


def test_the_policy_head_of_an_ordinary_run(
    teacher_checkpoint: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(teacher_checkpoint.parents[1]), "--to", "onnx"]) == 0
    printed = capsys.readouterr().out
    assert "policy head of" in printed and "1,000 observations" in printed
    assert (workplace / "policy.onnx").is_file()


def test_the_policy_of_the_baseline(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_briefly("baseline", agent="sac")
    capsys.readouterr()
    assert main(["export", "last", "--to", "onnx", "--out", "baseline.onnx"]) == 0
    assert "policy head of" in capsys.readouterr().out
    facts = onnxruntime.InferenceSession("baseline.onnx").get_modelmeta().custom_metadata_map
    assert (facts["policy"], facts["updates"]) == ("policy head", "4")


def test_the_last_run_of_either_kind(
    student_checkpoint: Path, teacher_checkpoint: Path, workplace: Path
) -> None:
    for newest in (teacher_checkpoint, student_checkpoint):
        for path in (workplace / "mlruns" / "runs").glob("*/checkpoints/*.ckpt"):
            os.utime(path, (1e9, 1e9))
        os.utime(newest)
        saved, distilled = find_policy("last", option="RUN")
        assert saved.checkpoint.resolve() == newest.resolve()
        assert distilled == (newest == student_checkpoint)


def test_a_file_that_differs_is_removed(
    student_checkpoint: Path,
    student_file: Path,
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def write_another(policy: Student, sizes: object, facts: object, out: Path) -> None:
        shutil.copy(student_file, out)
        with torch.no_grad():
            policy.network[-1].bias += 1e-3

    monkeypatch.setattr(onnx_file, "write_onnx", write_another)
    arguments = ["export", str(student_checkpoint), "--to", "onnx", "--out", "differs.onnx"]
    assert main(arguments) == 1
    assert "the file is removed" in capsys.readouterr().out
    assert not (workplace / "differs.onnx").exists()


def test_the_example_runs_without_torch(student_file: Path, workplace: Path) -> None:
    example = str(ROOT / "examples" / "deploy.py")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            WITHOUT_TORCH,
            example,
            str(student_file),
            "--task",
            "dmc-pendulum-swingup",
            "--seconds",
            "3",
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("dmc-pendulum-swingup: 3 decisions at 1 Hz")
    assert second.startswith("latency p50 ")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere", "--to", "onnx"], "RUN nowhere: no such checkpoint, run folder or run id"),
        (["last", "--to", "onnx", "--out", "nowhere/policy.onnx"], "its folder does not exist"),
        (["last", "--to", "onnx", "--out", "policy.txt"], "a file name ending in .onnx expected"),
        (["last", "--to", "coreml"], "invalid choice: 'coreml'"),
        (["last", "--to", "onnx", "--register", "a"], "not allowed with argument"),
        (["last", "--register", "a", "--out", "policy.onnx"], "--out goes with --to"),
        (["last"], "one of the arguments --register --to is required"),
        (["broken.ckpt", "--to", "onnx"], "not a readable checkpoint"),
    ],
)
def test_what_cannot_work_is_one_line(
    arguments: list[str], line: str, student_checkpoint: Path, workplace: Path, capsys: pytest.CaptureFixture
) -> None:
    (workplace / "broken.ckpt").write_bytes(b"broken")
    assert main(["export", *arguments]) == 2
    error = capsys.readouterr().err
    assert line in error and len(error.splitlines()) == 1


def test_missing_packages_are_named(
    student_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "onnx" in name else find(name))
    assert main(["export", "last", "--to", "onnx"]) == 2
    assert "needs onnx, onnxscript, onnxruntime: pip install 'ezm_pl[onnx]'" in capsys.readouterr().err
