"""The report of a sweep, out of a real MLflow store that holds what a sweep writes."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image
from rich.console import Console
from sweep_store import FilledSweep, new_sweep

from ezm_pl.cli import main
from ezm_pl.spec import SUITES, SpecError
from ezm_pl.sweeps.report import make_report
from ezm_pl.tracking.store import open_store
from ezm_pl.tracking.sweep import tags
from ezm_pl.tracking.sweep.runs import find_sweep, open_sweep, read_sweep
from ezm_pl.tracking.sweep.scores import pruning, score_points

TWO, FOUR = SUITES["hb-2"], SUITES["hb-4"]


class Outside(HTMLParser):
    """Collects whatever a page would fetch, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.images = 0
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base"}
        self.images += tag == "img"
        for name, value in attributes:
            if name in {"src", "href", "srcset", "data", "poster", "action"}:
                assert value is not None
                if not value.startswith("data:image/svg+xml;base64,"):
                    self.fetched.append(value)
        if tag == "img":
            assert dict(attributes)["alt"]

    def handle_data(self, data: str) -> None:
        self.text += data


def written(sweep: FilledSweep, folder: Path, **options: list[Path]) -> Outside:
    """The parsed report of `sweep`, nothing fetched by it."""
    path = make_report(
        sweep.run_id,
        out=folder / "report",
        published=options.get("published", []),
        console=Console(quiet=True),
        uri=sweep.uri,
    )
    source = path.read_text(encoding="utf-8")
    assert "url(" not in source
    assert "@import" not in source
    parsed = Outside()
    parsed.feed(source)
    assert parsed.fetched == []
    return parsed


def filled(
    sweep: FilledSweep, scores: dict[int, float], *, seeds: int = 3, shared: int = 2, **more
) -> dict[int, str]:
    """Grid points of the first tasks, `number of tasks: score`."""
    points = {}
    for number, score in scores.items():
        label, tasks = f"hb-{number}", SUITES[f"hb-{number}"]
        points[number] = sweep.point(label, tasks)
        for seed in range(seeds):
            sweep.seed(
                points[number], label, tasks, shared=SUITES[f"hb-{shared}"], score=score, seed=seed, **more
            )
    return points


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tracking store that the sweeps of this module share, each under its own name."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def scaling(store: Path) -> tuple[FilledSweep, Path, Outside]:
    """Two and four tasks, the second clearly better; its report beside EZ-M-like and BRC-like curves."""
    folder = store / "scaling"
    folder.mkdir()
    sweep = new_sweep(store)
    filled(sweep, {4: 0.6, 2: 0.2})
    sweep.finish()
    curve = {"million_steps": [0.0, 0.0004, 1.0], "return": [5.0, 300.0, 800.0]}
    ours, theirs = folder / "ez-m.json", folder / "brc.json"
    ours.write_text(json.dumps({TWO[0]: {"EZ-M": {"seed_0": curve}}}))
    theirs.write_text(json.dumps({TWO[0]: [[1.0, 2.0, 3.0]]}))
    return sweep, folder, written(sweep, folder, published=[ours, theirs])


def test_report_says_what_was_found(scaling: tuple[FilledSweep, Path, Outside]) -> None:
    text = scaling[2].text
    assert (
        "compares 2 grid points (hb-2 and hb-4), 3 seeds each, after 800 environment steps per task" in text
    )
    assert "evaluated with 1 episode per task and seed (ezm protocol)" in text
    assert "hb-4 against hb-2: +0." in text
    assert "happens by chance in 1 of 10 comparisons: suggestive at most." in text
    assert "3 seeds: intervals from so few are too narrow" in text
    assert "0.06% of that" in text
    assert "888 ± 3 @ 1.28M" in text
    assert "917 ± 33" in text
    assert "Partial" not in text
    assert "A processor <of & for> tests" in text
    assert "name: scaling" in text
    assert "Nothing: every grid point has the base experiment's values." in text


