"""The record of runs and the page that is written from it: real MLflow runs, every refusal in one line."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mlflow.entities import Metric

from ezm_pl import training
from ezm_pl.cli import main
from ezm_pl.spec import Experiment, build_experiment
from ezm_pl.tracking.results.record import shortest_end
from ezm_pl.tracking.results.results_page import published, render, steadiness
from ezm_pl.tracking.runs.mlflow_run import Run, new_run
from ezm_pl.tracking.sweep import tags
from ezm_pl.training.fault_tolerance.checkpoint import FORMAT, write_checkpoint

TASKS = ["h1-stand", "h1-walk"]
TEMPLATE = "# Page\n\n{{ returns('made') }}\n\n{{ published('made') }}\n\n{{ runs('made') }}\n"


def experiment(seed: int, **changes: Any) -> Experiment:
    document = {"name": "made", "preset": "smoke", "seed": seed, "tasks": TASKS}
    return build_experiment(document | {"env": {"protocol": "humanoidbench"}} | changes)


def finished_run(spec: Experiment, returns: list[float]) -> Run:
    """A run with evaluations at 0 and at 100,000 steps: `returns` of stand, half of them of walk."""
    run = new_run(spec)
    points = []
    for update, (steps, value) in enumerate(zip((0, 100_000), returns, strict=True)):
        points.append(Metric("env_steps", steps, 1000 + update, 20 * update))
        for task, share in zip(spec.tasks, (1.0, 0.5), strict=False):
            for protocol, more in (("humanoidbench", 0.0), ("ezm", 10.0)):
                name = f"by_env_steps/{task}/return_{protocol}"
                points.append(Metric(name, share * value + more, 1000 + update, steps))
    run.client.log_batch(run.run_id, metrics=points)
    run.end("FINISHED")
    return run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    curves = {"h1-walk": {"Other": {"env_steps": [0, 200_000], "return": [0.0, 50.0]}}}
    (tmp_path / "published.json").write_text(json.dumps(curves))
    (tmp_path / "page.md.j2").write_text(TEMPLATE)
    return tmp_path


def test_two_seeds_from_the_store_to_the_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [finished_run(experiment(seed), [20.0, value]) for seed, value in ((0, 400.0), (1, 600.0))]
    ids = [run.run_id for run in runs]
    collect = ["results", "collect", *ids, "--published", "published.json", "--out", "records/made.json"]
    assert main(collect) == 0
    record = json.loads((folder / "records" / "made.json").read_text())
    assert [run["run"] for run in record["runs"]] == ids
    assert [(run["agent"], run["seed"], run["updates"]) for run in record["runs"]] == [
        ("made", 0, 20),
        ("made", 1, 20),
    ]
    assert record["runs"][0]["settings"] == {"env.protocol": "humanoidbench"}
    assert record["runs"][0]["commit"] == runs[0].client.get_run(ids[0]).data.tags["git.commit"]
    rendering = ["results", "render", "page.md.j2", "--records", "records"]
    assert main([*rendering, "--check"]) == 1, "there is no page yet"
    assert main(rendering) == 0 and main([*rendering, "--check"]) == 0
    lines = (folder / "page.md").read_text().splitlines()
    assert "| control steps per task | 0 | 100k |" in lines
    assert "| h1-stand | 20 [20, 20] | 500 [400, 600] |" in lines
    assert "| h1-walk | 10 [10, 10] | 250 [200, 300] |" in lines
    assert "| **made** | humanoidbench | 2 | 250 [200, 300] |" in lines
    assert "| Other | humanoidbench | mean | ~25 |" in lines
    assert sum(f"`{run_id[:8]}`" in line for run_id in ids for line in lines) == 2
    assert "- made: preset smoke with env.protocol=humanoidbench; 1 episodes per evaluation." in lines
    (folder / "page.md").write_text((folder / "page.md").read_text().replace("500", "900"))
    capsys.readouterr()
    assert main([*rendering, "--check"]) == 1
    assert (
        "page.md: not up to date, run `ezm results render`: -| h1-stand | 20 [20, 20] | 900"
        in capsys.readouterr().err
    )


def test_published_returns_at_several_steps(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At half of 100,000 steps ours is halfway between 10 and 200; theirs is 0 to 50 over 200,000 steps."""
    run_id = finished_run(experiment(0), [20.0, 400.0]).run_id
    collect = ["results", "collect", run_id, "--out", "records/made.json", "--at", "100000", "--at", "50000"]
    assert main(collect) == 2
    assert "--at needs --published" in capsys.readouterr().err
    collect += ["--published", "published.json"]
    assert main([*collect, "--at", "300000"]) == 2
    assert "--at 300000: no published curve of these tasks reaches it" in capsys.readouterr().err
    assert main(collect) == 0
    record = json.loads((folder / "records" / "made.json").read_text())
    assert published(record, 50_000).splitlines() == [
        "| at 50k control steps per task | protocol | seeds | h1-walk |",
        "| --- | --- | --- | --- |",
        "| **made** | humanoidbench | 1 | ~105 |",
        "| Other | humanoidbench | mean | ~12 |",
    ]
    assert published(record) == published(record, 50_000)
    assert published(record, 100_000).splitlines()[2:] == [
        "| **made** | humanoidbench | 1 | 200 |",
        "| Other | humanoidbench | mean | ~25 |",
    ]
    with pytest.raises(KeyError, match="--at 90000"):
        published(record, 90_000)
    assert main([*collect, "--published", "published.json"]) == 2
    assert "there is another file named published" in capsys.readouterr().err


