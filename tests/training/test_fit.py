"""Whole trainings, short: protocols and settings, checkpoints, resuming, Ctrl-C, failures."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import fork_server
import numpy as np
import psutil
import pytest
import torch
from fit_helpers import UPDATES, CtrlC, CtrlCInWarmUp, contents, fit_experiment, last, replay, run
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from ezm_pl.selfplay import CollectorError, collector
from ezm_pl.training import (
    CheckpointError,
    FitResult,
    MemoryRefused,
    SelfPlayDataModule,
    check_same_experiment,
    checkpoint_experiment,
)
from ezm_pl.training.memory import check_memory


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FitResult]:
    """A finished run: its folder and its result."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, run(fit_experiment(), folder)


def check_result(result: FitResult, updates: int = UPDATES) -> None:
    assert result.status == "finished" and result.updates == updates
    assert (result.env_steps >= 600).all()
    evaluation = result.evaluations[-1]
    assert evaluation.updates == updates
    for returns in (evaluation.returns_ezm, evaluation.returns_humanoidbench):
        assert returns.shape == (2, 1) and np.isfinite(returns).all()
    names = evaluation.metrics()
    for task in evaluation.tasks:
        assert {f"eval/{task}/return_ezm", f"eval/{task}/return_humanoidbench"} <= names.keys()
    assert np.isfinite(names["eval/score"])


def test_a_finished_run(finished: tuple[Path, FitResult]) -> None:
    folder, result = finished
    check_result(result)
    assert len(replay(fit_experiment(), folder)) > 0
    saved = contents(last(folder))
    assert saved["global_step"] == UPDATES
    assert checkpoint_experiment(last(folder)) == fit_experiment()
    assert saved["SelfPlayDataModule"]["updates"] == UPDATES
    assert all(torch.isfinite(x).all() for x in saved["state_dict"].values())


VARIATIONS: dict[str, dict[str, Any]] = {
    "the benchmark's protocol": {"env": {"protocol": "humanoidbench"}},
    "short episodes": {"env": {"short_episode_steps": 250, "short_episode_share": 0.5}},
    "shared replay": {"replay": {"shared": True}},
    "best": {"targets": {"policy": "best"}},
    "sequential search": {"search": {"wave": 1}},
    "return scaling": {"targets": {"return_scaling": True}},
    "bfloat16": {"search": {"dtype": "bfloat16"}, "trainer": {"precision": "bf16-mixed"}},
    "random choice": {"search": {"choice": "random"}, "targets": {"policy": "best"}},
    "search values": {"targets": {"search_value_after": 0, "search_value_age": 5}},
    "expanded values": {"targets": {"expansion_steps": 2, "search_value_after": 2}},
    "no warm-up": {"collect": {"random_steps": 0, "env_steps": 900}},
    "no task embedding": {"model": {"task_embedding_in": []}},
    "final updates": {"optim": {"total_updates": 4, "final_updates": 2}, "collect": {"max_lead": 0.0}},
    "evaluated throughout": {"eval": {"every": 3, "at_start": True}},
}


@pytest.mark.parametrize("name", VARIATIONS)
def test_every_setting_trains(name: str, tmp_path: Path) -> None:
    result = run(fit_experiment(VARIATIONS[name]), tmp_path)
    check_result(result)
    if name == "evaluated throughout":
        assert [e.updates for e in result.evaluations] == [0, 3, 6]
        assert (tmp_path / "checkpoints" / "best.ckpt").is_file()
    if name == "final updates":
        assert (result.env_steps >= 1500).all(), "the last updates wait for the end of collection"


H1: dict[str, Any] = {
    "env": {"action_repeat": 5, "num_envs": 1},
    "collect": {"env_steps": 160, "random_steps": 60},
}


