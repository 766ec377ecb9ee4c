"""From logged metrics to curves and the figure, and published curves beside them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
from PIL import Image

from ezm_pl.spec import Experiment, SpecError, writing
from ezm_pl.tracking.results.curves import published_curves, read_published, run_curves
from ezm_pl.tracking.results.draw import draw_returns
from ezm_pl.tracking.results.returns_figure import returns_figure
from ezm_pl.tracking.results.videos import write_video
from ezm_pl.tracking.runs.logger import RunLogger
from ezm_pl.tracking.runs.mlflow_run import Run, new_run


@pytest.fixture(scope="module")
def run(workplace: Path, experiment: Experiment) -> Run:
    """A run that was evaluated three times, the second time twice (stopped and resumed)."""
    run = new_run(experiment)
    logger = RunLogger(run.client, run.run_id)
    logger.log_metrics({"train/loss/total": math.nan, "epoch": 0}, step=5)
    for updates, steps, value in ((0, 0, 10.0), (20, 400, 20.0), (20, 400, 21.0), (40, 900, 30.0)):
        returns = {f"eval/{task}/return_ezm": value for task in experiment.tasks}
        falls = {f"eval/{task}/return_humanoidbench": value / 2 for task in experiment.tasks}
        logger.log_metrics({**returns, **falls, "eval/score": value / 100, "env_steps": steps}, step=updates)
    logger.log_metrics({"train/loss/total": 1.0}, step=45)
    logger.log_hyperparams({"anything": 1})
    logger.finalize("success")
    assert logger.sender.flush(60)
    assert logger.sender.close(0, run.directory / "unsent.jsonl") is None
    return run


def history(run: Run, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in run.client.get_metric_history(run.run_id, name)]


def test_metrics_are_logged_against_updates_and_env_steps(run: Run) -> None:
    assert history(run, "eval/score")[-1] == (40, 0.3)
    assert history(run, "by_env_steps/score")[-1] == (900, 0.3)
    assert history(run, "env_steps")[-1] == (45, 900)
    metrics = run.client.get_run(run.run_id).data.metrics
    assert "epoch" not in metrics
    twins = {name.removeprefix("by_env_steps/") for name in metrics if name.startswith("by_env_steps/")}
    assert twins == {name.removeprefix("eval/") for name in metrics if name.startswith("eval/")}


def test_the_logger_leaves_status_and_params_alone(run: Run, experiment: Experiment) -> None:
    stored = run.client.get_run(run.run_id)
    assert stored.info.status == "RUNNING"
    assert "anything" not in stored.data.params


def test_curves_span_sessions_and_an_evaluation_counts_once(run: Run, experiment: Experiment) -> None:
    curves = run_curves(run.client, run.run_id)
    assert set(curves) == set(experiment.tasks)
    ezm, falls = curves["h1-walk"]
    assert (ezm.protocol, falls.protocol) == ("ezm", "humanoidbench")
    np.testing.assert_array_equal(ezm.env_steps, [0, 400, 900])
    np.testing.assert_array_equal(ezm.returns, [10, 20, 30])
    np.testing.assert_array_equal(falls.returns, [5, 10, 15])


def test_published_layouts(tmp_path: Path) -> None:
    ours = tmp_path / "ez-m.json"
    seed = {"million_steps": [0.0, 0.5], "return": [3.0, 600.0]}
    ours.write_text(
        json.dumps({"h1-walk": {"EZ-M": {"seed_0": seed, "seed_1": seed}, "EZ-M-ST": {"seed_0": seed}}})
    )
    first, second, single = published_curves(ours)["h1-walk"]
    assert first.label == second.label == "published EZ-M"
    assert single.label == "published EZ-M-ST"
    np.testing.assert_array_equal(first.env_steps, [0, 500_000])
    theirs = tmp_path / "brc.json"
    theirs.write_text(json.dumps({"h1-walk": [[1.0, 2.0, 3.0, 4.0]]}))
    (curve,) = published_curves(theirs)["h1-walk"]
    assert curve.protocol == "humanoidbench"
    np.testing.assert_array_equal(curve.env_steps, [250_000, 500_000, 750_000, 1_000_000])
    assert not curve.averaged
    means = tmp_path / "means.json"
    mean = {"env_steps": [0, 50_000], "return": [1.0, 2.0]}
    means.write_text(json.dumps({"h1-walk": {"SAC": mean, "XQC": mean}, "cup-catch": {"SAC": mean}}))
    found = published_curves(means)
    assert [curve.label for curve in found["h1-walk"]] == ["published SAC", "published XQC"]
    assert all(curve.averaged for curves in found.values() for curve in curves)
    assert found["h1-walk"][0].protocol == "humanoidbench"
    assert found["dmc-ball_in_cup-catch"][0].protocol == "ezm"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"h1-walk": {"EZ-M": 3}}',
        '{"h1-walk": {"other": {}}}',
        '{"h1-walk": {"SAC": {"env_steps": [1, 2], "return": [1.0]}}}',
        '{"h1-walk": {"SAC": 3}}',
        pytest.param("[" * 100_000, id="nested too deeply"),
    ],
)
def test_files_that_are_no_published_results(text: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(SpecError, match=r"^--published .*: not published results"):
        published_curves(path)
    with pytest.raises(SpecError, match="cannot be read: No such file"):
        published_curves(tmp_path / "nothing.json")


def test_published_files_of_one_name_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / folder / "curves.json" for folder in ("first", "second")]
    for path in paths:
        path.parent.mkdir()
        path.write_text('{"h1-walk": {"SAC": {"env_steps": [1], "return": [1.0]}}}')
    assert list(read_published(paths[:1])) == ["curves"]
    with pytest.raises(SpecError, match=r"^--published .*second/curves\.json: there is another file named"):
        read_published(paths)


def test_figure_has_a_panel_a_task(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "figures" / "returns.png"
    curves = run_curves(run.client, run.run_id)
    returns_figure(curves, path, title=run.name)
    with Image.open(path) as two:
        wide, high = two.size
        assert np.asarray(two.convert("L")).std() > 5
    nine = {f"h1-{i}": curves["h1-walk"] for i in range(9)}
    returns_figure(nine, path, title=run.name, published={"h1-3": published_of(tmp_path)})
    with Image.open(path) as all_nine:
        assert all_nine.size[0] > 1.4 * wide
        assert all_nine.size[1] > 2.4 * high


def published_of(folder: Path) -> list:
    path = folder / "brc.json"
    path.write_text(json.dumps({"h1-walk": [[1.0, 2.0]]}))
    return published_curves(path)["h1-walk"]


def test_figure_command(run: Run, workplace: Path) -> None:
    from rich.console import Console

    draw_returns(str(run.directory), workplace / "out.png", published=None, console=Console(quiet=True))
    assert (workplace / "out.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv"])
def test_a_film_is_read_back_and_a_full_disk_is_told(name: str, tmp_path: Path) -> None:
    frames = [np.full((64, 48, 3), shade, np.uint8) for shade in (0, 128, 255)]
    write_video(frames, tmp_path / "new" / name, fps=25)
    read = imageio.mimread(tmp_path / "new" / name)
    assert [np.abs(a.astype(int) - b).max() < 5 for a, b in zip(frames, read, strict=True)] == [True] * 3
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(SpecError, match=r"film.* cannot be written: No space left"), writing(tmp_path / name):
        write_video(frames, tmp_path / name, fps=25)


@pytest.mark.parametrize("name", ["out.png", "out.svg", "out.pdf"])
def test_a_figure_on_a_full_disk_is_one_line(name: str, run: Run, tmp_path: Path) -> None:
    from rich.console import Console

    path = tmp_path / name
    path.symlink_to("/dev/full")
    with pytest.raises(SpecError, match=f"^{path} cannot be written: No space left on device$"):
        draw_returns(str(run.directory), path, published=None, console=Console(quiet=True))
