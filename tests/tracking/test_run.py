"""An MLflow run: what it holds when it starts, is taken up again and ends."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from rich.console import Console

from ezm_pl.spec import Experiment, SpecError, build_experiment, flatten, load_experiment
from ezm_pl.spec.tracking import TrackingSpec
from ezm_pl.tracking.results.draw import draw_returns
from ezm_pl.tracking.runs.mlflow_run import Run, last_params, new_run, reopened_run, run_lock, run_name
from ezm_pl.tracking.runs.run_lookup import RUNS, find_checkpoint, find_run
from ezm_pl.tracking.store import open_store
from ezm_pl.training.fault_tolerance.checkpoint import FORMAT, write_checkpoint

SECRET = "hunter2-from-the-environment"


@pytest.fixture(scope="module")
def run(workplace: Path, experiment: Experiment) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOME_TOKEN", SECRET)
        return new_run(experiment)


def test_params_are_the_whole_spec(run: Run, experiment: Experiment) -> None:
    params = run.client.get_run(run.run_id).data.params
    assert params.keys() == {*flatten(experiment.model_dump(mode="json")), "num_tasks"}
    assert params["num_tasks"] == "2"
    assert params["model.latent_size"] == "32"
    assert params["tasks"] == "h1-stand, h1-walk"
    assert params["env.short_episode_steps"] == "null"
    assert params["eval.video"] == "false"


def test_tags_say_what_ran_where(run: Run) -> None:
    tags = run.client.get_run(run.run_id).data.tags
    assert (tags["preset"], tags["protocol"], tags["num_tasks"]) == ("smoke", "ezm", "2")
    assert tags["host.cpu"]
    assert int(tags["host.cores"]) >= 1
    assert float(tags["host.memory_gib"]) > 0
    assert tags["host.gpu"]
    assert tags["version.mujoco"]


def test_name_is_readable(run: Run, experiment: Experiment) -> None:
    assert run.name.startswith("trial 2 tasks smoke seed 0, ")
    assert run.client.get_run(run.run_id).info.run_name == run.name
    one = experiment.model_copy(update={"tasks": ("h1-walk",)})
    assert "1 task smoke" in run_name(one)


def test_spec_file_is_an_artifact_and_in_the_folder(
    run: Run, experiment: Experiment, workplace: Path
) -> None:
    assert [file.path for file in run.client.list_artifacts(run.run_id)] == ["experiment.yaml"]
    assert load_experiment(run.directory / "experiment.yaml") == experiment
    copies = list((workplace / "mlruns" / "artifacts").rglob("experiment.yaml"))
    assert yaml.safe_load(copies[0].read_text())["name"] == "trial"


def test_nothing_else_of_the_environment_is_stored(run: Run, workplace: Path) -> None:
    files = [path for path in (workplace / "mlruns").rglob("*") if path.is_file()]
    assert not any(SECRET.encode() in path.read_bytes() for path in files)


def test_values_of_any_length_are_kept(workplace: Path) -> None:
    everything = build_experiment({"name": "all", "preset": "paper", "tasks": "hb-29"})
    run = new_run(everything)
    assert run.client.get_run(run.run_id).data.params["tasks"] == ", ".join(everything.tasks)


def test_reopened_run_is_the_same_run(run: Run, experiment: Experiment) -> None:
    run.end("KILLED")
    assert run.client.get_run(run.run_id).info.status == "KILLED"
    assert last_params(run.client.get_run(run.run_id))["eval.episodes"] == "1"
    changed = experiment.model_copy(update={"eval": experiment.eval.model_copy(update={"episodes": 3})})
    again = reopened_run(find_run(run.run_id, option="--resume"), changed)
    stored = again.client.get_run(run.run_id)
    assert (again.run_id, again.name, stored.info.status) == (run.run_id, run.name, "RUNNING")
    assert stored.data.params["eval.episodes"] == "1"
    assert stored.data.tags["resume.1"] == "eval.episodes: 1 -> 3"
    assert last_params(stored) == stored.data.params | {"eval.episodes": "3"}
    again.end("FINISHED")
    assert run.client.get_run(run.run_id).info.status == "FINISHED"


def test_a_run_of_another_store_is_refused(run: Run, experiment: Experiment, tmp_path: Path) -> None:
    elsewhere = experiment.model_copy(
        update={"tracking": experiment.tracking.model_copy(update={"uri": f"sqlite:///{tmp_path}/other.db"})}
    )
    with pytest.raises(SpecError, match="is not in the tracking store sqlite:///"):
        reopened_run(find_run(run.run_id, option="--resume"), elsewhere)


def test_two_processes_cannot_train_one_run(run: Run) -> None:
    refused = pytest.raises(SpecError, match="is being trained by another process")
    with run_lock(run.directory), refused, run_lock(run.directory):
        pass
    with run_lock(run.directory):
        pass


def test_runs_are_found_by_last_id_and_path(run: Run, workplace: Path) -> None:
    assert find_run(run.run_id[:8], option="--resume").directory == run.directory
    assert find_run(str(run.directory), option="--resume").run_id == run.run_id
    with pytest.raises(SpecError, match=r"has no checkpoints/last\.ckpt: it stopped before its first update"):
        find_checkpoint(run.run_id, option="RUN")
    checkpoint = run.directory / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    for reference in ("last", str(checkpoint), run.run_id):
        assert find_checkpoint(reference, option="RUN").run_id == run.run_id
    for name in ("twin-a", "twin-b"):
        (workplace / "mlruns" / "runs" / name).mkdir()
        (workplace / "mlruns" / "runs" / name / "experiment.yaml").touch()
    with pytest.raises(SpecError, match="2 runs start like this: twin-a, twin-b"):
        find_run("twin", option="--resume")
    with pytest.raises(SpecError, match=f"did you mean '{run.run_id}'"):
        find_run(f"{run.run_id[:-1]}x", option="--resume")


PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "global_step", "generators")


def checkpoint_of(run_id: str | None, path: Path) -> Path:
    """A checkpoint file that says which run it is of, or does not."""
    contents = {**dict.fromkeys(PARTS), "format": FORMAT, "experiment": "", "SelfPlayDataModule": {}}
    contents["pytorch-lightning_version"] = "2"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(contents if run_id is None else {**contents, "run_id": run_id}, path)
    return path


@pytest.mark.parametrize("place", ["x.ckpt", "artifacts/checkpoints/last.ckpt", "checkpoints/any name"])
def test_a_copied_checkpoint_says_which_run_it_is_of(place: str, run: Run, tmp_path: Path) -> None:
    copy = checkpoint_of(run.run_id, tmp_path / place)
    (copy.parents[1] / "experiment.yaml").touch()
    saved = find_run(str(copy), option="--resume")
    assert (saved.run_id, saved.directory, saved.checkpoint) == (run.run_id, RUNS / run.run_id, copy)
    assert find_checkpoint(str(copy), option="RUN") == saved


def test_a_checkpoint_without_a_run_can_only_be_evaluated(tmp_path: Path) -> None:
    stray = checkpoint_of(None, tmp_path / "x.ckpt")
    assert find_checkpoint(str(stray), option="RUN").checkpoint == stray
    with pytest.raises(SpecError, match="nor a checkpoint that says which run it is of"):
        find_run(str(stray), option="--resume")


def tracked_in(uri: str, experiment: Experiment) -> Experiment:
    return experiment.model_copy(update={"tracking": experiment.tracking.model_copy(update={"uri": uri})})


def test_a_run_is_looked_up_in_the_store_that_it_was_tracked_in(
    run: Run, experiment: Experiment, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The spec's own address is remembered, and no other store is made by looking."""
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{workplace}/mlruns/mlflow.db"
    elsewhere = new_run(tracked_in(uri, experiment))
    assert find_run("last", option="RUN").recorded_uri == uri
    with pytest.raises(SpecError, match="has no evaluations yet"):
        draw_returns("last", tmp_path / "x.png", published=None, console=Console(quiet=True))
    again = reopened_run(find_run("last", option="--resume"), experiment)
    assert (again.run_id, again.store) == (elsewhere.run_id, uri)
    assert not (tmp_path / "mlruns" / "mlflow.db").exists()


