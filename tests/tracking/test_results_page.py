"""Pages that are written from records: every error in one line, and the pages of this repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from ezm_pl.cli import main
from ezm_pl.spec import SpecError
from ezm_pl.tracking.results.results_page import render, stale

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


PAGES = {
    "{{ runs('made') }}": "page.md.j2: runs('made'): no record records/made.json; `ezm results collect",
    "{{ runs('broken') }}": "page.md.j2: runs('broken'): records/broken.json is no record: ",
    "{{ runs('empty') }}": "page.md.j2: runs('empty'): records/empty.json is no record: it has no runs",
    "{{ runs('half') }}": "page.md.j2: runs('half'): records/half.json: KeyError('",
    "{{ rnus('made') }}": "page.md.j2: 'rnus' is undefined",
    "{% if %}": "page.md.j2: Expected an expression, got 'end of statement block'",
}


@pytest.mark.parametrize(("template", "line"), PAGES.items())
def test_a_page_that_cannot_be_written_is_one_line(template: str, line: str, folder: Path) -> None:
    Path("records").mkdir()
    for name, text in {"broken": "{", "empty": "{}", "half": '{"runs": [{}]}'}.items():
        Path("records", f"{name}.json").write_text(text)
    Path("page.md.j2").write_text(template)
    with pytest.raises(SpecError) as refused:
        render(Path("page.md.j2"), Path("records"))
    assert str(refused.value).startswith(line) and "\n" not in str(refused.value)


def test_templates_are_written_beside_themselves_and_named_as_such(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without names: docs/results.md.j2 and all of docs/results."""
    (folder / "docs" / "results").mkdir(parents=True)
    for name in ("results.md", "results/one.md", "results/two.md"):
        (folder / "docs" / f"{name}.j2").write_text(f"# {name}\n")
    assert main(["results", "render"]) == 0
    for name in ("results.md", "results/one.md", "results/two.md"):
        assert (folder / "docs" / name).read_text() == f"# {name}\n"
    for name in ("one", "two"):
        (folder / "docs" / "results" / f"{name}.md").write_text("# 2\n")
    capsys.readouterr()
    assert main(["results", "render", "--check"]) == 1
    said = capsys.readouterr().err
    for name in ("one", "two"):
        assert f"results/{name}.md: not up to date, run `ezm results render`: -# 2" in said
    (folder / "docs" / "results.md.j2").unlink()
    assert main(["results", "render"]) == 0, "a page less"
    assert main(["results", "render", "docs/results.md"]) == 2
    assert capsys.readouterr().err == "ezm: TEMPLATE docs/results.md: its name must end in .md.j2\n"


def test_a_line_of_dashes_is_a_difference(folder: Path) -> None:
    (folder / "page.md").write_text("one\n---\ntwo\n")
    assert stale(folder / "page.md", "one\ntwo\n") == "----"
    assert stale(folder / "page.md", "one\n---\ntwo\n") is None


TEMPLATES = sorted((ROOT / "docs").rglob("*.md.j2"))


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_a_page_of_this_repository_is_what_its_records_say(template: Path) -> None:
    text = render(template, ROOT / "docs" / "results")
    assert stale(template.with_suffix(""), text) is None


def test_every_record_of_this_repository_is_on_a_page() -> None:
    pages = "".join(template.read_text(encoding="utf-8") for template in TEMPLATES)
    records = (ROOT / "docs" / "results").glob("*.json")
    assert [record.name for record in records if f'("{record.stem}"' not in pages] == []
