"""Sweep specs: what is resolved, and what is wrong with one, in a line, before anything starts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from sweep_helpers import write
from workplaces import empty_store

from ezm_pl.cli import main
from ezm_pl.spec import SpecError
from ezm_pl.spec.io import changes
from ezm_pl.spec.sweep_plan import from_document, load_sweep
from ezm_pl.spec.tasks import HUMANOID_BENCH
from ezm_pl.sweeps.samplers import distribution

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
    "a step that does not fit": (
        {"search": {"optim.batch_size": {"low": 32, "high": 35, "step": 0.5}}},
        "search.optim.batch_size: 32.5 (from 32 in steps of 0.5) cannot be, on dmc-cartpole-balance: "
        "optim.batch_size: a whole number expected, got 32.5",
    ),
    "a step whose values are not all whole": (
        {"search": {"optim.batch_size": {"low": 32, "high": 35, "step": 1.5}}},
        "search.optim.batch_size: 33.5 (from 32 in steps of 1.5) cannot be",
    ),
    "a step over the range": (
        {"search": {"loss.value": {**RANGE, "step": 1.0}}},
        "search.loss.value: a step of 1 leads from 0.1 past 1",
    ),
    "a step too fine": (
        {"search": {"loss.value": {**RANGE, "step": 1e-300}}},
        "search.loss.value: a step of 1e-300 is too fine for 0.1 to 1",
    ),
    "a grid of more values than memory holds": (
        {"search": {"loss.value": {**RANGE, "step": 1e-9}}, "sampler": "grid", "trials": None},
        "sampler grid: 900,000,001 combinations are more than 10,000",
    ),
    "values that do not fit together": (
        {
            "search": {
                "targets.unroll_steps": {"low": 1, "high": 30},
                "targets.td_steps": {"choices": [5, 30]},
            }
        },
        "search.targets.td_steps, targets.unroll_steps: 30, 30 cannot be, on dmc-cartpole-balance: "
        "targets.unroll_steps 30 + targets.td_steps 30 are more",
    ),
    "a combination of a grid that does not fit": (
        {
            "search": {
                "replay.block_size": {"choices": [100, 20, 50]},
                "targets.td_steps": {"low": 5, "high": 25, "step": 10},
            },
            "sampler": "grid",
            "trials": None,
        },
        "search.replay.block_size, targets.td_steps: 20, 25 cannot be, on dmc-cartpole-balance: "
        "targets.unroll_steps 5 + targets.td_steps 25 are more",
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
    "a field of another agent": (
        {"experiment": {"agent": "sac"}},
        "search.loss.value: agent sac (on dmc-cartpole-balance) does not read it",
    ),
    "a field that other settings leave unread": (
        {"search": {"collect.hold_steps": {"low": 5, "high": 30}}},
        "search.collect.hold_steps: no trial reads it: collect.hold_share is 0",
    ),
    "an objective of another agent": (
        {
            "experiment": {"agent": "sac"},
            "search": {"sac.td_steps": {"choices": [1, 3]}},
            "objective": "train/loss/temporal",
        },
        "objective: no run on dmc-cartpole-balance logs 'train/loss/temporal'",
    ),
    "an objective nobody logs": (
        {"objective": "eval/scor"},
        "objective: no run on dmc-cartpole-balance logs 'eval/scor'; did you mean 'eval/score'?",
    ),
    "an objective of one point's task": (
        {"objective": "eval/dmc-cartpole-balance/score"},
        "objective: no run on dmc-pendulum-swingup logs 'eval/dmc-cartpole-balance/score'",
    ),
    "scores that nobody says": (
        {"tasks": [["gym:Pendulum-v1", "gym:Walker2d-v5"]], "search": {}},
        "logs 'eval/score': that needs a task's random_score and success_score (tasks_meta)",
    ),
    "a task's score that nobody says": (
        {"tasks": [["gym:Pendulum-v1", "dmc-cartpole-balance"]], "objective": "eval/gym:Pendulum-v1/score"},
        "logs 'eval/gym:Pendulum-v1/score': that needs a task's random_score",
    ),
    "several devices": (
        {"experiment": {"trainer": {"devices": 2}}},
        "trainer.devices: a sweep's trial runs on one device",
    ),
    "an unknown pruner": (
        {"pruner": "medain"},
        "pruner: 'none', 'median' or 'hyperband' expected, got 'medain'",
    ),
    "a pruner that would select seeds": (
        {"search": {}, "trials": 5, "pruner": "median"},
        "pruner: needs a search: without one, trials are seeds",
    ),
    "a pruner that begins after the end": (
        {"pruner": {"kind": "hyperband", "warmup_updates": 8}, "tasks": ["dmc-cartpole-balance"]},
        "prunes nothing on dmc-cartpole-balance: the first evaluation after pruner.warmup_updates 8, ",
    ),
    "a pruner without evaluations": (
        {"pruner": "median", "experiment": {"eval": {"every": 8}}, "tasks": ["dmc-cartpole-balance"]},
        "after pruner.warmup_updates 1, every 8, is not before the end, 8 updates",
    ),
    "a pruner whose first evaluation is the last": (
        {"pruner": {"kind": "median", "warmup_updates": 5}, "tasks": ["dmc-cartpole-balance"]},
        "after pruner.warmup_updates 5, every 4, is not before the end, 8 updates",
    ),
    "tasks beside the grid's": (
        {"experiment": {"tasks": ["h1-run"]}},
        "experiment.tasks (or --set tasks=) cannot be set: the sweep has its own tasks",
    ),
    "another name": (
        {"experiment": {"name": "x"}},
        "experiment.name (or --set name=) cannot be set: the sweep has its own name",
    ),
    "a variant of a searched field": (
        {"tasks": None, "variants": {"no_value": {"loss": {"value": 0.0}}}},
        "search.loss.value: variant no_value sets it, too",
    ),
    "a variant that reads nothing of a searched field": (
        {"tasks": None, "variants": {"sac": {"agent": "sac"}}},
        "search.loss.value: agent sac (on sac) does not read it",
    ),
    "a variant's name": (
        {"tasks": None, "search": {}, "variants": {"it's": {"loss": {"path": 0.0}}}},
        'variants: "it\'s": a name of letters, digits',
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
        "sqlite:///mlflow.db": "cannot be opened: it holds another program's tables; MLflow and Optuna need",
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
    shutil.copy(empty_store(), folder / "mlflow.db")
    assert main(["sweep", "run", "sweep.yaml", "--storage", storage]) == 2
    (only,) = capsys.readouterr().err.splitlines()
    assert only.startswith(f"ezm: STORAGE {storage!r}")
    assert line in only
    assert (folder / "mlflow.db").read_bytes() == empty_store().read_bytes()


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_shipped_sweeps_are_valid_and_survive_storage(path: Path) -> None:
    for preset in ("smoke", "laptop", "paper"):
        plan = load_sweep(path, preset=preset)
        again = from_document(plan.document())
        assert (again.points, again.key) == (plan.points, plan.key)
        assert changes(plan.document(), again.document()) == []


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
    assert plan.spec.trials_per_point == 6
    combinations = plan.spec.combinations()
    assert len({tuple(values.items()) for values in combinations}) == 6
    changed = plan.changed(combinations[-1], plan.points[0], seed=7)
    assert (changed.targets.policy, changed.targets.td_steps, changed.seed) == ("improved", 5, 7)


@pytest.mark.parametrize(
    "change",
    [
        {"objective": "eval/gym:Pendulum-v1/return_ezm"},
        {"tasks": [["gym:Pendulum-v1", "dmc-cartpole-balance"]]},
        {
            "experiment": {
                "tasks_meta": {"gym:Pendulum-v1": {"random_score": -1200.0, "success_score": -200.0}}
            },
            "objective": "eval/gym:Pendulum-v1/score",
        },
    ],
    ids=["returns", "beside a task with scores", "bounds in the spec"],
)
def test_tasks_of_others_have_objectives(change: dict[str, Any], folder: Path) -> None:
    plan = load_sweep(write(folder, **{"tasks": [["gym:Pendulum-v1"]], **change}))
    assert plan.spec.objective == change.get("objective", "eval/score")


def test_whole_numbers_are_drawn_where_the_field_takes_them(folder: Path) -> None:
    search = {"targets.td_steps": {"low": 1, "high": 5}, "loss.value": {"low": 1, "high": 5}}
    plan = load_sweep(write(folder, search=search))
    assert plan.takes_whole("targets.td_steps")
    assert not plan.takes_whole("loss.value")


FIELDS = (
    "optim.batch_size", "targets.td_steps", "targets.unroll_steps", "replay.block_size", "replay.shared",
    "loss.value", "targets.discount", "model.initial_log_std", "env.short_episode_steps", "search.wave",
)  # fmt: skip
NUMBERS = (0, 0.5, 1, 1, 2, 2, 3, 4, 10, 33, 100)


def random_dimension(random: np.random.Generator) -> dict[str, Any]:
    """A range, a range with a step, or choices: of numbers that may not fit."""
    if random.random() < 0.3:
        return {"choices": [*random.choice(NUMBERS, 2).tolist(), True, "best", None][: random.integers(1, 4)]}
    low, high = sorted(random.choice(NUMBERS, 2, replace=False).tolist())
    found = {"low": low, "high": high, "log": bool(random.random() < 0.2)}
    return {**found, "step": random.choice(NUMBERS).item()} if random.random() < 0.5 else found


def test_whatever_is_drawn_can_be_trained(folder: Path) -> None:
    """A sweep is refused in one line, or every value that a sampler can draw makes a valid experiment."""
    refused = drawn = 0
    for seed in range(400):
        random = np.random.default_rng(seed)
        fields = random.choice(FIELDS, random.integers(1, 3), replace=False).tolist()
        search = {field: random_dimension(random) for field in fields}
        sampler = str(random.choice(["random", "grid"]))
        trials = 1 if sampler == "random" else None
        path = write(folder, search=search, sampler=sampler, trials=trials)
        try:
            plan = load_sweep(path)
        except SpecError as error:
            assert str(error).startswith(f"{path}: ")
            refused += 1
            continue
        space = {
            field: distribution(dimension, plan.takes_whole(field))
            for field, dimension in plan.spec.search.items()
        }
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
        draws = (
            plan.spec.combinations() if sampler == "grid" else [study.ask(space).params for _ in range(20)]
        )
        for values in draws:
            plan.changed(values, plan.points[0], seed=0)
        drawn += 1
    assert min(refused, drawn) > 25


def test_a_changed_spec_is_named_field_by_field(folder: Path) -> None:
    old = load_sweep(folder / "sweep.yaml").document()
    new = load_sweep(folder / "sweep.yaml", trials=3).document()
    assert changes(old, new) == ["trials: 2 -> 3"]


def test_errors_of_a_file(folder: Path) -> None:
    with pytest.raises(SpecError, match=r"no such file"):
        load_sweep(folder / "swep.yaml")


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_validate_says_what_a_sweep_will_run(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "validate", str(path), "--preset", "laptop"]) == 0
    plan, said = load_sweep(path, preset="laptop"), capsys.readouterr().out
    runs = len(plan.points) * plan.spec.trials_per_point * plan.spec.seeds
    assert f"# runs: {runs}\n" in said
    assert all(f"# {point.label}: tasks: {len(point.experiment.tasks)}" in said for point in plan.points)


@pytest.mark.parametrize("command", ["validate", "train"])
def test_a_sweep_given_as_an_experiment_is_told_its_command(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, str(folder / "sweep.yaml")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "ezm sweep validate" in said
