"""The sentences of the built-in tasks, those of a spec, and what is said where packages are missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ezm_pl.cli import main
from ezm_pl.spec import DMC, HUMANOID_BENCH, SpecError, build_experiment, descriptions
from ezm_pl.spec.descriptions import built_in, described

PENDULUM = "gym:Pendulum-v1"


def experiment_with(tasks: list[str], **more: Any) -> Any:
    return build_experiment(
        {"name": "words", "preset": "smoke", "tasks": tasks, "model": {"task_conditioning": "text"}, **more}
    )


def test_every_built_in_task_has_sentences_of_its_own() -> None:
    found = described([*HUMANOID_BENCH, *DMC], {})  # which refuses a sentence that describes two tasks
    assert len(found) == len(HUMANOID_BENCH) + len(DMC) > 70
    for task, each in found.items():
        assert len(each.training) >= 5 and len(each.held_out) >= 2, task
        assert len({*each.training, *each.held_out}) == len(each.training) + len(each.held_out), task
        assert not any("$" in sentence for sentence in (*each.training, *each.held_out)), task


def test_robots_are_told_apart() -> None:
    plain, hands = built_in("h1-walk"), built_in("h1hand-walk")
    assert plain is not None and hands is not None
    assert plain.training[0] == "the humanoid walks forward at a moderate speed"
    assert hands.training[0] == "the humanoid with hands walks forward at a moderate speed"
    assert built_in(PENDULUM) is None


def test_a_spec_has_words_for_its_own_tasks() -> None:
    meta = {"descriptions": ["swing up the rod"], "held_out_descriptions": ["lift the rod"]}
    experiment = experiment_with(["h1-walk", PENDULUM], tasks_meta={PENDULUM: meta})
    assert list(experiment.descriptions) == ["h1-walk", PENDULUM]
    assert experiment.descriptions[PENDULUM].training == ("swing up the rod",)
    assert experiment.descriptions[PENDULUM].held_out == ("lift the rod",)
    assert experiment.model_copy(update={"agent": "sac"}).descriptions == {}


@pytest.mark.parametrize(
    ("tasks", "meta", "line"),
    [
        ([PENDULUM], {}, f"'{PENDULUM}' has no description; write some sentences into tasks_meta.{PENDULUM}"),
        (
            ["h1-walk"],
            {"h1-walk": {"descriptions": ["walk", "stroll"], "held_out_descriptions": ["march", "Stroll"]}},
            "held_out_descriptions: 'Stroll' is one to learn from, too",
        ),
        (
            ["h1-walk", "h1-run"],
            {"h1-run": {"descriptions": ["The  humanoid walks forward at a moderate speed"]}},
            "'h1-run' and 'h1-walk' are both described by",
        ),
        (
            ["h1-run"],
            {"h1-run": {"held_out_descriptions": ["run"]}},
            "held_out_descriptions needs descriptions",
        ),
    ],
)
def test_words_that_cannot_work_are_one_line(tasks: list[str], meta: dict[str, Any], line: str) -> None:
    with pytest.raises(SpecError) as refused:
        experiment_with(tasks, tasks_meta=meta)
    assert line in str(refused.value) and len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("command", ["validate", "train"])
def test_missing_packages_are_one_line_before_anything_begins(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(descriptions, "NEEDED", ("tokenizers_that_nobody_has",))
    Path("spec.yaml").write_text(
        "name: words\npreset: smoke\ntasks: [h1-walk]\nmodel: {task_conditioning: text}\n", encoding="utf-8"
    )
    assert main([command, "spec.yaml"]) == 2
    said = capsys.readouterr().err
    assert said == (
        "ezm: model.task_conditioning: text needs tokenizers_that_nobody_has: pip install 'ezm_pl[text]'\n"
    )
    assert not Path("mlruns").exists()
    assert main(["validate", "spec.yaml", "--set", "model.task_conditioning=id"]) == 0
