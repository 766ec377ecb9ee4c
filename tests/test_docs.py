"""What README, the pages of docs/ and the code name is there: pages, sections, files, commands, fields."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ezm_pl.cli import _parser
from ezm_pl.spec.experiment import Experiment

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted([README, *(ROOT / "docs").rglob("*.md")])
MAX_WORDS = 1600
FOLDERS = ("ezm_pl", "tests", "experiments", "examples", "sweeps", "benchmarks", "docs")
NOT_OURS = {"ezm_pl/h1-walk-v0"}
"""Looks like a path and is an id of Gymnasium's."""


def tracked(*patterns: str) -> list[Path]:
    """Files of the repository, also those that are yet to be committed."""
    found = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if found.returncode:  # not a clone
        return [path for pattern in patterns for path in ROOT.rglob(pattern) if ".venv" not in path.parts]
    return [ROOT / line for line in found.stdout.splitlines() if (ROOT / line).is_file()]


SOURCES = [path for path in tracked("*.py", "*.yaml", "*.sh", "Makefile") if path != Path(__file__)]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def headings(page: Path) -> list[str]:
    return re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def code_lines(page: Path) -> Iterator[str]:
    """Commands of a page's blocks without a language, comments left out, lines that go on joined."""
    for block in re.findall(r"^```\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            yield re.sub(r"\s#.*$", "", line).strip()


def quoted(page: Path) -> list[str]:
    """What stands between single backticks."""
    return re.findall(r"`([^`\n]+)`", prose(page))


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_pages_and_sections_that_code_names_exist(path: Path) -> None:
    text = re.sub(r"\s*\n\s*(#\s*)?", " ", path.read_text(encoding="utf-8"))
    for page, section in re.findall(r'`?docs/([\w/-]+\.md)`?(?:, "([^"]+)")?', text):
        assert (ROOT / "docs" / page).is_file(), page
        assert not section or section in headings(ROOT / "docs" / page), (page, section)
    named = set(re.findall(r"\b([A-Z][A-Z_]*\.md)\b", text)) - {"README.md"}
    assert {page for page in named if not (ROOT / page).is_file()} == set()
    assert not re.search(r"\b(ALGORITHM|TASKS|DESIGN), section", text)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_code_goes_over_the_end_of_a_line(page: Path) -> None:
    """The tests below read what stands between backticks, line by line."""
    assert [line for line in prose(page).splitlines() if line.replace("``", "").count("`") % 2] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_pictures_of_pages_exist(page: Path) -> None:
    text = prose(page)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'<img src="([^"]+)"', text)
    for link in links:
        if link.startswith(("http://", "https://")):
            continue
        file, _, section = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.is_file(), link
        if section:
            assert section in [anchor(heading) for heading in headings(target)], link


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_pages_name_exist(page: Path) -> None:
    named = [
        word
        for text in (*quoted(page), *code_lines(page))
        for word in re.findall(r"[\w./*<>-]+/[\w./*<>-]+", text)
    ]
    missing = []
    for path in named:
        inside = path.split("/")[0] in FOLDERS and "<" not in path and path not in NOT_OURS
        test = re.search(r"(^|/)test_\w+\.py$", path)
        if inside or test:
            found = any(ROOT.glob(path.rstrip("/"))) or (ROOT / "tests" / path).is_file()
            missing += [] if found else [path]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_fields_of_specs_that_pages_name_exist(page: Path) -> None:
    groups = {key: field.annotation for key, field in Experiment.model_fields.items()}
    wrong = []
    for text in quoted(page):
        for group, field in re.findall(r"\b([a-z]+)\.([a-z_]+)\b", text):
            fields = getattr(groups.get(group), "model_fields", None)
            if fields is not None and text.startswith(f"{group}.") and field not in {*fields, "py"}:
                wrong.append(text)
    assert wrong == []


def definitions() -> dict[str, set[str]]:
    """Every class of the package with its methods and attributes, and under "" every function."""
    found: dict[str, set[str]] = {"": set()}
    for path in (ROOT / "ezm_pl").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                found[""].add(node.name)
            elif isinstance(node, ast.ClassDef):
                members = found.setdefault(node.name, set())
                for part in ast.walk(node):
                    if isinstance(part, ast.FunctionDef):
                        members.add(part.name)
                    elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                        members.add(part.target.id)
    return found


def test_functions_of_the_architecture_exist() -> None:
    known = definitions()
    page = ROOT / "docs" / "architecture.md"
    cited = [text for text in quoted(page) if re.fullmatch(r"[A-Z]\w+(\.\w+)?", text)]
    assert len(cited) > 20
    outside = {"Trainer", "B", "K", "S"}
    for text in cited:
        owner, _, member = text.partition(".")
        assert owner in known or owner in outside, text
        assert not member or member in known[owner], text
    for function in re.findall(r"`(\w+)` \(`ezm_pl/[\w/]+\.py`\)", prose(page)):
        assert function in known[""] or function in known, function


def test_readme_is_short() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.split()) <= MAX_WORDS
    assert len(text.splitlines()) <= 160


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_make_targets_and_variables_that_pages_name_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for text in (*quoted(page), *code_lines(page)):
        found = re.match(r"make ([a-z][\w-]*)((?: [A-Z]+=.*)?)$", text)
        if found:
            target, rest = found.groups()
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), text
            for variable in re.findall(r"\b([A-Z]+)=", rest):
                assert f"$({variable})" in makefile, text


def commands(page: Path) -> Iterator[list[str]]:
    """The `ezm` commands of a page's blocks and between its backticks, as words."""
    for text in (*code_lines(page), *quoted(page)):
        found = re.match(r"(?:python -m ezm_pl|ezm) (.+)$", text)
        if found and not re.search(r"[|…\[]", re.sub(r"'[^']*'", "", found[1])):
            yield shlex.split(found[1])


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_ezm_commands_that_pages_show_exist(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in commands(page):
        try:
            _parser().parse_args(words)
        except SystemExit:
            # A command named without its arguments: it must be there.
            assert not any(word.startswith("-") for word in words), (words, capsys.readouterr().err)
            with pytest.raises(SystemExit) as ended:
                _parser().parse_args([*words, "--help"])
            assert ended.value.code == 0, words


def test_readme_shows_every_command() -> None:
    shown = {words[0] for page in PAGES for words in commands(page)}
    for command in (
        "validate",
        "train",
        "eval",
        "figure",
        "compare",
        "envs",
        "sweep",
        "report",
        "learn-check",
        "distill",
        "export",
    ):
        assert command in shown


def test_the_checks_can_fail(tmp_path: Path) -> None:
    """Names that are not there are seen as such by what the tests above rest on."""
    assert anchor("What `ezm` can't do") == "what-ezm-cant-do"
    assert "training_step" in definitions()["EZMModule"]
    assert "no_such_step" not in definitions()["EZMModule"]
    with pytest.raises(SystemExit) as ended:
        _parser().parse_args(["trian", "--help"])
    assert ended.value.code == 2


BY_HAND = sorted(path for folder in ("benchmarks", "examples") for path in (ROOT / folder).glob("*.py"))


@pytest.mark.parametrize("path", BY_HAND, ids=lambda path: path.stem)
def test_benchmarks_and_examples_import_names_that_exist(path: Path) -> None:
    """They are run by hand: a name that was changed would be found out late."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ezm_pl"):
            module = importlib.import_module(str(node.module))
            missing = [name.name for name in node.names if not hasattr(module, name.name)]
            assert not missing, f"{node.module} has no {missing}"