def test_a_run_that_cannot_be_begun_is_ended(
    run: Run, experiment: Experiment, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "runs").write_text("a file where the folder should be")
    before = {found.info.run_id for found in _all_runs(workplace)}
    with pytest.raises(OSError, match="mlruns/runs"):
        new_run(tracked_in(f"sqlite:///{workplace}/mlruns/mlflow.db", experiment))
    (made,) = [found for found in _all_runs(workplace) if found.info.run_id not in before]
    assert made.info.status == "FAILED"


def _all_runs(workplace: Path) -> list[Any]:
    client = open_store(f"sqlite:///{workplace}/mlruns/mlflow.db")
    return list(client.search_runs([client.get_experiment_by_name("ezm").experiment_id]))


def test_tags_of_a_spec_are_those_that_mlflow_takes() -> None:
    """Random keys: MLflow takes every tag that the spec lets pass, and few that it does not."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.validation import _validate_tag

    draw, let_pass, needless = random.Random(0), 0, 0
    for _ in range(2000):
        key = "".join(draw.choice("aZ9_-.:/ $ü\n") for _ in range(draw.choice([0, 1, 2, 5, 12, 249, 251])))
        try:
            TrackingSpec(tags={key: "value"})
            accepted = True
        except ValidationError:
            accepted = False
        try:
            _validate_tag(key, "value")
            valid = True
        except MlflowException:
            valid = False
        assert valid or not accepted, key
        let_pass += accepted
        needless += valid and not accepted and not key.endswith("\n")
    assert let_pass > 100
    assert needless == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, "value") for key in ("a:b$", "x" * 300, "", "mlflow.runName", "sweep.state", "a//b", "../a")]
    + [("long", "x" * 6001)],
)
def test_tags_are_refused_in_one_line(key: str, value: str) -> None:
    with pytest.raises(SpecError, match=r"^spec: tracking\.tags: .*") as error:
        build_experiment(
            {"name": "x", "preset": "smoke", "tasks": ["h1-walk"], "tracking": {"tags": {key: value}}}
        )
    assert "\n" not in str(error.value)
