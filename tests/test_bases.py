"""Specs that build on others, and the ablations of experiments/."""

from __future__ import annotations

from pathlib import Path

import pytest

from ezm_pl.cli import main
from ezm_pl.spec import SpecError, build_experiment, differences, load_experiment

ROOT = Path(__file__).parents[1]
ABLATIONS = sorted((ROOT / "experiments" / "ablations").glob("*.yaml"))
MAIN = ROOT / "experiments" / "h1_laptop.yaml"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_a_spec_is_laid_over_its_base_and_that_over_its_own(tmp_path: Path) -> None:
    """Files are found from the folder of the file that names them; nested settings are merged."""
    write(
        tmp_path / "root.yaml",
        "name: root\npreset: smoke\ntasks: [h1-stand]\nloss: {value: 0.1, path: 0.2}\n",
    )
    write(tmp_path / "mid" / "mid.yaml", "base: ../root.yaml\nname: mid\nloss: {path: 0.3}\n")
    top = write(tmp_path / "top.yaml", "base: mid/mid.yaml\nname: top\ntasks: [h1-walk]\n")
    found = load_experiment(top)
    whole = {"name": "top", "preset": "smoke", "tasks": ["h1-walk"], "loss": {"value": 0.1, "path": 0.3}}
    assert found == build_experiment(whole)
    assert load_experiment(top, ["loss.path=0.4"]).loss.path == 0.4


CIRCLES = {
    "itself": (
        {"a.yaml": "base: a.yaml\n"},
        "the files name each other in a circle: {0}/a.yaml -> {0}/a.yaml",
    ),
    "two": (
        {"a.yaml": "base: b.yaml\n", "b.yaml": "base: a.yaml\n"},
        "the files name each other in a circle: {0}/a.yaml -> {0}/b.yaml -> {0}/a.yaml",
    ),
    "no file": (
        {"a.yaml": "base: c.yaml\n", "b.yaml": "name: x\n"},
        "{0}/c.yaml: no such file; did you mean",
    ),
    "no name": ({"a.yaml": "base: 3\n"}, "the name of a spec file expected, got 3"),
    "null byte": ({"a.yaml": 'base: "b\\0.yaml"\n'}, "the name of a spec file expected, got 'b"),
    "no mapping": (
        {"a.yaml": "base: b.yaml\n", "b.yaml": "[1]\n"},
        "{0}/b.yaml: a mapping of keys to values",
    ),
}


@pytest.mark.parametrize(("files", "line"), CIRCLES.values(), ids=CIRCLES)
def test_a_base_that_cannot_be_is_one_line(
    files: dict[str, str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in files.items():
        write(tmp_path / name, text)
    assert main(["validate", str(tmp_path / "a.yaml")]) == 2
    (only,) = capsys.readouterr().err.splitlines()
    assert only.startswith(f"ezm: {tmp_path}/a.yaml: base: {line.format(tmp_path)}")


def test_a_wrong_field_names_the_file_and_its_base(tmp_path: Path) -> None:
    write(tmp_path / "root.yaml", "name: root\npreset: smoke\ntasks: [h1-stand]\nloss: {valu: 0.1}\n")
    top = write(tmp_path / "top.yaml", "base: root.yaml\n")
    with pytest.raises(SpecError, match=rf"{top} \(base {tmp_path}/root.yaml\): loss.valu: unknown key"):
        load_experiment(top)


def test_validate_shows_the_base_and_everything_resolved(capsys: pytest.CaptureFixture[str]) -> None:
    path = ROOT / "experiments" / "ablations" / "no_path.yaml"
    assert main(["validate", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"# base: {path.parent / '../h1_laptop.yaml'}"
    assert "  path: 0.0" in lines and "  pathwise: 1.0" in lines


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_an_ablation_changes_only_its_own_part(path: Path) -> None:
    """Each is valid, differs from its experiment, and in one section only but for three."""
    changed = differences(load_experiment(MAIN), load_experiment(path), ignore=["name"])
    sections = {line.partition(":")[0].partition(".")[0] for line in changed}
    assert changed
    assert len(sections) == 1 or path.stem in ("no_search", "control", "sac")
    assert load_experiment(path).name == path.stem


KEPT = (
    "name", "tasks", "env.", "replay.capacity", "collect.", "eval.", "optim.batch_size",
    "optim.total_updates", "model.min_log_std", "model.max_log_std", "model.initial_log_std", "loss.entropy",
    "search.policy_share", "search.exploration_std_scale", "search.correct_proposal",
)  # fmt: skip
"""What fits the laptop preset to the H1: tasks, budget, and a narrow policy explored by wide candidates."""


def test_the_control_has_no_part_beyond_the_published_method() -> None:
    bare = build_experiment({"name": "bare", "preset": "laptop", "tasks": ["h1-stand"]})
    control = load_experiment(ROOT / "experiments" / "ablations" / "control.yaml")
    assert differences(bare, control, ignore=KEPT) == []
    assert differences(bare, load_experiment(MAIN), ignore=KEPT) != []
