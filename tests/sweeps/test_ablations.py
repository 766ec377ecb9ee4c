"""Ablations: a sweep over variants of an experiment, what it plans, stores, and says at the end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from sweep_helpers import BASE, run_ezm
from sweep_store import new_sweep

from ezm_pl.cli import main
from ezm_pl.spec import SpecError, load_experiment
from ezm_pl.spec.sweep_plan import from_document, load_sweep
from ezm_pl.spec.yaml_file import dump_yaml
from ezm_pl.sweeps.queue import Queue, stored_sweeps
from ezm_pl.sweeps.report import make_report
from ezm_pl.sweeps.storage import open_storage
from ezm_pl.tracking.results.results_page import render
from ezm_pl.tracking.store import open_store
from ezm_pl.tracking.sweep import tags
from ezm_pl.tracking.sweep.ablations import Ablation, compare_variants
from ezm_pl.tracking.sweep.runs import find_sweep, read_sweep
from ezm_pl.tracking.sweep.scores import score_points
from ezm_pl.tracking.sweep.statistics import bootstrap_difference, bootstrap_iqm, probability_of_improvement

pytestmark = pytest.mark.timeout(1800)

TASKS = ["dmc-cartpole-balance", "dmc-pendulum-swingup"]
VARIANTS = {
    "no_path": "loss: {path: 0.0}\n",
    "no_search": "search: {choice: policy}\ntargets: {reanalyse: false}\nloss: {policy: 0.0}\n",
    "one_task": "tasks: [dmc-cartpole-balance]\n",
    "other_task": "tasks: [h1-stand]\n",
    "same": "loss: {path: 0.25}\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep over variants of a tiny experiment of two tasks."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "parts").mkdir()
    (tmp_path / "base.yaml").write_text(dump_yaml({**BASE, "tasks": TASKS}))
    for name, text in VARIANTS.items():
        (tmp_path / "parts" / f"{name}.yaml").write_text(f"base: ../base.yaml\nname: {name}\n{text}")
    (tmp_path / "sweep.yaml").write_text("name: parts\nbase: base.yaml\nvariants: parts\n")
    return tmp_path


def test_the_grid_is_the_base_and_the_variants_that_say_something_about_it(folder: Path) -> None:
    plan = load_sweep(folder / "sweep.yaml", seeds=2)
    assert [point.label for point in plan.points] == ["full", "no_path", "no_search", "one_task"]
    base = load_experiment(folder / "base.yaml")
    assert plan.points[0].experiment.loss == base.loss
    assert plan.points[1].experiment.loss.path == 0 and plan.points[1].experiment.tasks == tuple(TASKS)
    assert plan.points[3].experiment.tasks == (TASKS[0],)
    assert plan.left_out == (
        "other_task: its tasks (h1-stand) are not all tasks of the base experiment",
        "same: changes nothing of the base experiment (loss)",
    )
    assert [plan.seed(0, index) for index in range(2)] == [0, 1], "all variants have the same seeds"
    again = from_document(plan.document())
    assert again.points == plan.points and again.key == plan.key == "parts smoke base"
    (folder / "saved.yaml").write_text(plan.text())
    assert load_sweep(folder / "saved.yaml").points == plan.points, "as the report advises"


def test_a_variant_is_what_its_file_trains_alone(folder: Path) -> None:
    plan = load_sweep(folder / "sweep.yaml")
    for point in plan.points[1:]:
        alone = load_experiment(folder / "parts" / f"{point.label}.yaml", ["trainer.devices=1"])
        assert point.experiment.model_copy(update={"name": alone.name}) == alone


def test_another_base_settings_and_a_choice_of_variants(folder: Path) -> None:
    (folder / "other.yaml").write_text(dump_yaml({**BASE, "tasks": ["h1-stand"], "loss": {"path": 0.5}}))
    plan = load_sweep(
        folder / "sweep.yaml",
        base=str(folder / "other.yaml"),
        settings=["optim.total_updates=4"],
        only=["same", "no_path"],
        name="mine",
    )
    assert [point.label for point in plan.points] == ["full", "same", "no_path"]
    assert [point.experiment.loss.path for point in plan.points] == [0.5, 0.25, 0.0]
    assert {point.experiment.max_steps for point in plan.points} == {4}
    assert plan.key == "mine smoke other"


WRONG = {
    "no such variant": (["--only", "no_pth"], "--only no_pth: no such variant; did you mean 'no_path'?"),
    "named, of other tasks": (
        ["--only", "other_task"],
        "variant other_task: its tasks (h1-stand) are not all",
    ),
    "named, the base itself": (["--only", "same"], "variant same: changes nothing of the base experiment"),
    "numbers of tasks": (["--tasks", "8"], "tasks or variants: one of them is required, and only one"),
    "no such base": (["--base", "bas.yaml"], "bas.yaml: no such file; did you mean 'base.yaml'?"),
    "a setting": (["--set", "loss.pth=1"], "loss.pth: unknown key; did you mean 'path'?"),
    "no setting": (["--set", "loss"], "--set 'loss': write it as key.path=value"),
}


@pytest.mark.parametrize(("arguments", "line"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_is_one_line(
    arguments: list[str],
    line: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    assert main(["sweep", "run", "sweep.yaml", *arguments]) == 2
    (only,) = capsys.readouterr().err.splitlines()
    assert line in only


def test_variants_may_be_wrong_or_missing(folder: Path) -> None:
    (folder / "parts" / "no_path.yaml").write_text("base: ../base.yaml\nloss: {pth: 0.0}\n")
    with pytest.raises(SpecError, match=r"variant no_path: loss.pth: unknown key; did you mean 'path'\?"):
        load_sweep(folder / "sweep.yaml")
    (folder / "sweep.yaml").write_text("name: parts\nbase: base.yaml\nvariants: {a: {seed: 3}}\n")
    with pytest.raises(SpecError, match=r"variants.a: seed is the same for all variants"):
        load_sweep(folder / "sweep.yaml")
    (folder / "sweep.yaml").write_text("name: parts\nbase: base.yaml\nvariants: [no_path]\n")
    with pytest.raises(SpecError, match=r"variants: a mapping of keys to values expected"):
        load_sweep(folder / "sweep.yaml", only=["no_path"])
    (folder / "sweep.yaml").write_text("name: parts\nbase: base.yaml\nvariants: none\n")
    with pytest.raises(SpecError, match=r"variants: .*none: a folder of spec files expected"):
        load_sweep(folder / "sweep.yaml")


def test_variants_can_be_added_to_a_sweep_and_not_changed(folder: Path) -> None:
    storage = open_storage(f"sqlite:///{folder}/optuna.db")
    Queue(storage, load_sweep(folder / "sweep.yaml", only=["no_path"])).fill()
    Queue(storage, load_sweep(folder / "sweep.yaml", only=["one_task", "no_search"])).fill()
    (plan,) = map(from_document, stored_sweeps(storage).values())
    assert {point.label for point in plan.points} == {"full", "no_path", "no_search", "one_task"}
    assert sum(len(Queue(storage, plan).trials(point)) for point in plan.points) == 4
    (folder / "parts" / "no_path.yaml").write_text("base: ../base.yaml\nloss: {path: 0.1}\n")
    Queue(storage, load_sweep(folder / "sweep.yaml", only=["one_task"])).fill()
    with pytest.raises(SpecError, match=r"another spec: variants.no_path.loss.path: 0.0 -> 0.1"):
        Queue(storage, load_sweep(folder / "sweep.yaml")).fill()


def test_an_ablation_from_one_command_to_its_figure(folder: Path) -> None:
    """Real training, one seed each; the same command again trains nothing; the report has every row."""
    arguments = ("sweep", "run", "sweep.yaml", "--only", "no_search,one_task", "--report")
    done = run_ezm(folder, *arguments)
    assert done.returncode == 0, done.stderr
    client = open_store(f"sqlite:///{folder}/mlruns/mlflow.db")
    sweep = read_sweep(client, find_sweep(client, "parts smoke base", where=""))
    assert [point.label for point in sweep.points] == ["full", "no_search", "one_task"]
    assert [len(point.attempts) for point in sweep.points] == [1, 1, 1]
    names = {client.get_run(run.run_id).info.run_name for run in sweep.runs}
    assert names == {"full · t0 s0", "no_search · t0 s0", "one_task · t0 s0"}
    (page,) = folder.glob("mlruns/reports/*/report.html")
    text = page.read_text()
    assert "What each part contributes" in text and "2 variants of it were trained" in text
    with Image.open(page.parent / "ablations.png") as figure:
        assert figure.width > 1000
    collect = ("results", "collect", "--sweep", "parts smoke base", "--episodes", "2", "--out", "parts.json")
    recorded = run_ezm(folder, *collect)
    assert recorded.returncode == 0, recorded.stderr
    (folder / "page.md.j2").write_text(
        "{{ variants('parts') }}\n\n{{ runs('parts') }}\n{{ final('parts') }}\n"
    )
    page_of_it = render(folder / "page.md.j2", folder)
    assert "| no_search | 1 | dmc-cartpole-balance, dmc-pendulum-swingup |" in page_of_it
    assert (
        "- no_search: full with loss.policy=0.0, search.choice=policy, targets.reanalyse=false;" in page_of_it
    )
    for label, tasks in (("full", TASKS), ("no_search", TASKS), ("one_task", TASKS[:1])):
        assert all(f"| {task} | {label} | 1 | 2 | " in page_of_it for task in tasks)
    again = run_ezm(folder, *arguments)
    assert (
        "already finished" in again.stdout and len(read_sweep(client, client.get_run(sweep.run_id)).runs) == 3
    )


def test_scores_of_variants_are_compared_on_the_tasks_of_both(tmp_path: Path) -> None:
    """`worse` loses 0.4 with every seed, `equal` nothing, `one_task` is better and has one task only."""
    sweep = new_sweep(tmp_path, "parts", params={tags.REFERENCE: "full"})
    points = {
        "full": (TASKS, 0.6),
        "worse": (TASKS, 0.2),
        "equal": (TASKS, 0.6),
        "one_task": (TASKS[:1], 0.9),
    }
    for label, (tasks, score) in points.items():
        point = sweep.point(label, tasks)
        spread = 0.0 if label in ("full", "equal") else 0.02
        for seed in range(4):
            sweep.seed(point, label, tasks, shared=TASKS[:1], score=score, seed=seed, spread=spread)
    sweep.finish()
    found = read_sweep(sweep.client, find_sweep(sweep.client, "parts", where=""))
    reference, variants = compare_variants(found, score_points(found))
    assert reference is not None and reference.point.label == "full"
    worse, equal, one = variants
    assert [each.verdict for each in variants] == ["worse", "no difference shown", "better"]
    assert worse.difference.value == pytest.approx(-0.4, abs=0.03)
    assert worse.improvement.value == 1 and one.improvement.value == 0
    assert (equal.difference.low, equal.difference.high, equal.improvement.value) == (0, 0, 0.5)
    assert one.tasks == (TASKS[0],) and one.reference.value == pytest.approx(0.6, abs=0.03)
    page = make_report(
        found.run_id, out=tmp_path / "report", published=[], console=Console(quiet=True), uri=sweep.uri
    ).read_text()
    assert "Every seed is below all of its seeds: worse (-0." in page
    assert "No difference is shown for equal." in page
    assert "With 3 comparisons at 95%, 0.2 differ by chance" in page


def test_few_seeds_settle_nothing() -> None:
    """Three seeds against three separate by chance in 1 of 10 cases; four in 1 of 35."""
    near, far = np.array([0.1, 0.11, 0.12]), np.array([0.9, 0.91, 0.92])

    def verdict(ours: np.ndarray, theirs: np.ndarray) -> str:
        difference = bootstrap_difference([ours], [theirs])
        numbers = (bootstrap_iqm([theirs]), theirs, difference, probability_of_improvement([theirs], [ours]))
        return Ablation("a", ("t",), len(ours), bootstrap_iqm([ours]), ours, *numbers).verdict

    assert verdict(near, far) == verdict(far, near) == "suggestive"
    assert verdict(np.append(near, 0.13), np.append(far, 0.93)) == "worse"
    assert verdict(np.append(far, 0.93), np.append(near, 0.13)) == "better"
    assert verdict(near[:1], far) == "one seed"


def test_differences_and_probabilities_by_hand() -> None:
    """Of 2 x 2 pairs per task: task 0 all above, task 1 one tie and one above."""
    ours, theirs = [[3.0, 4.0], [1.0, 2.0]], [[1.0, 2.0], [2.0, 2.0]]
    found = probability_of_improvement(ours, theirs)
    assert found.value == pytest.approx((1.0 + (0 + 0 + 0.5 + 0.5) / 4) / 2)
    assert found.low <= found.value <= found.high
    assert bootstrap_difference(ours, theirs).value == pytest.approx(2.5 - 2.0)
    assert probability_of_improvement([[1.0]], [[0.0]]).value == 1
    assert not probability_of_improvement([[1.0]], [[0.0]]).known
    with pytest.raises(ValueError, match="same tasks"):
        probability_of_improvement(ours, theirs[:1])


@pytest.mark.parametrize(("gap", "least"), [(0.0, 0.85), (1.0, 0.85)])
def test_intervals_of_a_difference_hold_the_truth(gap: float, least: float) -> None:
    """Normal scores of 3 tasks and 10 seeds: of 200 draws at least 85% of the 95% intervals hold the gap."""
    random = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        ours, theirs = random.normal(gap, 1, (3, 10)), random.normal(0, 1, (3, 10))
        found = bootstrap_difference(list(ours), list(theirs), replicates=400)
        held += found.low <= gap <= found.high
    assert held / 200 >= least
