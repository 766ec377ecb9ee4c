"""The command as a person meets it: real processes, exit codes, one line an error, no tracebacks."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import fork_server
import numpy as np
import pytest
import yaml

from ezm_pl.cli import main

SPEC = {"name": "trial", "preset": "smoke", "tasks": ["h1-stand", "h1-walk"]}


def ezm(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs `ezm` and checks that no traceback reaches the user."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW")}
    done = fork_server.run(arguments, cwd=cwd, env=environment, timeout=280)
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(SPEC))
    curve = {"million_steps": [0.1, 0.2], "return": [1.0]}
    (tmp_path / "unequal.json").write_text(json.dumps({"h1-walk": {"EZ-M": {"seed_0": curve}}}))
    return tmp_path


def test_validate_prints_the_resolved_spec(folder: Path) -> None:
    done = ezm("validate", "spec.yaml", "--set", "seed=5", cwd=folder)
    assert done.returncode == 0
    assert done.stderr == ""
    assert "# spec.yaml: valid" in done.stdout
    assert "# preset: smoke" in done.stdout
    resolved = yaml.safe_load(done.stdout)
    assert (resolved["seed"], resolved["tasks"]) == (5, SPEC["tasks"])
    (folder / "resolved.yaml").write_text(done.stdout)
    again = ezm("validate", "resolved.yaml", cwd=folder)
    assert yaml.safe_load(again.stdout) == resolved


def test_validate_says_which_preset_auto_picked(folder: Path) -> None:
    done = ezm("validate", "spec.yaml", "--set", "preset=auto", cwd=folder)
    assert any(f"# preset: {name} (auto: " in done.stdout for name in ("laptop", "paper"))


ONE_SHOT = [("--help",), ("validate", "spec.yaml"), ("envs", "list")]
RAW = [sys.executable, "-m", "ezm_pl.cli"]


@pytest.mark.parametrize("arguments", ONE_SHOT, ids=" ".join)
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_a_closed_pipe_ends_a_command_quietly(
    arguments: tuple[str, ...], unbuffered: str, folder: Path
) -> None:
    with subprocess.Popen(
        [*RAW, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode in (0, 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("arguments", ONE_SHOT[1:3], ids=" ".join)
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_output_to_a_full_disk_is_one_line(arguments: tuple[str, ...], unbuffered: str, folder: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*RAW, *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (
        1,
        "ezm: the output cannot be written: No space left on device\n",
    )


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2> /dev/full"])
def test_exit_codes_hold_without_a_terminal(closed: str, folder: Path) -> None:
    for arguments, code in (("validate spec.yaml", 0), ("validate nowhere.yaml", 2), ("nonsense", 2)):
        line = f"{' '.join(RAW)} {arguments} {closed}"
        assert subprocess.run(["bash", "-c", line], cwd=folder, timeout=60).returncode == code


def test_characters_that_the_output_lacks_are_escaped(folder: Path) -> None:
    name = os.fsdecode(b"\xff.yaml")
    (folder / name).write_text((folder / "spec.yaml").read_text())
    done = subprocess.run(
        [*RAW, "validate", name],
        cwd=folder,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"# \\udcff.yaml: valid")


def test_a_spec_may_come_from_a_pipe(folder: Path) -> None:
    line = f"{' '.join(RAW)} validate <(cat spec.yaml)"
    done = subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "name: trial" in done.stdout


def test_the_backend_of_a_notebook_is_left_alone(folder: Path) -> None:
    """`!ezm` in a notebook inherits the name of a backend that this environment may not have."""
    script = """
