"""The tracking store: which one, any folder name, many processes at once, and projects that move."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import OrderedDict
from contextlib import closing
from pathlib import Path

import fork_server
import pytest
from mlflow.tracking._tracking_service import utils

from ezm_pl.spec import SpecError
from ezm_pl.tracking.store import (
    DEFAULT_URI,
    artifacts_folder,
    experiment_id,
    open_store,
    shown,
    sqlite_file,
    sqlite_url,
    tracking_uri,
)

FOLDERS = ["plain", "feature%2Fwalk", "what? a%20b", "100% #1", "ü&;=@:+{x}", "'\"$\\"]


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, which take seconds to make; its own folder has a difficult name."""
    folder = tmp_path_factory.mktemp("new") / "feature%2Fwalk? {x} '\" :y\\n"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        open_store("sqlite:///mlflow.db")
    assert [path.name for path in folder.iterdir()] == ["mlflow.db"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    return folder / "mlflow.db"


def new_project(folder: Path, empty_store: Path) -> None:
    (folder / "mlruns").mkdir(parents=True)
    shutil.copy(empty_store, folder / "mlruns" / "mlflow.db")


def test_the_first_address_that_is_given_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri() == DEFAULT_URI == "sqlite:///mlruns/mlflow.db"
    assert tracking_uri(recorded="sqlite:///recorded.db") == "sqlite:///recorded.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert tracking_uri(recorded="sqlite:///recorded.db") == "http://tracking:5000"
    assert tracking_uri("sqlite:///other.db", "sqlite:///recorded.db") == "sqlite:///other.db"


def test_passwords_are_not_shown() -> None:
    assert shown("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"
    assert shown("postgresql://me:sec:r@t@host/db") == "postgresql://me:***@host/db"
    assert shown("sqlite:///mlruns/mlflow.db") == "sqlite:///mlruns/mlflow.db"


def test_telemetry_is_off(workplace: Path) -> None:
    """In a process of its own: MLflow asks its environment when it is first imported."""
    code = """
import ezm_pl.sweeps.trial, ezm_pl.sweeps.worker, ezm_pl.tracking.runs.train
from ezm_pl.tracking.store import open_store
open_store("sqlite:///mlruns/mlflow.db")
from mlflow.telemetry.client import get_telemetry_client
assert get_telemetry_client() is None
"""
    without = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    subprocess.run([sys.executable, "-c", code], env=without, check=True, timeout=120)


def test_experiments_are_made_once_with_artifacts_beside(workplace: Path) -> None:
    client = open_store("sqlite:///mlruns/mlflow.db")
    first = experiment_id(client, "walkers", uri="sqlite:///mlruns/mlflow.db")
    assert experiment_id(client, "walkers", uri="sqlite:///mlruns/mlflow.db") == first
    experiment = client.get_experiment(first)
    assert experiment.artifact_location == (workplace / "mlruns" / "artifacts").as_uri()
    client.delete_experiment(first)
    with pytest.raises(SpecError, match="'walkers' was deleted in MLflow"):
        experiment_id(client, "walkers", uri="sqlite:///mlruns/mlflow.db")


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("mlruns", "sqlite:///FILE, http://HOST:PORT or postgresql://... expected"),
        ("sqlite://", "sqlite:///FILE, http://HOST:PORT or postgresql://... expected"),
        ("http://127.0.0.1:9", "cannot be opened"),
        ("sqlite:///broken.db", "file is not a database"),
        ("sqlite:///folder", "is a folder"),
        ("sqlite:///mlruns", "a folder"),  # which of two reasons: whether an earlier test has made it
        ("sqlite:///mlruns/runs", "has to be a folder"),
        ("sqlite:///broken.db/x.db", "cannot be opened"),
        ("sqlite:///circle/x.db", "cannot be opened"),
        ("sqlite:///optuna.db", "it holds another program's tables"),
        (
            "sqlite:///file:x.db?mode=ro&uri=true",
            "sqlite:///FILE, http://HOST:PORT or postgresql://... expected",
        ),
        ("weird://x", "cannot be opened"),
        ("http://[::1", "cannot be opened"),
        ("weird://[::1", "cannot be opened"),
        ("mssql+nodriver://h/d", "cannot be opened"),
    ],
)
@pytest.mark.parametrize("create", [True, False])
def test_addresses_that_do_not_open(
    uri: str, reason: str, create: bool, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a second try: MLflow itself tries some for two minutes."""
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("tries again"))
    (workplace / "broken.db").write_text("not a database " * 100)
    (workplace / "folder").mkdir(exist_ok=True)
    with closing(sqlite3.connect(workplace / "optuna.db")) as database:
        database.execute("CREATE TABLE IF NOT EXISTS alembic_version (version_num TEXT)")
    if not os.path.lexists(workplace / "circle"):
        (workplace / "circle").symlink_to("circle")
    with pytest.raises(SpecError) as error:
        open_store(uri, create=create)
    assert reason in str(error.value) or (not create and "no runs yet" in str(error.value))
    assert "\n" not in str(error.value)


def test_reading_makes_nothing(tmp_path: Path) -> None:
    for path in (tmp_path / "away" / "mlflow.db", tmp_path / "empty.db"):
        if path.name == "empty.db":
            path.touch()
        with pytest.raises(SpecError, match=r"no runs yet: sqlite:///.* holds none"):
            open_store(f"sqlite:///{path}", create=False)
    assert [path.name for path in tmp_path.iterdir()] == ["empty.db"]
    assert (tmp_path / "empty.db").stat().st_size == 0


def test_an_address_means_the_file_that_it_was_made_for() -> None:
    """SQLAlchemy reads it as this project does, also where a folder's name has escapes in it."""
    from sqlalchemy import make_url

    draw = random.Random(0)
    characters = "abc %/?#&=;:@+{}'\"\\$ü%20%2F"
    for _ in range(1000):
        name = "".join(draw.choice(characters) for _ in range(draw.randint(1, 20)))
        file = Path("/", name).resolve() / "x.db"
        assert sqlite_file(sqlite_url(file)) == file
        assert make_url(sqlite_url(file)).database == str(file)


@pytest.mark.parametrize("name", FOLDERS)
def test_projects_in_folders_of_any_name(
    name: str, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Database and artifacts lie in the project, and nothing lies beside it."""
    project = tmp_path / name
    new_project(project, empty_store)
    monkeypatch.chdir(project)
    run_id = _a_run("first")
    assert open_store(DEFAULT_URI).get_run(run_id).info.run_id == run_id
    assert (project / "mlruns" / "artifacts" / run_id / "artifacts" / "first.txt").read_text() == "first"
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("copied", [True, False])
@pytest.mark.parametrize(("old", "new"), [("a b", "c%20d"), ("what?", "plain")])
def test_a_moved_or_copied_project_keeps_its_artifacts(
    old: str, new: str, copied: bool, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_project(tmp_path / old, empty_store)
    monkeypatch.chdir(tmp_path / old)
    run_id = _a_run("first")
    monkeypatch.chdir(tmp_path)
    if copied:
        shutil.copytree(old, new)
    else:
        shutil.move(old, new)
    monkeypatch.chdir(tmp_path / new)
    monkeypatch.setattr(utils, "_artifact_repos_cache", OrderedDict())  # as in another process
    client = open_store(DEFAULT_URI)
    assert [file.path for file in client.list_artifacts(run_id)] == ["first.txt"]
    client.log_text(run_id, "more", "more.txt")
    artifacts = tmp_path / new / "mlruns" / "artifacts"
    assert (artifacts / run_id / "artifacts" / "more.txt").is_file()
    assert (artifacts / _a_run("second") / "artifacts" / "second.txt").is_file()
    assert (tmp_path / old).exists() == copied
    assert len(list(tmp_path.glob(f"{old}/mlruns/artifacts/*"))) == int(copied)


def test_artifacts_that_were_put_elsewhere_stay_there(empty_store: Path, tmp_path: Path) -> None:
    shutil.copy(empty_store, tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = open_store(uri)
    elsewhere = client.create_experiment("elsewhere", (tmp_path / "disk" / "artifacts").as_uri())
    run_id = client.create_run(elsewhere).info.run_id
    client.log_text(run_id, "text", "text.txt")
    _a_run("first", uri)
    assert (tmp_path / "artifacts").is_dir()
    open_store(uri)
    assert client.get_experiment(elsewhere).artifact_location == (tmp_path / "disk" / "artifacts").as_uri()


def _a_run(text: str, uri: str = DEFAULT_URI) -> str:
    """Makes a run with one artifact; its id."""
    client = open_store(uri)
    run_id = client.create_run(experiment_id(client, "walkers", uri=uri)).info.run_id
    client.log_text(run_id, text, f"{text}.txt")
    return run_id


FIRST = """
import sys, time
from mlflow import MlflowClient
from ezm_pl.tracking.store import experiment_id, open_store
time.sleep(max(0.0, float(sys.argv[1]) - time.time()))
client = open_store("sqlite:///mlruns/mlflow.db")
print(experiment_id(client, "walkers", uri="sqlite:///mlruns/mlflow.db"))
"""


def test_four_processes_open_a_new_store_at_once(tmp_path: Path) -> None:
    fork_server.run(["--help"], cwd=tmp_path)  # it is there when the clock starts
    command = ["-c", FIRST, str(time.time() + 1)]
    processes = [fork_server.start(command, cwd=tmp_path, stdout=subprocess.PIPE) for _ in range(4)]
    answers = {process.communicate(timeout=280)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    assert len(answers) == 1


def test_artifacts_lie_beside_the_database(tmp_path: Path) -> None:
    assert artifacts_folder(f"sqlite:///{tmp_path}/team.db") == tmp_path / "artifacts"
    assert artifacts_folder("postgresql://host/db") is None