def test_h1_tasks_under_the_benchmark_s_protocol(tmp_path: Path) -> None:
    """Falls end episodes in training; the evaluation reports both returns of one rollout."""
    h1 = {"tasks": ["h1-stand", "dmc-cartpole-balance"], "env": {"protocol": "humanoidbench"}}
    result = run(fit_experiment(H1 | h1 | {"env": H1["env"] | h1["env"]}), tmp_path)  # type: ignore[operator]
    evaluation = result.evaluations[-1]
    assert result.updates == UPDATES
    stand = evaluation.returns_ezm[0, 0], evaluation.returns_humanoidbench[0, 0]
    assert 0 <= stand[1] < stand[0], "an untrained robot falls, and goes on to be paid a little"
    assert evaluation.returns_ezm[1, 0] == evaluation.returns_humanoidbench[1, 0]


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["ezm", "humanoidbench"])
@pytest.mark.parametrize("workers", ["threads", "async"])
def test_three_h1_tasks(protocol: str, workers: str, tmp_path: Path) -> None:
    env = H1["env"] | {"protocol": protocol, "workers": workers}
    tasks = ["h1-stand", "h1-walk", "h1-crawl"]
    result = run(fit_experiment(H1 | {"tasks": tasks, "env": env}), tmp_path)
    assert result.updates == UPDATES
    assert np.isfinite(result.evaluations[-1].returns_ezm).all()


class Seen(Callback):
    """What a resumed run starts from."""

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        self.updates, self.step = data.pacing.updates, trainer.global_step
        self.control_steps = data.sync.control_steps.copy()
        self.stored = len(data.buffer)
        self.state = {name: x.clone() for name, x in module.state_dict().items()}
        self.moments = len(trainer.optimizers[0].state)
        self.published = data.store.newer_than(-1)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_resuming_goes_on_where_the_run_stopped(tmp_path: Path, dtype: str) -> None:
    experiment = fit_experiment({"replay": {"observation_dtype": dtype}})
    first = run(experiment, tmp_path, CtrlC("training", update=4))
    assert first.status == "interrupted" and first.updates == 4
    saved = contents(last(tmp_path))
    before = replay(experiment, tmp_path)
    stored, added = len(before), before.blocks.added
    seen = Seen()
    second = run(experiment, tmp_path, seen, checkpoint=last(tmp_path))
    check_result(second)
    assert seen.step == seen.updates == 4
    assert (seen.control_steps >= saved["SelfPlayDataModule"]["control_steps"].min().item()).all()
    assert seen.stored >= stored > 0
    assert seen.moments > 0, "Adam's state came back"
    assert seen.published is not None and seen.published[0] == 4
    for name, x in saved["state_dict"].items():
        assert torch.equal(seen.state[name], x), name
    assert (second.env_steps >= first.env_steps).all()
    buffer = replay(experiment, tmp_path)
    assert buffer.blocks.observation.dtype == dtype
    assert (buffer.blocks.added >= added).all()
    for task in range(2):
        ids = np.sort(buffer.blocks.transition_id[task], None)
        assert (ids[ids >= 0] == np.arange(buffer.blocks.added[task])).all(), "numbered without a gap"


def test_resuming_without_replay(tmp_path: Path) -> None:
    """Must neither wait for ever nor warm up again."""
    experiment = fit_experiment({"replay": {"save": False}})
    run(experiment, tmp_path, CtrlC("training", update=4))
    assert not (tmp_path / "checkpoints" / "replay").exists()
    check_result(run(experiment, tmp_path, checkpoint=last(tmp_path)))


def test_resuming_a_finished_run_only_evaluates(finished: tuple[Path, FitResult], tmp_path: Path) -> None:
    folder, result = finished
    again = run(fit_experiment(), tmp_path, checkpoint=last(folder))
    assert again.updates == UPDATES and again.status == "finished"
    np.testing.assert_array_equal(again.evaluations[-1].returns_ezm, result.evaluations[-1].returns_ezm)


def test_a_checkpoint_holds_the_end_of_its_update(tmp_path: Path) -> None:
    """Update 3 refreshes the inference copies (every 3) and is saved (every 3): the copy has its weights."""
    experiment = fit_experiment({"trainer": {"checkpoint_every": 6}})
    run(experiment, tmp_path, CtrlC("training", update=3))
    saved = contents(last(tmp_path))
    weights = saved["state_dict"]
    assert saved["SelfPlayDataModule"]["updates"] == saved["global_step"] == 3
    assert torch.equal(weights["actor_weights.model.encoder.0.weight"], weights["model.encoder.0.weight"])
    assert not torch.equal(weights["target.model.encoder.0.weight"], weights["model.encoder.0.weight"])