from ezm_pl.cli import main
main(["validate", "spec.yaml"])
import matplotlib
print(matplotlib.get_backend())
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env={**os.environ, "MPLBACKEND": "module://nowhere.at_all"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "agg"


def test_a_working_directory_that_is_gone(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    done = subprocess.run(
        ["bash", "-c", f"rmdir {gone}; exec {sys.executable} -m ezm_pl figure"],
        cwd=gone,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr == "ezm: the working directory has been removed; change to one that is there\n"


def test_validate_does_not_import_torch(folder: Path) -> None:
    code = (
        "import sys; from ezm_pl.cli import main; main(['validate', 'spec.yaml']); "
        "heavy = {'torch', 'mujoco', 'lightning', 'mlflow', 'matplotlib'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


BAD = {
    "no command": ([], "ezm: the following arguments are required: COMMAND"),
    "unknown command": (["trian"], "ezm: argument COMMAND: invalid choice: 'trian'"),
    "no spec": (["train"], "ezm train: the following arguments are required: SPEC"),
    "missing spec": (["train", "spec.yml"], "ezm: spec.yml: no such file; did you mean 'spec.yaml'?"),
    "unknown key": (
        ["train", "spec.yaml", "--set", "seeed=1"],
        "ezm: spec.yaml: seeed: unknown key; did you mean",
    ),
    "not a setting": (
        ["train", "spec.yaml", "--set", "seed"],
        "ezm: --set 'seed': write it as key.path=value",
    ),
    "task not here": (
        ["train", "spec.yaml", "--set", "tasks=[dmc-cartpole-balance, h1-runn]"],
        "ezm: spec.yaml: tasks: unknown task 'h1-runn'; did you mean 'h1-run'?",
    ),
    "resume last of nothing": (
        ["train", "spec.yaml", "--resume", "last"],
        "ezm: --resume last: there is no run in mlruns/runs yet; `ezm train SPEC` makes one",
    ),
    "resume an unknown run": (
        ["train", "spec.yaml", "--resume", "0123abcd"],
        "ezm: --resume 0123abcd: no such checkpoint, run folder or run id in mlruns/runs (0 runs)",
    ),
    "resume a file that is none": (
        ["train", "spec.yaml", "--resume", "spec.yaml"],
        "ezm: --resume spec.yaml: neither a run folder nor a checkpoint",
    ),
    "eval of nothing": (["eval"], "ezm: RUN last: no run in mlruns/runs has a checkpoint yet"),
    "figure of nothing": (["figure"], "ezm: RUN last: there is no run in mlruns/runs yet"),
    "compare nothing": (["compare"], "ezm compare: the following arguments are required: RUN"),
    "compare a run that is not there": (
        ["compare", "last", "--published", "spec.yaml"],
        "ezm: --published spec.yaml: not published results",
    ),
    "compare into nowhere": (
        ["compare", "last", "--out", "spec.yaml/a.png"],
        "ezm compare: argument --out: 'spec.yaml/a.png': cannot be written: ",
    ),
    "diagnose nothing": (["diagnose"], "ezm: RUN last: no run in mlruns/runs has a checkpoint yet"),
    "diagnose by one rollout": (
        ["diagnose", "--rollouts", "1"],
        "ezm diagnose: argument --rollouts: a whole number from 2 to 1000 expected, got '1'",
    ),
    "diagnose into nowhere": (
        ["diagnose", "--json", "spec.yaml/a.json"],
        "ezm diagnose: argument --json: 'spec.yaml/a.json': cannot be written: ",
    ),
    "no episodes": (
        ["eval", "--episodes", "0"],
        "ezm eval: argument --episodes: a whole number from 1 to 10000 expected, got '0'",
    ),
    "more seed than any generator takes": (
        ["eval", "--seed", "99999999999999999999"],
        "ezm eval: argument --seed: a whole number from 0 to 9223372036854775807 expected, got",
    ),
    "films into a file": (
        ["eval", "--video", "spec.yaml"],
        "ezm eval: argument --video: 'spec.yaml': a file; a folder expected",
    ),
    "figure of an unknown format": (
        ["figure", "--out", "x.xyz"],
        "ezm figure: argument --out: 'x.xyz': a file name ending in .png, .svg, ",
    ),
    "figure into a folder": (
        ["figure", "--out", "."],
        "ezm figure: argument --out: '.': a file name ending in",
    ),
    "published curves of unequal lengths": (
        ["figure", "--published", "unequal.json"],
        "ezm: --published unequal.json: not published results",
    ),
    "a spec without an end": (
        ["validate", "/dev/zero"],
        "ezm: /dev/zero: cannot be read: [Errno 27] more than 16 MiB",
    ),
    "published curves without an end": (
        ["figure", "--published", "/dev/zero"],
        "ezm: --published /dev/zero: cannot be read: more than 16 MiB",
    ),
    "report below a file": (
        ["report", "--out", "spec.yaml/report"],
        "ezm report: argument --out: 'spec.yaml/report': cannot be written: ",
    ),
    "film of no format": (
        ["envs", "record", "h1-walk", "--out", "film"],
        "ezm envs record: argument --out: 'film': a file name ending in .mp4, .mkv, .mov expected",
    ),
    "ui of nothing": (["ui"], "ezm: no runs yet: sqlite:///mlruns/mlflow.db holds none; "),
    "no such port": (
        ["ui", "--port", "70000"],
        "ezm ui: argument --port: a whole number from 1 to 65535 expected",
    ),
    "show an unknown task": (
        ["envs", "show", "h1-wlk"],
        "ezm: unknown task 'h1-wlk'; did you mean 'h1-walk'?",
    ),
    "show a suite": (["envs", "show", "hb-medium"], "ezm: one task expected, got 'hb-medium' (9 tasks)"),
    "random twice": (["envs", "random", "h1-walk", "hb-medium"], "ezm: listed twice: h1-walk"),
    "search settings without a search": (
        ["eval", "--no-search", "--set", "search.num_simulations=64"],
        "ezm: --set is of the search, which --no-search turns off",
    ),
    "live seconds": (["play", "--live", "--seconds", "9"], "ezm: --seconds is of a film; --live shows"),
    "a port of a film": (["play", "--port", "9000"], "ezm: --port is of the page that --live shows"),
    "parity of nothing": (["envs", "parity", "nowhere"], "ezm: no parity recordings in nowhere"),
}


@pytest.mark.parametrize(("arguments", "line"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], line: str, folder: Path) -> None:
    done = ezm(*arguments, cwd=folder)
    assert done.returncode == 2
    (only,) = done.stderr.splitlines()
    assert only.startswith(line)
    assert not (folder / "mlruns").exists()


def test_outputs_are_checked_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the path: refused at once where it could not be written, else the missing run is named."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///nowhere.db")
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "inner.png").mkdir(parents=True)
    (tmp_path / "old.png").touch()
    for link, target in (("circle", "circle"), ("lost.png", "new/a.png"), ("fresh.png", "target.png")):
        (tmp_path / link).symlink_to(target)
    os.mkfifo(tmp_path / "pipe.png")
    parts = ["file", "folder", "new", "inner.png", "old.png", "..", ".", "x" * 300, "ä b", "a\nb", "%2F"]
    odd = ["circle", "lost.png", "fresh.png", "pipe.png"]
    random, refused = np.random.default_rng(0), 0
    for _ in range(200):
        chosen = random.choice(parts, random.integers(1, 4)).tolist()
        if ".." not in chosen and random.random() < 0.3:
            chosen[random.integers(len(chosen))] = str(random.choice(odd))
        for command, option, folder in (("figure", "--out", False), ("eval", "--video", True)):
            names = ["a.png", "old.png", "b.PDF", *([] if ".." in chosen else odd[1:])]
            path = Path(*chosen) if folder else Path(*chosen[1:], str(random.choice(names)))
            assert main([command, option, str(path)]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            good = could_be_written(path, folder)
            assert ("RUN last: " in line) == good, (path, line)
            refused += not good
    assert 80 < refused < 320


def could_be_written(path: Path, folder: bool) -> bool:
    """Tries it, and takes away what it has made."""
    before = set(Path().rglob("*"))
    try:
        (path if folder else path.parent).mkdir(parents=True, exist_ok=True)
        if not folder:
            write = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK  # a pipe without a reader is refused
            os.close(os.open(path, write))
    except OSError:
        return False
    finally:
        for made in sorted(set(Path().rglob("*")) - before, reverse=True):
            made.rmdir() if made.is_dir() else made.unlink()
    return True


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "spec.yaml", "--set", "env.backend=humanoid_bench"),
        ("envs", "random", "h1-walk", "--backend", "humanoid_bench"),
    ],
)
def test_backend_that_is_not_here(arguments: tuple[str, ...], folder: Path) -> None:
    done = ezm(*arguments, cwd=folder)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "humanoid_bench" in done.stderr
    assert not (folder / "mlruns").exists()


