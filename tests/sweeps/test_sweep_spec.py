"""Sweep specs: what is resolved, and what is wrong with one, in a line, before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sweep_worlds import write

from ezm_pl.cli import main
from ezm_pl.spec import SpecError
from ezm_pl.spec.sweep_plan import changes, from_document, load_sweep
from ezm_pl.spec.tasks import HUMANOID_BENCH

SWEEPS = sorted((Path(__file__).parents[2] / "sweeps").glob("*.yaml"))

BAD_TASKS = {
    "0": f"TASKS: a number of tasks from 1 to {len(HUMANOID_BENCH)} expected, got 0",
    "99": f"TASKS: a number of tasks from 1 to {len(HUMANOID_BENCH)} expected, got 99",
    "a": "TASKS: unknown task 'a'",
    "hb-mediun": "TASKS: unknown task 'hb-mediun'; did you mean 'hb-medium'?",
    "8,,16": "TASKS: an entry is empty in '8,,16'; write it as 8,16,29",
    "": "TASKS: an entry is empty in ''",
    "8,8": "SPEC with TASKS=8,8: tasks: 8 is listed twice",
    "8,hb-8": "SPEC with TASKS=8,hb-8: tasks: 'hb-8' is listed twice",
}
RANGE = {"low": 0.1, "high": 1.0}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no such key": ({"sampelr": "tpe"}, "sampelr: unknown key; did you mean 'sampler'?"),
    "no such field": (
        {"search": {"loss.valu": RANGE}},
        "search.loss.valu: no field of an experiment; did you mean 'loss.value'?",
    ),
    "the sweep's own": ({"search": {"seed": RANGE}}, "search.seed: cannot be searched"),
    "inverted": (
        {"search": {"loss.value": {"low": 2, "high": 1}}},
        "search.loss.value: low 2 must be below high 1",
    ),
    "misspelled": (
        {"search": {"loss.value": {"lo": 2, "high": 1}}},
        "search.loss.value.lo: unknown key; did you mean 'low'?",
    ),
    "log of zero": (
        {"search": {"loss.value": {"low": 0, "high": 1, "log": True}}},
        "search.loss.value: a log range needs low above 0, got 0",
    ),
    "range and choices": (
        {"search": {"loss.value": {**RANGE, "choices": [1]}}},
        "search.loss.value: give either low and high, or choices",
    ),
    "below the field's range": (
        {"search": {"loss.value": {"low": -1, "high": 1}}},
        "search.loss.value: -1 cannot be, on dmc-cartpole-balance: loss.value: must be greater than or",
    ),
    "no such choice": (
        {"search": {"targets.policy": {"choices": ["best", "worst"]}}},
        "search.targets.policy: 'worst' cannot be, on dmc-cartpole-balance: targets.policy: 'best' or",
    ),
    "a range of switches": (
        {"search": {"replay.shared": {"low": 0, "high": 1}}},
        "search.replay.shared: 0 cannot be",
    ),
    "a choice that does not fit": (
        {"search": {"targets.unroll_steps": {"low": 1, "high": 500}}},
        "search.targets.unroll_steps: 500 cannot be, on dmc-cartpole-balance: targets.unroll_steps 500",
    ),
    "trials left out": ({"trials": None}, "trials: is required with a search space"),
    "a grid without steps": (
        {"sampler": "grid", "trials": None},
        "sampler grid needs choices or a step: loss.value",
    ),
    "trials of a grid": (
        {"sampler": "grid", "search": {"loss.value": {"choices": [0.1, 0.2]}}, "trials": 3},
        "sampler grid tries all 2 combinations, so trials 3 cannot be",
    ),
    "an objective nobody logs": (
        {"objective": "eval/scor"},
        "objective: no run on dmc-cartpole-balance logs 'eval/scor'; did you mean 'eval/score'?",
    ),
    "an objective of one point's task": (
        {"objective": "eval/dmc-cartpole-balance/score"},
        "objective: no run on dmc-pendulum-swingup logs 'eval/dmc-cartpole-balance/score'",
    ),
    "several devices": (
        {"experiment": {"trainer": {"devices": 2}}},
        "trainer.devices: a sweep's trial runs on one device",
    ),
    "an unknown pruner": (
        {"pruner": "medain"},
        "pruner: 'none', 'median' or 'hyperband' expected, got 'medain'",
    ),
    "a base that is not there": ({"base": "bas.yaml"}, "no such file; did you mean"),
}


@pytest.mark.parametrize(("tasks", "line"), BAD_TASKS.items())
def test_bad_tasks_are_one_line_and_exit_code_2(
    tasks: str, line: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "sweep.yaml"
    assert main(["sweep", "run", str(path), f"--tasks={tasks}"]) == 2
    (only,) = capsys.readouterr().err.splitlines()
    assert only.startswith(f"ezm: {line.replace('SPEC', str(path))}")


@pytest.mark.parametrize(("change", "line"), BAD.values(), ids=BAD)
def test_a_bad_spec_is_one_line_and_exit_code_2(
    change: dict[str, Any],
    line: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    assert main(["sweep", "run", str(write(folder, **change))]) == 2
    (only,) = capsys.readouterr().err.splitlines()
    assert line in only
    assert not (folder / "mlruns").exists()


@pytest.mark.parametrize(
    ("storage", "line"),
    {
        "mysql://host/db": "sqlite:///FILE or postgresql://USER@HOST/DATABASE expected",
        "sqlite:///notes.db": "cannot be opened: file is not a database",
        "sqlite:////proc/nowhere/optuna.db": "cannot be opened: ",
    }.items(),
)
def test_a_storage_that_cannot_be_opened(
    storage: str,
    line: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    (folder / "notes.db").write_text("not a database " * 100)
    assert main(["sweep", "run", "sweep.yaml", "--storage", storage]) == 2
    (only,) = capsys.readouterr().err.splitlines()
    assert only.startswith(f"ezm: STORAGE {storage!r}")
    assert line in only


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_shipped_sweeps_are_valid_and_survive_storage(path: Path) -> None:
    for preset in ("smoke", "laptop", "paper"):
        plan = load_sweep(path, preset=preset)
        again = from_document(plan.document())
        assert (again.points, again.key) == (plan.points, plan.key)
        assert changes(plan.document(), again.document()) == []


def test_every_grid_point_has_the_same_budget_a_task() -> None:
    """The comparison is fair: only the tasks differ."""
    plan = load_sweep(SWEEPS[0].parent / "task_scaling.yaml", tasks="2,8,29", preset="smoke")
    assert [len(point.experiment.tasks) for point in plan.points] == [2, 8, 29]
    rest = [point.experiment.model_dump(exclude={"tasks"}) for point in plan.points]
    assert rest[0] == rest[1] == rest[2]
    assert plan.shared_tasks == plan.points[0].experiment.tasks


def test_repetitions_take_further_seeds_and_a_search_the_same(folder: Path) -> None:
    searched = load_sweep(folder / "sweep.yaml", seeds=3)
    assert [searched.seed(trial, 2) for trial in (0, 1)] == [2, 2]
    repeated = load_sweep(write(folder, search={}, trials=2), seeds=3)
    assert [repeated.seed(trial, index) for trial in (0, 1) for index in range(3)] == [0, 1, 2, 3, 4, 5]


def test_a_grid_has_every_combination_once(folder: Path) -> None:
    search = {
        "targets.policy": {"choices": ["best", "improved"]},
        "targets.td_steps": {"low": 1, "high": 5, "step": 2},
    }
    plan = load_sweep(write(folder, search=search, sampler="grid", trials=None))
    assert plan.spec.trials_a_point == 6
    combinations = plan.spec.combinations()
    assert len({tuple(values.items()) for values in combinations}) == 6
    changed = plan.changed(combinations[-1], plan.points[0], seed=7)
    assert (changed.targets.policy, changed.targets.td_steps, changed.seed) == ("improved", 5, 7)


def test_whole_numbers_are_drawn_where_the_field_takes_them(folder: Path) -> None:
    search = {"targets.td_steps": {"low": 1, "high": 5}, "loss.value": {"low": 1, "high": 5}}
    plan = load_sweep(write(folder, search=search))
    assert plan.takes_whole("targets.td_steps")
    assert not plan.takes_whole("loss.value")


def test_a_changed_spec_is_named_field_by_field(folder: Path) -> None:
    old = load_sweep(folder / "sweep.yaml").document()
    new = load_sweep(folder / "sweep.yaml", trials=3).document()
    assert changes(old, new) == ["trials: 2 -> 3"]


def test_errors_of_a_file(folder: Path) -> None:
    with pytest.raises(SpecError, match=r"no such file"):
        load_sweep(folder / "swep.yaml")