def test_figures_lie_beside_the_page_and_in_mlflow(scaling: tuple[FilledSweep, Path, Outside]) -> None:
    sweep, folder, page = scaling
    drawn = sorted(path.relative_to(folder / "report") for path in (folder / "report").rglob("*.svg"))
    names = {str(path.with_suffix("")) for path in drawn}
    both = {f"curves_{protocol}/{task}" for protocol in ("ezm", "humanoidbench") for task in FOUR}
    assert names == {"score_shared_tasks", "score_own_tasks"} | both
    assert page.images == len(names)
    for path in drawn:
        root = ElementTree.parse(folder / "report" / path).getroot()
        assert root.tag.endswith("svg")
        with Image.open((folder / "report" / path).with_suffix(".png")) as picture:
            assert picture.width > 700
    logged = {entry.path for entry in sweep.client.list_artifacts(sweep.run_id, "report")}
    assert {"report/report.html", "report/score_shared_tasks.png", "report/curves_ezm"} <= logged


def test_sweeps_of_one_name_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each would log the other's figures as its own."""
    monkeypatch.chdir(tmp_path)
    first, second = new_sweep(tmp_path, "one/name"), new_sweep(tmp_path, "one/name")
    filled(first, {2: 0.2})
    pages = [
        make_report(sweep.run_id, out=None, published=[], console=Console(quiet=True), uri=sweep.uri)
        for sweep in (first, second)
    ]
    assert [page.parent for page in pages] == [
        Path(f"mlruns/reports/one-name-{sweep.run_id[:8]}") for sweep in (first, second)
    ]
    logged = [{entry.path for entry in s.client.list_artifacts(s.run_id, "report")} for s in (first, second)]
    assert "report/curves_ezm" in logged[0]
    assert logged[1] == {"report/report.html"}


def test_scores_by_hand(store: Path) -> None:
    """Without noise every score is the one that was put in, whatever the task."""
    sweep = new_sweep(store, "scores_by_hand")
    filled(sweep, {2: 0.25, 4: 0.5}, spread=0.0)
    two, four = score_points(read_sweep(sweep.client, sweep.client.get_run(sweep.run_id)))
    assert two.shared is not None and two.shared.interval.value == pytest.approx(0.25)
    assert four.own is not None and four.own.by_seed == pytest.approx([0.5, 0.5, 0.5])


def test_overlapping_intervals_claim_nothing(store: Path, tmp_path: Path) -> None:
    sweep = new_sweep(store, "overlapping_intervals_claim_nothing")
    filled(sweep, {2: 0.02, 4: 0.02, 6: 0.02}, spread=0.1)
    sweep.finish()
    text = written(sweep, tmp_path).text
    assert "All intervals overlap that of hb-2: no difference can be claimed." in text
    assert "higher by" not in text
    assert "No grid point is clearly above a random policy" in text


def test_no_sweep_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["report"]) == 2
    error = capsys.readouterr().err
    (line,) = [line for line in error.splitlines() if line.startswith("ezm: ")]
    assert line.startswith("ezm: SWEEP last: there is no sweep in sqlite:///mlruns/mlflow.db yet")


def test_a_report_that_mlflow_does_not_take_is_one_line(tmp_path: Path) -> None:
    sweep = new_sweep(tmp_path)
    in_the_way = tmp_path / "artifacts" / sweep.run_id / "artifacts" / "report"
    in_the_way.write_text("a file, no folder")
    with pytest.raises(SpecError, match=rf"^MLflow did not take the report into run {sweep.run_id}: .*$"):
        written(sweep, tmp_path)
    assert (tmp_path / "report" / "report.html").is_file()


def test_files_that_lie_where_the_report_goes_are_no_part_of_it(tmp_path: Path) -> None:
    sweep = new_sweep(tmp_path)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "replay.bin").write_text("large")
    written(sweep, tmp_path)
    logged = [file.path for file in sweep.client.list_artifacts(sweep.run_id, "report")]
    assert "report/report.html" in logged
    assert "report/replay.bin" not in logged
    assert (tmp_path / "report" / "replay.bin").is_file()