def test_ui_on_a_port_in_use(folder: Path) -> None:
    (folder / "mlruns").mkdir()
    (folder / "mlruns" / "mlflow.db").touch()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = ezm("ui", "--port", str(port), cwd=folder)
    assert done.returncode == 2
    (only,) = done.stderr.splitlines()
    assert only.startswith(f"ezm: port {port} is already in use on 127.0.0.1")


def test_tracking_store_that_cannot_be_opened(folder: Path) -> None:
    (folder / "notes.db").write_text("not a database " * 100)
    done = ezm("train", "spec.yaml", "--set", "tracking.uri=sqlite:///notes.db", cwd=folder)
    assert done.returncode == 2
    (only,) = done.stderr.splitlines()
    assert only == "ezm: tracking address 'sqlite:///notes.db' cannot be opened: file is not a database"


def test_envs_list_and_show(folder: Path) -> None:
    listed = ezm("envs", "list", cwd=folder)
    assert listed.returncode == 0
    assert all(task in listed.stdout for task in ("h1hand-walk", "h1-maze", "dmc-cartpole-balance"))
    shown = ezm("envs", "show", "h1-walk", cwd=folder)
    assert "51 numbers" in shown.stdout
    assert "801 ± 3 @ 0.84M" in shown.stdout


def test_envs_random_prints_the_published_value_beside(folder: Path) -> None:
    done = ezm("envs", "random", "h1-walk", "--episodes", "4", cwd=folder)
    row = next(line for line in done.stdout.splitlines() if "h1-walk" in line)
    assert [cell.strip() for cell in row.strip("│ ").split("│")][4] == "2.4"
    assert done.returncode == 0