def test_published_returns_beside_runs_of_other_tasks(folder: Path) -> None:
    """Theirs is of walk alone, which the first run has not learned."""
    stand, walk = (finished_run(experiment(0, tasks=[task]), [20.0, 400.0]).run_id for task in TASKS)
    collect = ["results", "collect", stand, walk, "--published", "published.json", "--out", "made.json"]
    assert main(collect) == 0
    record = json.loads((folder / "made.json").read_text())
    assert shortest_end(record["runs"]) == 100_000
    assert published(record).splitlines()[2:] == [
        "| **made** | humanoidbench | 1 |  |",
        f"| **made {walk[:8]}** | humanoidbench | 1 | 400 |",
        "| Other | humanoidbench | mean | ~25 |",
    ]


def test_published_returns_stand_beside_ours_of_their_protocol_alone() -> None:
    """Nothing of dm_control is published for walk, so our return of it there (7) is not in that row."""
    steps = {"env_steps": [0, 10]}
    run = {
        "agent": "made",
        "returns": {
            "h1-walk": [
                {"protocol": "humanoidbench", "returns": [1, 5]} | steps,
                {"protocol": "ezm", "returns": [1, 7]} | steps,
            ],
            "dmc-walker-walk": [{"protocol": "ezm", "returns": [1, 90]} | steps],
        },
    }
    theirs = [
        {"task": task, "protocol": protocol, "agent": "Other", "seeds": None, "env_steps": 10, "return": 3.0}
        for task, protocol in (("h1-walk", "humanoidbench"), ("dmc-walker-walk", "dm_control"))
    ]
    lines = published({"runs": [run], "published": theirs}).splitlines()
    assert [line for line in lines if "made" in line] == [
        "| **made** | humanoidbench | 1 | 5.0 |  |",
        "| **made** | dm_control | 1 |  | 90 |",
    ]


def test_the_shortest_end_is_over_all_runs_and_tasks() -> None:
    def run(*ends: int) -> dict[str, Any]:
        return {"returns": {f"task-{end}": [{"env_steps": [0, end]}] for end in ends}}

    assert shortest_end([run(30, 25), run(40, 20)]) == 20


def test_steadiness_by_hand(folder: Path) -> None:
    """Medians 800 and 100: below 400 and 50 lie 2 and 0 episodes; (600 - 450) / 600, (50 - 50) / 50."""
    curves = {"h1-stand": [20.0, 600.0, 450.0, 500.0], "h1-walk": [2.0, 50.0, 50.0, 50.0]}
    played = {"h1-stand": [800.0, 390.0, 820.0, 10.0, 810.0], "h1-walk": [100.0, 51.0, 100.0, 99.0, 101.0]}
    run = {
        "agent": "made",
        "seed": 3,
        "tasks": list(curves),
        "protocol": "humanoidbench",
        "final": {"episodes": 5, "planned": {"humanoidbench": played}},
        "returns": {
            task: [{"protocol": "humanoidbench", "env_steps": [0, 1, 2, 3], "returns": each}]
            for task, each in curves.items()
        },
    }
    lines = steadiness({"runs": [run]}).splitlines()
    assert lines[2:] == ["| h1-stand | made | 3 | 2 | 25% |", "| h1-walk | made | 3 | 0 | 0% |"]