def test_a_sweep_is_looked_for_in_every_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """As after a run that was tracked elsewhere."""
    monkeypatch.chdir(tmp_path)
    open_store("sqlite:///elsewhere.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///elsewhere.db")
    sweep = new_sweep(tmp_path, "weights")
    monkeypatch.setattr("ezm_pl.tracking.store.DEFAULT_URI", sweep.uri)
    assert open_sweep("weights")[1].run_id == sweep.run_id
    assert main(["report", "wights"]) == 2
    error = capsys.readouterr().err
    assert "elsewhere.db" in error and "did you mean 'weights'" in error


def test_sweeps_by_name_id_and_last(tmp_path: Path) -> None:
    first, second = new_sweep(tmp_path, "weights"), new_sweep(tmp_path, "scaling")
    again = new_sweep(tmp_path, "weights")

    def found(reference: str) -> str:
        return find_sweep(first.client, reference, where="here").info.run_id

    assert found("last") == again.run_id
    assert found("weights") == again.run_id
    assert found("scaling") == second.run_id
    assert found(first.run_id) == found(first.run_id[:12]) == first.run_id
    with pytest.raises(
        SpecError, match=r"^SWEEP scalng: no such sweep in here \(3 sweeps\); did you mean 'scaling'"
    ):
        found("scalng")


def test_a_sweep_still_running(store: Path, tmp_path: Path) -> None:
    sweep = new_sweep(store, "a_sweep_still_running")
    points = filled(sweep, {2: 0.3})
    sweep.seed(points[2], "hb-2", TWO, shared=TWO, score=0.3, trial=1, state=tags.RUNNING, steps=(400,))
    sweep.point("hb-4", FOUR)
    text = written(sweep, tmp_path).text
    assert "Partial: the sweep is RUNNING in MLflow, 1 trial not ended" in text
    assert "hb-4 has no complete trial and is left out" in text
    assert "There is a single grid point" in text


def test_nothing_complete(store: Path, tmp_path: Path) -> None:
    sweep = new_sweep(store, "nothing_complete")
    sweep.seed(sweep.point("hb-2", TWO), "hb-2", TWO, shared=TWO, score=0.1, state=tags.FAILED, steps=())
    page = written(sweep, tmp_path)
    assert "No grid point of sweep nothing_complete has a complete trial yet" in page.text
    assert page.images == 0
    assert "No grid point" in written(new_sweep(store, "empty"), tmp_path).text


def test_one_seed_and_one_grid_point(store: Path, tmp_path: Path) -> None:
    sweep = new_sweep(store, "one_seed_and_one_grid_point")
    filled(sweep, {2: 0.3, 4: 0.9}, seeds=1)
    sweep.finish()
    text = written(sweep, tmp_path).text
    assert "With one seed there is no interval over seeds: no difference can be claimed." in text
    assert "One seed: nothing is known of the spread between seeds" in text
    assert "higher" not in text


def test_tasks_without_published_scores(store: Path, tmp_path: Path) -> None:
    sweep = new_sweep(store, "tasks_without_published_scores")
    tasks = ("dmc-cartpole-swingup", "dmc-walker-walk")
    point = sweep.point("dmc", tasks)
    for seed in range(2):
        sweep.seed(point, "dmc", tasks, shared=tasks, score=0.4, seed=seed)
    sweep.finish()
    text = written(sweep, tmp_path).text
    assert "No published scores exist for dmc-cartpole-swingup and dmc-walker-walk." in text
    assert "dmc-walker-walk––" in text.replace(" ", "")


def test_a_task_whose_module_is_not_here_is_one_line(store: Path, tmp_path: Path) -> None:
    sweep = new_sweep(store, "a_task_whose_module_is_not_here")
    tasks = ("a_module_elsewhere:h1-bell",)
    point = sweep.point("bell", tasks)
    sweep.seed(point, "bell", tasks, shared=tasks, score=0.4, without=tasks)
    sweep.finish()
    with pytest.raises(SpecError, match=r"^task 'a_module_elsewhere:h1-bell': module .* does not import"):
        written(sweep, tmp_path)


