"""The student, its rows and its spec."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ezm_pl.distillation import Student
from ezm_pl.distillation.rows import Rows
from ezm_pl.distillation.student import _parameters
from ezm_pl.envs import TaskSizes
from ezm_pl.spec import SpecError
from ezm_pl.spec.distillation import (
    MAX_PARAMETERS,
    Distillation,
    StudentSpec,
    dump_distillation,
    load_distillation,
)

MASK = torch.tensor([[1.0, 1.0], [1.0, 0.0]])


def make_rows(capacity: int = 10) -> Rows:
    sizes = TaskSizes(np.array([3, 2]), np.array([2, 1]), 3, 2, MASK.numpy())
    return Rows(sizes, capacity, np.random.SeedSequence(0))


def test_it_imitates_each_task_by_its_own_rule() -> None:
    """The same observations, opposite actions: only the task tells them apart."""
    torch.manual_seed(0)
    student = Student(StudentSpec(width=64, layers=2), 3, MASK)
    optimizer = torch.optim.Adam(student.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    for update in range(400):
        observation = torch.randn(128, 3, generator=generator) * 5 + 2
        task = torch.arange(128) % 2
        sign = 1.0 - 2.0 * task.unsqueeze(1)
        action = 0.8 * torch.sin(observation[:, :2] / 5) * sign * MASK[task]
        student.normalizer.update(observation)
        loss = student.imitation_loss(observation, task, action)
        if update == 0:
            first = float(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.02 * first


def test_padded_actions_are_zero_and_do_not_count() -> None:
    student = Student(StudentSpec(), 3, MASK)
    observation, task = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    action = student(observation, task).detach()
    assert action.shape == (4, 2) and (action[task == 1, 1] == 0).all() and (action[:, 0] != 0).all()
    wrong = action.clone()
    wrong[task == 1, 1] = 0.9
    assert student.imitation_loss(observation, task, wrong) == 0


def test_it_is_light() -> None:
    largest = Student(StudentSpec(), 308, torch.ones(46, 61))
    assert _parameters(StudentSpec(), 308, 46, 61) == largest.parameter_count
    with pytest.raises(SpecError, match="at most 300,000"):
        Student(StudentSpec(width=300_000, layers=100), 308, torch.ones(46, 61))  # at once, without memory
    assert largest.parameter_count <= MAX_PARAMETERS
    with pytest.raises(SpecError, match=r"at most 300,000 expected; make student.width or student.layers"):
        Student(StudentSpec(width=512), 308, torch.ones(46, 61))


def test_rows_of_all_tasks_count_alike_and_survive_a_save() -> None:
    rows = make_rows()
    assert rows.least == 0
    for step in range(12):
        given = np.full((3, 3), step, np.float32), np.array([0, 1, 1]), np.full((3, 2), -step, np.float32)
        rows.add(*given)
    assert rows.count.tolist() == [10, 10], "what is over the capacity is left out"
    batch = rows.sample(400)
    assert torch.bincount(batch.task).tolist() == [200, 200]
    assert set(torch.cat([rows.sample(1).task for _ in range(50)]).tolist()) == {0, 1}
    assert (batch.action[:, 0] == -batch.observation[:, 0]).all()
    assert batch.observation[batch.task == 1].max() == 4, "two rows per step"
    again = make_rows()
    again.load_state_dict(rows.state_dict())
    assert np.array_equal(again.observation, rows.observation) and again.least == 10
    smaller = make_rows(4)
    smaller.load_state_dict(rows.state_dict())
    assert smaller.count.tolist() == [4, 4]


def test_the_spec_round_trips(tmp_path: Path) -> None:
    spec = load_distillation(None, ["updates=7", "student.width=32"])
    assert (spec.updates, spec.student.width, spec.rows) == (7, 32, 40_000)
    (tmp_path / "d.yaml").write_text(dump_distillation(spec))
    assert load_distillation(tmp_path / "d.yaml") == spec != Distillation()


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("updats=3", "unknown key; did you mean 'updates'"),
        ("student.width=wide", "student.width: a whole number expected, got 'wide'"),
        ("updates=0", "updates: must be greater than 0, got 0"),
        ("batch_size=3.5", "batch_size: a whole number expected, got 3.5"),
    ],
)
def test_a_wrong_setting_is_one_line(setting: str, line: str) -> None:
    with pytest.raises(SpecError) as refused:
        load_distillation(None, [setting])
    assert line in str(refused.value) and "\n" not in str(refused.value)


def test_no_rows_at_all_are_refused() -> None:
    with pytest.raises(SpecError, match="nothing to learn from"):
        load_distillation(None, ["replay_rows=0", "visited_rows=0"])
