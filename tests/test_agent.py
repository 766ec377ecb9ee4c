"""`ezm_pl.Agent` and its model in MLflow's registry: docs/agent.md as it stands, on a run trained here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from workplaces import train_briefly, work_in

from ezm_pl import Agent
from ezm_pl.cli import main
from ezm_pl.export.registry import requirements
from ezm_pl.spec import SpecError
from ezm_pl.world_model import InferenceModel

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs" / "agent.md").read_text(encoding="utf-8"), re.DOTALL
)
LOAD = """
import sys, mlflow, pandas
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/h1-walker/1")
tasks = ["dmc-cartpole-balance", "dmc-pendulum-swingup"]
rows = pandas.DataFrame({"observation": [[0.0] * 5, [0.0] * 3], "task": tasks})
print(model.predict(rows, params={"plan": False})["action"].tolist())
print("ezm_pl from", sys.modules["ezm_pl"].__file__)
"""
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a run of two tasks of different sizes."""
    with work_in(tmp_path_factory.mktemp("agent")) as folder:
        train_briefly("agent")
        yield folder


@pytest.fixture(scope="module")
def agent(workplace: Path) -> Agent:
    return Agent.load("last")


def test_the_page_runs_as_it_stands(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for block in BLOCKS[:2]:
        exec(block, names)
    assert "<- chosen" in capsys.readouterr().out
    assert main(["export", "last", "--register", "h1-walker"]) == 0
    exec(BLOCKS[2], names)
    searched, greedy = capsys.readouterr().out.splitlines()[-2:]
    assert searched.startswith("[") and greedy.startswith("[")
    elsewhere = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", LOAD, f"sqlite:///{workplace}/mlruns/mlflow.db"],
        cwd=workplace,
        env=elsewhere,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    actions, where = done.stdout.splitlines()[-2:]
    assert [len(action) for action in eval(actions)] == [1, 1]
    assert "/code/ezm_pl/" in where, "the model brings its own code"


def test_a_registered_agent_names_all_that_it_imports() -> None:
    found = dict(line.split("==") for line in requirements())
    assert found["torch"] == torch.__version__.partition("+")[0]
    assert {"lightning", "mujoco", "gymnasium", "dm_control", "psutil", "rich"} <= set(found)
    assert "imageio[ffmpeg]" in found
    assert not {"pytest", "mctx"} & set(found)


def test_an_agent_that_learned_without_a_search_acts_without(agent: Agent) -> None:
    spec = agent.experiment.model_copy(
        update={"search": agent.experiment.search.model_copy(update={"choice": "policy"})}
    )
    observation, task = np.ones(3), agent.tasks[1]
    expected = agent.act(observation, task, plan=False)
    other = Agent(spec, agent.model, updates=agent.updates, checkpoint=agent.checkpoint)
    assert np.array_equal(other.act(observation, task), expected)


def test_a_plan_is_whole_and_repeatable(agent: Agent) -> None:
    observation = np.linspace(-1, 1, 5)
    plan = agent.plan(observation, "dmc-cartpole-balance")
    search = agent.experiment.search
    assert plan.actions.shape == (search.num_root_actions, 1)
    assert plan.visits.sum() == search.num_simulations
    assert plan.weights.sum() == pytest.approx(1, abs=1e-4)
    assert np.array_equal(plan.action, plan.actions[plan.best])
    assert np.abs(plan.actions).max() <= 1
    seeded = [Agent.load(agent.checkpoint, seed=3).plan(observation, agent.tasks[0]) for _ in range(2)]
    assert np.array_equal(seeded[0].actions, seeded[1].actions)
    assert not np.array_equal(seeded[0].actions, plan.actions)
    assert seeded[0].root_value == seeded[1].root_value


def test_every_search_draws_its_value_heads_anew(agent: Agent) -> None:
    agent.plan(np.ones(3), agent.tasks[1])
    pairs = set()
    for _ in range(8):
        agent.plan(np.ones(3), agent.tasks[1])
        assert isinstance(agent.model, InferenceModel)
        pairs.add(tuple(agent.model.heads))
    assert len(pairs) > 1


def test_the_policy_alone_is_the_same_each_time(agent: Agent) -> None:
    first, second = (agent.act(np.ones(3), agent.tasks[1], plan=False) for _ in range(2))
    assert first.shape == (1,)
    assert np.array_equal(first, second)


def test_a_run_may_be_named_in_any_way(agent: Agent, workplace: Path) -> None:
    run = agent.checkpoint.resolve().parents[1]
    for reference in (run.name, run.name[:8], run, agent.checkpoint):
        assert Agent.load(reference).updates == agent.updates == 4
    with pytest.raises(SpecError, match="nowhere"):
        Agent.load("nowhere")


def test_the_checkpoint_before_is_loaded_where_the_last_is_damaged(
    agent: Agent,
    workplace: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / agent.checkpoint.resolve().parents[1].name
    shutil.copytree(agent.checkpoint.resolve().parents[1], run)
    last = run / "checkpoints" / "last.ckpt"
    shutil.copy(last, last.with_name("previous.ckpt"))
    last.write_bytes(last.read_bytes()[:-10])
    loaded = Agent.load(run)
    assert loaded.checkpoint.name == "previous.ckpt"
    assert "previous.ckpt, the one before it, is used" in caplog.text
    capsys.readouterr()
    assert main(["export", str(run), "--to", "onnx", "--out", str(tmp_path / "policy.onnx")]) == 0
    assert "policy head of" in (printed := capsys.readouterr().out) and printed.count("previous.ckpt") == 2
    spec = tmp_path / "again.yaml"
    spec.write_text((run / "experiment.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    budget = ["--set", "name=again", "--set", "optim.total_updates=1"]
    assert main(["train", str(spec), "--init", str(run), *budget]) == 0
    assert "previous.ckpt, the one before it, is used" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("observation", "task", "line"),
    [
        (np.zeros(5), "dmc-cartpole-balanc", "did you mean 'dmc-cartpole-balance'"),
        (np.zeros(5), None, "the agent was trained on dmc-cartpole-balance, dmc-pendulum-swingup"),
        (np.zeros(4), "dmc-cartpole-balance", r"has shape \(5,\), but \(4,\) was given"),
        (np.zeros((1, 5)), "dmc-cartpole-balance", r"has shape \(5,\), but \(1, 5\) was given"),
    ],
)
def test_what_does_not_fit_is_said(
    agent: Agent, observation: np.ndarray, task: str | None, line: str
) -> None:
    with pytest.raises(ValueError, match=line):
        agent.act(observation, task)


def test_a_name_that_the_registry_would_refuse(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "last", "--register", "a/b"]) == 2
    assert "argument --register: letters, digits" in capsys.readouterr().err
