"""The comparison: equal steps, seeds with intervals, protocols apart; and the command on real runs."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ezm_pl.spec import Experiment, SpecError, build_experiment
from ezm_pl.tracking.results.compare import compare_runs
from ezm_pl.tracking.results.comparison import Agent, Contest, contests, overall
from ezm_pl.tracking.results.curves import Curve
from ezm_pl.tracking.runs.logger import RunLogger
from ezm_pl.tracking.runs.mlflow_run import Run, new_run


def curve(
    returns: list[float],
    steps: list[float],
    protocol: str = "ezm",
    label: str = "published X",
    averaged: bool = False,
) -> Curve:
    return Curve(label, protocol, np.array(steps), np.array(returns), averaged)


def test_values_are_interpolated_between_neighbours_and_never_beyond_the_end() -> None:
    agent = Agent("a", (curve([10, 30, 20], [1000, 2000, 4000]),), True)
    assert agent.at(1500).returns == (20.0,)
    assert agent.at(3000).returns == (25.0,)
    assert agent.at(4000) == agent.at(4020), "less than 1% beyond the end"
    marks = {1000: "", 1100: "", 1150: "~", 1500: "~", 1850: "", 4000: ""}
    assert {steps: agent.at(steps).mark for steps in marks} == marks, (
        "an evaluation within a tenth of the steps"
    )
    assert (agent.at(4100).returns, agent.at(4100).absent) == ((), "ends at 4k")
    assert (agent.at(900).returns, agent.at(900).absent) == ((), "begins at 1k")


def test_seeds_have_an_interval_and_those_that_ended_are_counted_out() -> None:
    short, long = curve([0, 10], [0, 1000]), curve([0, 40], [0, 2000])
    agent = Agent("a", (short, long), True)
    found = agent.at(500)
    assert found.returns == (5.0, 10.0) and found.absent == ""
    assert found.interval.value == 7.5
    assert (found.interval.low, found.interval.high) == (5.0, 10.0)
    assert agent.at(2000).returns == (40.0,)
    assert agent.at(2000).absent == "1 of 2 seeds"
    assert not agent.at(2000).interval.known
    assert agent.seeds == 2
    assert Agent("b", (curve([1.0], [0.0], averaged=True),), False).seeds is None


def test_protocols_are_kept_apart() -> None:
    own = {"ours": {"h1-stand": [curve([100.0], [9.0]), curve([50.0], [9.0], "humanoidbench")]}}
    published = {
        "a": {"h1-stand": [curve([1.0], [9.0], "humanoidbench", "published X", averaged=True)]},
        "b": {"h1-stand": [curve([2.0], [9.0]), curve([3.0], [9.0])]},
    }
    falls, ezm = contests(own, published)
    assert [falls.protocol, ezm.protocol] == ["humanoidbench", "ezm"]
    assert [agent.name for agent in falls.agents] == ["ours", "X"]
    assert [agent.name for agent in ezm.agents] == ["ours", "X [b]"], "the other file's X is another agent"
    for contest in (falls, ezm):
        assert {found.protocol for agent in contest.agents for found in agent.curves} == {contest.protocol}
    assert [agent.at(9).returns for agent in ezm.agents] == [(100.0,), (2.0, 3.0)]
    (only,) = contests(own, {"b": published["b"]})
    assert only.protocol == "ezm", "nobody published under the other one"
    assert len(contests(own, {})) == 2, "nothing published: ours under both"


def test_dm_control_has_one_protocol_and_each_seed_counts_once() -> None:
    task = "dmc-walker-walk"
    seeds = [curve([value], [9.0], protocol) for value in (1.0, 2.0) for protocol in ("ezm", "humanoidbench")]
    (contest,) = contests({"ours": {task: seeds}}, {"a": {task: [curve([3.0], [9.0], averaged=True)]}})
    assert contest.protocol == "dm_control"
    assert [agent.at(9).returns for agent in contest.agents] == [(1.0, 2.0), (3.0,)]


def test_overall_is_of_agents_with_every_task() -> None:
    def contest(task: str, returns: list[list[float]]) -> Contest:
        names = ("ours", "theirs")
        agents = [
            Agent(name, tuple(curve([value], [5.0]) for value in values), name == "ours")
            for name, values in zip(names, returns, strict=True)
            if values
        ]
        return Contest(task, "dm_control", tuple(agents))

    rounds = [
        contest("dmc-walker-walk", [[500, 700], [900]]),
        contest("dmc-cheetah-run", [[100, 300], []]),
    ]
    found = overall(rounds, "dm_control", 5)
    assert set(found) == {("ours", True)}
    interval = found["ours", True]
    assert interval.value == pytest.approx(0.4)  # of four scores .1 .3 .5 .7 the middle two
    assert interval.low < 0.4 < interval.high
    assert overall(rounds, "dm_control", 6) == {}


@pytest.fixture(scope="module")
def runs(workplace: Path, experiment: Experiment) -> list[Run]:
    """Two seeds of one spec and a run of another, evaluated at 0, 1,000 and 2,000 steps."""
    specs = [
        experiment,
        experiment.model_copy(update={"seed": 1}),
        build_experiment(
            {"name": "other", "preset": "smoke", "tasks": ["h1-stand", "h1-walk"], "loss": {"value": 1.0}}
        ),
    ]
    made = []
    for number, spec in enumerate(specs):
        run = new_run(spec)
        logger = RunLogger(run.client, run.run_id)
        for steps in (0, 1000, 2000):
            value = 10.0 * (number + 1) + steps / 100
            ezm = {f"eval/{task}/return_ezm": 2 * value for task in spec.tasks}
            falls = {f"eval/{task}/return_humanoidbench": value for task in spec.tasks}
            logger.log_metrics({**ezm, **falls, "env_steps": steps}, step=steps // 100)
        logger.finalize("success")
        assert logger.sender.flush(60)
        assert logger.sender.close(0, run.directory / "unsent.jsonl") is None
        made.append(run)
    return made


@pytest.fixture
def published(tmp_path: Path) -> Path:
    path = tmp_path / "curves.json"
    mean = {"env_steps": [0, 1500], "return": [7.0, 77.0]}
    path.write_text(json.dumps({"h1-stand": {"TD-MPC2": mean}, "h1-walk": {"TD-MPC2": mean}}))
    return path


def compare(references: list[str], published: list[Path], at: list[int], out: Path) -> list[str]:
    text = io.StringIO()
    console = Console(file=text, width=140)
    compare_runs(references, published=published, at=at, out=out, console=console)
    return text.getvalue().splitlines()


def test_the_command(runs: list[Run], published: Path, tmp_path: Path) -> None:
    figure = tmp_path / "new" / "compare.png"
    lines = compare([str(run.directory) for run in runs], [published], [500, 2000], figure)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    first, trial = rows[0], next(row for row in rows if row[2] == "trial")
    assert first == ["h1-stand", "humanoidbench", "other", "1", "~35.0", "50.0"], "the better of ours"
    assert trial[1:] == ["humanoidbench", "trial", "2", "~20.0 [15.0, 25.0]", "35.0 [30.0, 40.0]"]
    theirs = next(row for row in rows if row[2] == "TD-MPC2")
    assert theirs[1:] == ["humanoidbench", "TD-MPC2", "mean", "~30.3", "ends at 2k"]
    assert not any(row[1] == "ezm" for row in rows), "published under the other protocol only"
    assert any("seed 0" in line and "seed 1" in line for line in lines)
    with Image.open(figure) as image:
        assert image.size[0] > 800 and np.asarray(image.convert("L")).std() > 5


def test_steps_default_to_where_the_shortest_run_ends(runs: list[Run], tmp_path: Path) -> None:
    lines = compare([runs[0].run_id[:12]], [], [], tmp_path / "compare.svg")
    assert any("at 2k" in line for line in lines)


def test_what_cannot_be_compared(runs: list[Run], published: Path, tmp_path: Path) -> None:
    figure = tmp_path / "compare.png"
    with pytest.raises(SpecError, match="is named twice"):
        compare([runs[0].run_id, str(runs[0].directory)], [], [], figure)
    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_text(json.dumps({"h1-crawl": {"X": {"env_steps": [0], "return": [1.0]}}}))
    with pytest.raises(SpecError, match=r"has none of the runs' tasks \(h1-stand, h1-walk\)"):
        compare([runs[0].run_id], [elsewhere], [], figure)
    with pytest.raises(SpecError, match="there is another file named curves"):
        compare([runs[0].run_id], [published, published], [], figure)
    assert not figure.exists()
