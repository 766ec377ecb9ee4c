"""Grid points of a sweep: their tasks, labels and budgets."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from sweep_helpers import BASE, write

from ezm_pl.spec import SpecError
from ezm_pl.spec.sweep_plan import from_document, load_sweep
from ezm_pl.sweeps.queue import Queue
from ezm_pl.sweeps.storage import open_storage
from ezm_pl.sweeps.worker import find_sweep

SWEEPS = Path(__file__).parents[2] / "sweeps"


def test_every_grid_point_has_the_same_budget_per_task() -> None:
    """The comparison is fair: only the tasks differ."""
    plan = load_sweep(SWEEPS / "task_scaling.yaml", tasks="2,8,29", preset="smoke")
    assert [len(point.experiment.tasks) for point in plan.points] == [2, 8, 29]
    rest = [point.experiment.model_dump(exclude={"tasks"}) for point in plan.points]
    assert rest[0] == rest[1] == rest[2]
    assert plan.shared_tasks == plan.points[0].experiment.tasks


def test_what_is_said_of_a_task_goes_with_it(folder: Path) -> None:
    """Grid points and variants without the task do without it; a name that no point has is refused."""
    points = [["gym:Pendulum-v1"], ["gym:Pendulum-v1", "gym:Walker2d-v5"]]
    bounds = {name: {"random_score": -9.0, "success_score": 9.0} for name in points[1]}
    both = {"experiment": {"tasks_meta": bounds}, "search": {}}
    plan = load_sweep(write(folder, **both, tasks=points))
    assert [set(point.experiment.tasks_meta) for point in plan.points] == [*map(set, points)]
    assert from_document(plan.document()).points == plan.points
    with pytest.raises(SpecError, match=r"tasks_meta: 'gym:Walker2d-v5' is not one of the tasks"):
        load_sweep(write(folder, **both, tasks=points[:1]))
    (folder / "base.yaml").write_text(yaml.safe_dump({**BASE, "tasks": points[1], "tasks_meta": bounds}))
    document = {"name": "x", "base": "base.yaml", "variants": {"one_task": {"tasks": points[0]}}}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(document))
    plan = load_sweep(folder / "sweep.yaml")
    assert [set(point.experiment.tasks_meta) for point in plan.points] == [*map(set, points[::-1])]
    assert from_document(plan.document()).points == plan.points


def test_a_variant_may_say_something_of_a_task_of_its_own(folder: Path) -> None:
    """It is not laid over the other variants, and others can be added beside it."""
    variants = {
        "no_path": {"loss": {"path": 0.0}},
        "no_quirks": {"tasks_meta": {"h1-walk": {"quirks": False}}},
    }
    (folder / "base.yaml").write_text(yaml.safe_dump({**BASE, "tasks": ["h1-walk"]}))
    (folder / "sweep.yaml").write_text(
        yaml.safe_dump({"name": "x", "base": "base.yaml", "variants": variants})
    )
    plan = load_sweep(folder / "sweep.yaml")
    assert [point.experiment.without_quirks for point in plan.points] == [(), (), ("h1-walk",)]
    assert from_document(plan.document()).points == plan.points
    storage = open_storage(f"sqlite:///{folder}/optuna.db")
    for only in (["no_path"], ["no_quirks"]):
        Queue(storage, load_sweep(folder / "sweep.yaml", only=only)).fill()
    assert find_sweep(storage, "x", "there").points == plan.points


def test_a_variant_says_nothing_of_a_task_that_it_leaves_out(folder: Path) -> None:
    own = {"tasks": ["h1-stand"], "tasks_meta": {"h1-walk": {"quirks": False}}}
    (folder / "base.yaml").write_text(yaml.safe_dump({**BASE, "tasks": ["h1-stand", "h1-walk"]}))
    (folder / "sweep.yaml").write_text(
        yaml.safe_dump({"name": "x", "base": "base.yaml", "variants": {"one_task": own}})
    )
    with pytest.raises(SpecError, match=r"variant one_task: tasks_meta: 'h1-walk' is not one of the tasks"):
        load_sweep(folder / "sweep.yaml")


def test_a_point_is_labelled_by_how_many_tasks_it_trains(folder: Path) -> None:
    plan = load_sweep(write(folder, tasks=[["hb-2", "h1-sit_simple"]]))
    assert [point.label for point in plan.points] == [f"{len(plan.points[0].experiment.tasks)}-tasks"]