@pytest.mark.parametrize("moment", ["training", "evaluation", "final evaluation"])
def test_ctrl_c_ends_a_run_in_order(moment: str, tmp_path: Path) -> None:
    experiment = fit_experiment({"eval": {"every": 2}} if moment == "evaluation" else None)
    result = run(experiment, tmp_path, CtrlC(moment))
    assert result.status == "interrupted"
    assert result.updates == {"training": 3, "evaluation": 2, "final evaluation": 6}[moment]
    assert not result.evaluations, "an interrupted evaluation gives no returns"
    assert contents(last(tmp_path))["global_step"] == result.updates
    assert not (tmp_path / "checkpoints" / "best.ckpt").exists()
    resumed = run(experiment, tmp_path, checkpoint=last(tmp_path))
    check_result(resumed)


def test_ctrl_c_in_warm_up_saves_what_there_is(tmp_path: Path) -> None:
    experiment = fit_experiment({"collect": {"env_steps": 10**6, "random_steps": 10**6 - 1}})
    start = time.perf_counter()
    result = run(experiment, tmp_path, CtrlCInWarmUp())
    assert time.perf_counter() - start < 60
    assert result.status == "interrupted" and result.updates == 0
    assert contents(last(tmp_path))["global_step"] == 0
    resumed = run(experiment, tmp_path, CtrlCInWarmUp(), checkpoint=last(tmp_path))
    assert (resumed.env_steps >= result.env_steps).all() and resumed.updates == 0


@pytest.mark.parametrize("moment", ["training", "evaluation"])
def test_a_second_ctrl_c_still_saves(moment: str, tmp_path: Path) -> None:
    """Lightning ends the process then; `run` asserts that the collector thread is gone."""
    experiment = fit_experiment({"eval": {"every": 2}} if moment == "evaluation" else None)
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit):
            run(experiment, tmp_path, CtrlC(moment, times=2))
    finally:
        signal.signal(signal.SIGINT, before)
    assert contents(last(tmp_path))["global_step"] == {"training": 3, "evaluation": 2}[moment]


def test_a_failing_environment_ends_the_run_with_its_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some updates: they are saved, and the collector thread is gone."""
    envs = collector.MultiTaskVectorEnv
    step = envs.step

    def failing(self: Any, action: Any) -> Any:
        # Only the collector's environments, and only once there are updates to lose.
        if broken.at is not None and broken.at >= 2 and self.num_envs == 4:
            raise ZeroDivisionError("physics broke")
        return step(self, action)

    class Broken(Callback):
        at: int | None = None

        def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
            self.at = trainer.global_step

    broken = Broken()
    monkeypatch.setattr(envs, "step", failing)
    experiment = fit_experiment({"optim": {"total_updates": 1000}, "collect": {"env_steps": 10**6}})
    with pytest.raises(CollectorError, match="physics broke") as caught:
        run(experiment, tmp_path, broken)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert contents(last(tmp_path))["global_step"] >= 2


SCRIPT = """
if __name__ == "__main__":  # worker processes import this file, too
    import sys, threading, warnings
    from pathlib import Path
    from lightning.pytorch.callbacks import Callback
    from fit_helpers import fit_experiment
    from ezm_pl.training import fit
    warnings.simplefilter("ignore")

    class Say(Callback):
        def on_fit_start(self, *_): print("MOMENT warm-up", flush=True)
        def on_train_batch_start(self, *_): print("MOMENT training", flush=True)
        def on_validation_start(self, *_): print("MOMENT evaluation", flush=True)

    result = fit(fit_experiment({
        "env": {"workers": "async"}, "optim": {"total_updates": 100000}, "eval": {"every": 3, "episodes": 4},
        "collect": {"env_steps": 1000000},
    }), Path(sys.argv[1]), callbacks=[Say()])
    print("RESULT", result.status, result.updates, [t.name for t in threading.enumerate()], flush=True)