def test_agents_of_other_settings_are_compared_as_variants(folder: Path) -> None:
    """The second lacks the path loss: every score of it lies below; each of its settings is said."""
    full = [finished_run(experiment(seed), [20.0, 600.0 + seed]) for seed in range(2)]
    bare = [finished_run(experiment(seed, loss={"path": 0.0}), [20.0, 300.0 + seed]) for seed in range(2)]
    ids = [run.run_id for run in (*full, *bare)]
    assert main(["results", "collect", *ids, "--out", "records/parts.json"]) == 0
    other = f"made {ids[2][:8]}"
    (folder / "page.md.j2").write_text("{{ variants('parts', 'made') }}\n\n{{ runs('parts') }}\n")
    lines = render(folder / "page.md.j2", folder / "records").splitlines()
    assert lines[3].startswith(f"| {other} | 2 | h1-stand, h1-walk | 0.")
    assert lines[3].endswith("| 1.00 [1.00, 1.00] |")
    assert f"- {other}: made with loss.path=0.0; 1 episodes per evaluation." in lines


def test_seeds_that_were_filmed_or_not_are_seeds_of_one_agent(folder: Path) -> None:
    """Also where an older record says which was filmed."""
    ids = [finished_run(experiment(0), [20.0, 600.0]).run_id]
    assert main(["results", "collect", *ids, "--out", "old.json"]) == 0
    record = json.loads((folder / "old.json").read_text())
    record["runs"][0]["settings"]["eval.video"] = "false"
    (folder / "old.json").write_text(json.dumps(record))
    changes: list[dict[str, Any]] = [{"eval": {"video": False}}, {"replay": {"save": False}}]
    ids = [finished_run(experiment(seed, **each), [20.0, 600.0]).run_id for seed, each in enumerate(changes)]
    assert main(["results", "collect", "old.json", *ids, "--out", "made.json"]) == 0
    runs = json.loads((folder / "made.json").read_text())["runs"]
    assert {run["agent"] for run in runs} == {"made"}
    assert all(run["settings"] == {"env.protocol": "humanoidbench"} for run in runs)


def test_scores_of_ones_own_tasks_are_by_the_bounds_of_their_spec(folder: Path) -> None:
    task, meta = "gym:Pendulum-v1", {"random_score": 0.0, "success_score": 1000.0}
    changes: list[dict[str, Any]] = [{}, {"loss": {"path": 0.0}}]
    ids = [
        finished_run(experiment(0, tasks=[task], tasks_meta={task: meta}, **each), [0.0, value]).run_id
        for each, value in zip(changes, (600.0, 300.0), strict=True)
    ]
    assert main(["results", "collect", *ids, "--out", "records/own.json"]) == 0
    (folder / "page.md.j2").write_text("{{ variants('own', 'made') }}\n")
    row = render(folder / "page.md.j2", folder / "records").splitlines()[-1]
    assert row.startswith(f"| made {ids[1][:8]} | 1 | {task} | 0.300 | -0.300 |"), row


def test_settings_are_all_that_the_agent_reads(folder: Path) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"loss": {"extra": {"math:dist": 1.0}}},
        {"loss": {"extra": {"math:dist": 2.0}}},
        {"tasks_meta": {"h1-walk": {"quirks": False}}},
        {"tasks_meta": {"h1-walk": {}}},
        {"agent": "sac", "loss": {"path": 0.0}, "sac": {"td_steps": 3}},
        {"sac": {"td_steps": 3}},
    ]
    ids = [finished_run(experiment(0, **each), [20.0, 600.0]).run_id for each in changes]
    assert main(["results", "collect", *ids, "--out", "made.json"]) == 0
    runs = json.loads((folder / "made.json").read_text())["runs"]
    assert [run["settings"] for run in runs] == [
        {"env.protocol": "humanoidbench"} | more
        for more in (
            {},
            {"loss.extra.math:dist": "1.0"},
            {"loss.extra.math:dist": "2.0"},
            {"tasks_meta.h1-walk.quirks": "false"},
            {},
            {"agent": "sac", "sac.td_steps": "3"},
            {},
        )
    ]
    names = [run["agent"] for run in runs]
    assert names == ["made", *(f"made {i[:8]}" for i in ids[1:4]), "made", f"made {ids[5][:8]}", "made"]


