"""`ezm distill` from its first line to its last: rows, tracking, interruption, resuming, wrong inputs."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import fork_server
import mlflow
import numpy as np
import pytest
import torch
from short_runs import runs, settings

from ezm_pl.cli import main
from ezm_pl.distillation import STUDENT, Student, Teacher, load_student
from ezm_pl.distillation.data import DistillationData
from ezm_pl.distillation.module import DistillationModule
from ezm_pl.spec import SpecError
from ezm_pl.spec.distillation import load_distillation
from ezm_pl.tracking.distill.student_lookup import find_policy, find_student

pytestmark = pytest.mark.timeout(1200)


def test_a_distillation_is_a_tracked_run(
    workplace: Path, student_checkpoint: Path, teacher_checkpoint: Path
) -> None:
    run = runs(workplace)[0]
    assert run.info.status == "FINISHED"
    assert run.data.tags["teacher"] == teacher_checkpoint.parents[1].name
    assert run.data.params["student.width"] == "16" and run.data.params["updates"] == "60"
    metrics = run.data.metrics
    assert metrics["train/rows_per_task"] == 64
    assert metrics["env_steps"] > 0
    for task in ("dmc-cartpole-balance", "dmc-pendulum-swingup"):
        assert {f"eval/{task}/return_ezm", f"planner/{task}/return"} <= set(metrics)
    planner = metrics["planner/dmc-cartpole-balance/return"] / 1000
    kept = metrics["eval/dmc-cartpole-balance/score"] / planner
    assert metrics["eval/dmc-cartpole-balance/kept"] == pytest.approx(kept)
    client = mlflow.MlflowClient(f"sqlite:///{workplace}/mlruns/mlflow.db")
    points = client.get_metric_history(run.info.run_id, "eval/score")
    assert [point.step for point in points] == [0, 30, 60]
    points = client.get_metric_history(run.info.run_id, "train/loss/imitation")
    assert [point.step for point in points] == [10, 20, 30, 40, 50, 60]


def test_the_checkpoint_alone_is_the_student(student_checkpoint: Path) -> None:
    saved = load_student(student_checkpoint)
    assert (saved.updates, saved.teacher_updates, saved.spec.student.width) == (60, 4, 16)
    action = saved.student(torch.zeros(2, 5), torch.tensor([0, 1]))
    assert action.shape == (2, 1) and action.abs().max() < 1
    contents = torch.load(student_checkpoint, weights_only=True)
    assert contents["DistillationData"]["count"].tolist() == [64, 64]


def test_rows_are_what_the_planner_does(teacher_checkpoint: Path, workplace: Path) -> None:
    """Rows come from replay, the newest last; labels are draws of the planner, which a seed repeats."""
    teacher = Teacher(teacher_checkpoint, 0)
    replay = teacher.replay(40)
    assert replay is not None and all(len(each) > 7 and each.shape[1] == 5 for each in replay)
    newest = teacher.replay(7)
    assert newest is not None and np.array_equal(newest[0], replay[0][-7:])
    assert (replay[1][:, 3:] == 0).all(), "padded"
    one = np.repeat(replay[0][:1], 400, 0)
    task = np.zeros(400, np.int64)
    first = teacher.label(one, task)
    assert first.shape == (400, 1) and np.abs(first).max() <= 1
    assert first.std() > 0, "searches draw their candidates"
    again, other = (Teacher(teacher_checkpoint, seed).label(one, task) for seed in (0, 1))
    assert np.array_equal(again, first) and not np.array_equal(other, first)


def test_without_replay_the_planner_plays_first(
    teacher_checkpoint: Path, tmp_path: Path, workplace: Path
) -> None:
    alone = tmp_path / "alone.ckpt"
    alone.write_bytes(teacher_checkpoint.read_bytes())
    teacher = Teacher(alone, 0)
    assert teacher.replay(40) is None
    spec = load_distillation(None, ["replay_rows=12", "visited_rows=8", "num_envs=2"])
    data = DistillationData(spec, teacher)
    student = Student(spec.student, 5, torch.as_tensor(teacher.sizes.action_mask))
    data.start(student)
    try:
        until = time.monotonic() + 300
        while data.rows.least < 20 and time.monotonic() < until:
            assert data.labeller is not None
            data.labeller.check()
            data.pacing.updated(spec.updates)
            time.sleep(0.01)
    finally:
        data.teardown("fit")
    assert data.rows.count.tolist() == [20, 20]
    assert data.env_steps >= 9 * 2 * 50


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_run_that_is_stopped_goes_on(
    number: signal.Signals, code: int, workplace: Path, student_checkpoint: Path
) -> None:
    """From the update that it stopped at: no other checkpoint is due."""
    many = settings(updates=100_000, eval_every=100_000, visited_rows=100_000, checkpoint_every=100_000)
    known = {run.info.run_id for run in runs(workplace)}
    process = fork_server.start(
        ["distill", *many], cwd=workplace, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    until = time.monotonic() + 600
    while time.monotonic() < until and process.poll() is None:
        new = next((run for run in runs(workplace) if run.info.run_id not in known), None)
        if new is not None and "train/loss/imitation" in new.data.metrics:
            break
        time.sleep(0.2)
    process.send_signal(number)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    assert "is KILLED in MLflow; ezm distill --resume last goes on" in output
    assert new is not None
    checkpoint = workplace / "mlruns" / "runs" / new.info.run_id / STUDENT
    stopped = load_student(checkpoint).updates
    assert stopped >= 10
    before = torch.load(checkpoint, weights_only=True)["DistillationData"]
    run = runs(workplace)[0]
    assert (run.info.status, run.info.run_id) == ("KILLED", checkpoint.parents[1].name)

    end = stopped + 20
    assert main(["distill", "--resume", "last", "--set", f"updates={end}", "--set", "visited_rows=60"]) == 0
    after = torch.load(checkpoint, weights_only=True)["DistillationData"]
    rows = int(before["count"].min())
    assert torch.equal(after["action"][:, :rows], before["action"][:, :rows]), "labels are kept"
    assert load_student(checkpoint).updates == end
    run = runs(workplace)[0]
    assert (run.info.status, run.info.run_id) == ("FINISHED", checkpoint.parents[1].name)
    assert "updates: 100000" in run.data.tags["resume.1"]


def test_an_evaluation_that_was_cut_off_is_made_up_for(
    workplace: Path, student_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(self: DistillationModule, *_: Any) -> None:
        if self.global_step == 30:
            raise KeyboardInterrupt
        evaluated(self, *_)

    evaluated = DistillationModule.validation_step
    with monkeypatch.context() as patch:
        patch.setattr(DistillationModule, "validation_step", cut_off)
        assert main(["distill", "last", *settings()]) == 130
    run = runs(workplace)[0]
    assert load_student(workplace / "mlruns" / "runs" / run.info.run_id / STUDENT).updates == 30
    assert main(["distill", "--resume", run.info.run_id]) == 0
    client = mlflow.MlflowClient(f"sqlite:///{workplace}/mlruns/mlflow.db")
    for metric, steps in (("eval/score", [0, 30, 60]), ("train/loss/imitation", [10, 20, 30, 40, 50, 60])):
        assert [point.step for point in client.get_metric_history(run.info.run_id, metric)] == steps


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["distill", "nowhere"], "RUN nowhere: no such checkpoint, run folder or run id"),
        (["distill", "--set", "updats=3"], "unknown key; did you mean 'updates'"),
        (["distill", "--spec", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["distill", "--resume", "nowhere"], "--resume nowhere: no such distilled run"),
        (["distill", "last", "--resume", "last"], "leave RUN out"),
        (["distill", "--resume", "last", "--set", "seed=9"], "--resume: seed cannot change"),
        (["distill", "--set", "student.width=2000"], "at most 300,000 expected"),
        (["distill", "--set", "visited_rows=1000000000000"], "rows of 2 tasks take"),
        (["distill", "broken.ckpt"], "broken.ckpt: not a readable checkpoint"),
        (["eval", "STUDENT"], "is not a checkpoint of this project"),
    ],
)
def test_what_cannot_work_is_one_line(
    arguments: list[str],
    line: str,
    workplace: Path,
    student_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (workplace / "broken.ckpt").write_bytes(b"broken")
    before = len(runs(workplace))
    given = [str(student_checkpoint) if word == "STUDENT" else word for word in arguments]
    assert main(given) == 2
    error = capsys.readouterr().err
    assert line in error and len(error.splitlines()) == 1
    assert len(runs(workplace)) == before


def test_a_changed_teacher_is_refused(
    workplace: Path, student_checkpoint: Path, teacher_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    aside = teacher_checkpoint.with_name("aside.ckpt")
    teacher_checkpoint.rename(aside)
    try:
        assert main(["distill", "--resume", str(student_checkpoint.parents[1])]) == 2
    finally:
        aside.rename(teacher_checkpoint)
    assert "is not there any more" in capsys.readouterr().err


def test_a_moved_project_has_its_teacher(
    workplace: Path,
    student_checkpoint: Path,
    teacher_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(workplace / "mlruns", tmp_path / "mlruns")
    monkeypatch.chdir(tmp_path)
    student = tmp_path / student_checkpoint.resolve().relative_to(workplace.resolve())
    longer = load_student(student).updates + 5
    aside = teacher_checkpoint.with_name("aside.ckpt")
    teacher_checkpoint.rename(aside)
    try:
        assert main(["distill", "--resume", student.parts[-3], "--set", f"updates={longer}"]) == 0
    finally:
        aside.rename(teacher_checkpoint)
    assert load_student(student).updates == longer


def test_a_beginning_that_two_kinds_of_runs_share_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ab1/distillation.yaml", "ab2/experiment.yaml"):
        path = tmp_path / "mlruns" / "runs" / name
        path.parent.mkdir(parents=True)
        path.touch()
    with pytest.raises(SpecError, match="ordinary and distilled runs"):
        find_policy("ab", option="RUN")


def test_distilled_runs_that_begin_alike_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ab1", "ab2"):
        path = tmp_path / "mlruns" / "runs" / name / "distillation.yaml"
        path.parent.mkdir(parents=True)
        path.touch()
    with pytest.raises(SpecError, match="RUN ab: 2 distilled runs start like this: ab1, ab2"):
        find_student("ab", option="RUN")


def test_other_commands_do_not_see_distilled_runs(
    workplace: Path, student_checkpoint: Path, teacher_checkpoint: Path
) -> None:
    from ezm_pl.tracking.runs.run_lookup import find_checkpoint, find_run

    assert find_run("last", option="RUN").directory.name == teacher_checkpoint.parents[1].name
    assert find_checkpoint("last", option="RUN").checkpoint.resolve() == teacher_checkpoint.resolve()