def test_a_missing_metric(store: Path, tmp_path: Path) -> None:
    sweep = new_sweep(store, "a_missing_metric")
    filled(sweep, {2: 0.3})
    sweep.seed(sweep.point("hb-4", FOUR), "hb-4", FOUR, shared=TWO, score=0.4, without=[TWO[0]])
    sweep.finish()
    assert f"hb-4: {TWO[0]}, seed 0" in written(sweep, tmp_path).text


def test_no_evaluation_at_all(store: Path, tmp_path: Path) -> None:
    sweep = new_sweep(store, "no_evaluation_at_all")
    filled(sweep, {2: 0.3}, without=TWO)
    sweep.finish()
    page = written(sweep, tmp_path)
    assert "The shared tasks were not evaluated" in page.text
    assert page.images == 0


def test_a_search_with_pruned_and_failed_trials(store: Path, tmp_path: Path) -> None:
    """The best trial is shown; importances, slices, counts and what pruning saved are there."""
    sweep = new_sweep(
        store,
        "a_search_with_pruned_and_failed_trials",
        params={"search.loss.policy": "0.01 to 10, log"},
    )
    for label, tasks in (("hb-2", TWO), ("hb-4", FOUR)):
        point = sweep.point(label, tasks)
        for trial in range(12 if label == "hb-2" else 4):
            values = {
                "loss.policy": 10.0 ** (trial / 3 - 2),
                "targets.policy": ("best", "improved")[trial % 2],
            }
            score = 0.5 - 0.1 * abs(trial - 3)
            sweep.seed(point, label, tasks, shared=TWO, score=score, trial=trial, values=values)
        pruned = {"shared": TWO, "score": 0.0, "state": tags.PRUNED, "minutes": 1.0, "steps": (400,)}
        sweep.seed(point, label, tasks, trial=20, values=values, **pruned)
        sweep.seed(point, label, tasks, trial=21, values=values, shared=TWO, score=0.0, state=tags.FAILED)
    sweep.finish()
    read = read_sweep(sweep.client, sweep.client.get_run(sweep.run_id))
    assert [point.best("maximize").number for point in read.points] == [3, 3]
    assert [point.best("minimize").number for point in read.points] == [11, 0]
    saving = pruning(read)
    assert (saving.trials, saving.seconds) == (2, pytest.approx(2 * 3 * 60))
    page = written(sweep, tmp_path)
    assert "2 trials pruned, saving about 6.0 minutes" in page.text
    assert "Too few complete trials for importances, 10 are needed per grid point: hb-4 (4)." in page.text
    assert "out of 12 (hb-2) and 4 (hb-4)" in page.text
    assert (tmp_path / "report" / "importances.png").exists()
    assert {path.stem for path in (tmp_path / "report" / "slices").glob("*.svg")} == {
        "loss.policy",
        "targets.policy",
    }


def test_a_retried_seed_counts_once(store: Path) -> None:
    sweep = new_sweep(store, "a_retried_seed_counts_once")
    point = sweep.point("hb-2", TWO)
    sweep.seed(point, "hb-2", TWO, shared=TWO, score=0.0, state=tags.FAILED)
    newest = sweep.seed(point, "hb-2", TWO, shared=TWO, score=0.4)
    read = read_sweep(sweep.client, sweep.client.get_run(sweep.run_id))
    (trial,) = read.points[0].trials
    assert trial.state == tags.COMPLETE
    assert [run.run_id for run in trial.runs] == [newest]
    assert len(read.points[0].attempts) == 2


def test_repetitions_are_seeds(store: Path) -> None:
    """Where nothing was searched, trials differ in seeds alone: all count, none is chosen for its score."""
    sweep = new_sweep(store, "repetitions")
    point = sweep.point("hb-2", TWO)
    for trial in range(2):
        for seed in range(2):
            sweep.seed(
                point, "hb-2", TWO, shared=TWO, score=0.2 + 0.4 * trial, trial=trial, seed=2 * trial + seed
            )
    (scored,) = score_points(read_sweep(sweep.client, sweep.client.get_run(sweep.run_id)))
    assert [run.seed for run in scored.runs] == [0, 1, 2, 3]
    assert scored.own is not None and scored.own.interval.value == pytest.approx(0.4, abs=0.05)