@pytest.mark.parametrize("searched", [True, False])
def test_of_a_sweep_that_searched_the_best_trial_is_recorded(searched: bool, folder: Path) -> None:
    """Two trials of a grid point, the first better: where nothing was searched both are one agent's seeds."""
    sweep = new_run(experiment(0))
    for name, value in ((tags.LEVEL, tags.SWEEP), (tags.NAME, "tried")):
        sweep.client.set_tag(sweep.run_id, name, value)
    ids = []
    for number, objective in enumerate((0.9, 0.4)):
        run = finished_run(experiment(number), [20.0, 1000 * objective])
        marks = {
            tags.ID: sweep.run_id,
            tags.LEVEL: tags.TRIAL,
            tags.POINT_LABEL: "two",
            tags.NUMBER: str(number),
            tags.SEED: str(number),
            tags.STATE: tags.COMPLETE,
            tags.SEARCHED: json.dumps({"loss.path": objective} if searched else {}),
            "tasks": ", ".join(TASKS),
        }
        for name, value in marks.items():
            run.client.set_tag(run.run_id, name, value)
        run.client.log_metric(run.run_id, tags.OBJECTIVE, objective)
        ids.append(run.run_id)
    assert main(["results", "collect", "--sweep", "tried", "--out", "made.json"]) == 0
    runs = json.loads((folder / "made.json").read_text())["runs"]
    assert [(run["agent"], run["run"]) for run in runs] == [
        ("two", run_id) for run_id in (ids[:1] if searched else ids)
    ]


def test_final_episodes_are_of_the_checkpoint_before_a_damaged_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished_run(experiment(0), [20.0, 400.0])
    checkpoints = run.directory / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    (checkpoints / "last.ckpt").write_bytes(b"cut")
    write_checkpoint({"experiment": "made", "format": FORMAT}, checkpoints / "previous.ckpt")
    played = []

    def evaluate(checkpoint: Path, **_: object) -> SimpleNamespace:
        played.append(checkpoint.name)
        table = np.ones((2, 1))
        return SimpleNamespace(tasks=TASKS, returns_ezm=table, returns_humanoidbench=table)

    monkeypatch.setattr(training, "evaluate", evaluate)
    collect = ["results", "collect", run.run_id, "--episodes", "1", "--out", "made.json"]
    assert main(collect) == 0
    assert played == ["previous.ckpt"] * 2
    assert "previous.ckpt, the one before it, is used" in " ".join(capsys.readouterr().out.split())
    (checkpoints / "previous.ckpt").unlink()
    assert main(collect) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"ezm: RUN {run.run_id}: ") and line.count("\n") == 1


def test_a_run_that_began_with_a_trained_model_is_no_seed_of_one_from_scratch(folder: Path) -> None:
    scratch = finished_run(experiment(0), [20.0, 600.0])
    carried = finished_run(experiment(1, name="carried"), [90.0, 700.0])
    carried.client.set_tag(carried.run_id, "init", "folder/last.ckpt")
    out = folder / "records" / "made.json"
    assert main(["results", "collect", scratch.run_id, carried.run_id, "--out", str(out)]) == 0
    runs = json.loads(out.read_text())["runs"]
    assert [run["agent"] for run in runs] == ["made", "carried"]
    assert runs[1]["settings"] == runs[0]["settings"] | {"init": "a trained agent"}


def test_gradient_conflict_is_recorded_as_means_over_the_run(folder: Path) -> None:
    """Two measurements of each seed; the table has the mean over seeds, and a run without any no row."""
    ids = []
    for seed, values in enumerate(((0.1, 0.3), (0.4, 0.6))):
        run = finished_run(experiment(seed), [20.0, 500.0])
        for step, value in enumerate(values):
            for number, more in (("cosine", 0.0), ("own_cosine", 0.2), ("conflicting", -0.1)):
                run.client.log_metric(
                    run.run_id, f"gradient_conflict/value_policy/{number}", value + more, step=step
                )
        ids.append(run.run_id)
    other = finished_run(experiment(0, loss={"path": 0.0}), [20.0, 300.0])
    assert main(["results", "collect", *ids, other.run_id, "--out", "records/made.json"]) == 0
    (folder / "page.md.j2").write_text("{{ conflict('made') }}\n")
    lines = render(folder / "page.md.j2", folder / "records").splitlines()
    assert lines[2:] == [
        "| made | value and policy | 2 | 0.350 [0.200, 0.500] | 0.550 [0.400, 0.700] | 0.250 [0.100, 0.400] |"
    ]


def test_what_cannot_be_recorded_is_refused_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    running = new_run(experiment(0))
    empty = new_run(experiment(1))
    empty.end("FINISHED")
    refusals = {
        (running.run_id,): f"RUN {running.run_id}: is RUNNING in MLflow; only finished runs are recorded",
        (empty.run_id,): f"RUN {empty.run_id}: has no evaluations",
        (): "RUN or --sweep: one of them is required",
        ("--sweep", "none"): "SWEEP none: there is no sweep",
    }
    for arguments, line in refusals.items():
        assert main(["results", "collect", *arguments, "--out", "made.json"]) == 2
        assert capsys.readouterr().err.startswith(f"ezm: {line}")
    assert not (folder / "made.json").exists()