"""


@pytest.mark.parametrize(
    ("moment", "seconds"),
    [
        ("training", 0.0),
        pytest.param("warm-up", 0.5, marks=pytest.mark.slow),
        pytest.param("training", 0.7, marks=pytest.mark.slow),
        pytest.param("evaluation", 0.0, marks=pytest.mark.slow),
        pytest.param("evaluation", 0.3, marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_from_a_terminal(moment: str, seconds: float, tmp_path: Path) -> None:
    """To the whole process group, with physics in worker processes: all of it ends, and in order."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    process = fork_server.start(
        [str(script), str(tmp_path)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(f"MOMENT {moment}"):
                break
        time.sleep(seconds)
        family = psutil.Process(process.pid).children(recursive=True)
        pressed = time.perf_counter()
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(60) == 0, rest
        assert time.perf_counter() - pressed < 120, "it takes a second; nothing may wait for a time-out"
    finally:
        if process.poll() is None:
            process.kill()
    result = next(line for line in rest.splitlines() if line.startswith("RESULT"))
    assert result.startswith("RESULT interrupted") and result.endswith("['MainThread']"), result
    assert contents(last(tmp_path))["global_step"] == int(result.split()[2])
    assert not [p for p in psutil.wait_procs(family, timeout=10)[1] if p.is_running()]


def test_another_spec_is_refused_by_the_field_s_name(finished: tuple[Path, FitResult]) -> None:
    path = last(finished[0])
    half = {"observation_dtype": "float16"}
    other = fit_experiment({"loss": {"value": 0.5}, "search": {"num_simulations": 5}, "replay": half})
    with pytest.raises(CheckpointError) as caught:
        run(other, finished[0], checkpoint=path)
    text = str(caught.value)
    assert "loss.value: 0.25 -> 0.5" in text and "search.num_simulations: 4 -> 5" in text
    assert "replay.observation_dtype: float32 -> float16" in text
    assert "\n" not in text
    with pytest.raises(CheckpointError, match="tasks"):
        check_same_experiment(path, fit_experiment({"tasks": ["dmc-cartpole-balance"]}))


def test_what_does_not_change_the_run_may_differ(finished: tuple[Path, FitResult]) -> None:
    other = {
        "name": "other",
        "eval": {"episodes": 3},
        "trainer": {"log_every": 9},
        "env": {"workers": "threads"},
    }
    check_same_experiment(last(finished[0]), fit_experiment(other))


def test_buffers_that_cannot_fit_are_refused_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    from ezm_pl.envs import sizes

    class Little:
        available = 10 * 2**20

    monkeypatch.setattr(psutil, "virtual_memory", Little)
    said = []
    for dtype in ("float32", "float16"):
        replay = {"capacity": 10**7, "observation_dtype": dtype}
        experiment = fit_experiment({"replay": replay, "collect": {"env_steps": 10**9}})
        with pytest.raises(MemoryRefused, match=r"lower replay\.capacity") as caught:
            SelfPlayDataModule(experiment, sizes(experiment.tasks))
        said.append(str(caught.value))
    assert "\n" not in "".join(said)
    assert ["observation_dtype to float16" in line for line in said] == [True, False]


@pytest.mark.parametrize(("steps", "unit"), [(800, "KiB"), (500_000, "MiB"), (50_000_000, "GiB")])
def test_the_memory_line_has_a_unit_that_shows_something(steps: int, unit: str) -> None:
    """Two tasks, actions held for 25 steps: 32, 20,000 and a million transitions of each."""
    from ezm_pl.envs import sizes

    experiment = fit_experiment({"replay": {"capacity": 10**6}, "collect": {"env_steps": steps}})
    line = check_memory(experiment, sizes(experiment.tasks), 1)
    found = re.fullmatch(rf"replay: (\d+\.\d+) {unit} when full, of \d+\.\d GiB free", line)
    assert found and float(found[1]) >= 0.1


def test_the_shares_of_both_sides_time_add_up(tmp_path: Path) -> None:
    """Learner and collector: `time/*_share` are logged, each side's sum is 1."""
    logged: list[dict[str, float]] = []

    class Read(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
            logged.append({k: float(v) for k, v in trainer.callback_metrics.items()})

    run(fit_experiment(), tmp_path, Read())
    sides = {
        "learner": {"waiting", "sampling", "search", "losses", "optimizer", "refresh", "other"},
        "collector": {"waiting", "search", "physics", "storing", "other"},
    }
    for side, parts in sides.items():
        found = {k: v for k, v in logged[-1].items() if k.startswith(f"time/{side}_")}
        assert found.keys() <= {f"time/{side}_{part}_share" for part in parts}
        assert sum(found.values()) == pytest.approx(1)
    assert logged[-1]["time/learner_search_share"] > 0 and logged[-1]["time/learner_losses_share"] > 0
