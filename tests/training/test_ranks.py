"""Two ranks on a CPU: the same weights, one batch, one count of steps; and they end together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fork_server
import numpy as np
import psutil
import pytest
import torch
from fit_helpers import UPDATES, contents, fit_experiment, last
from numpy.typing import NDArray
from training_helpers import make_batch, make_experiment, make_model, make_sizes, make_targets

from ezm_pl.envs import sizes
from ezm_pl.selfplay import Collector, CollectorError
from ezm_pl.spec import SpecError
from ezm_pl.spec.presets import merge
from ezm_pl.training import RankError, SelfPlayDataModule
from ezm_pl.training.batch import Batch, Targets
from ezm_pl.training.losses import losses, unroll
from ezm_pl.training.ranks import Ranks, per_rank

PATIENCE = 300
"""Seconds for two ranks on a busy machine; idle, a run takes about 15."""

PYTHONPATH = os.pathsep.join(str(Path(__file__).parents[up]) for up in (0, 1, 2))

pytestmark = pytest.mark.timeout(2 * PATIENCE)


@contextmanager
def two_ranks(
    folder: Path, moment: str = "none", overrides: dict[str, Any] | None = None
) -> Iterator[fork_server.Forked]:
    """The script on its way; what is left of it is killed at the end."""
    script = Path(__file__).with_name("two_ranks.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}
    for name in ("LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE"):
        environment.pop(name, None)
    with (folder / "out.txt").open("w") as out:
        process = fork_server.start(
            [str(script), str(folder), moment, json.dumps(overrides or {})],
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def said(folder: Path) -> str:
    return (folder / "out.txt").read_text()


def finish(folder: Path, process: fork_server.Forked) -> list[dict[str, Any]]:
    """Both ranks' results."""
    code = process.wait(PATIENCE)
    assert code == 0, said(folder)
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]


def nobody_left(process: fork_server.Forked) -> bool:
    def session(pid: int) -> int | None:
        try:
            return os.getsid(pid)
        except ProcessLookupError:
            return None

    return not [p for p in psutil.process_iter() if p.pid != process.pid and session(p.pid) == process.pid]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("both")
    overrides = {
        "eval": {"at_start": True},
        "replay": {"capacity": 1000},
        "targets": {"return_scaling": True},
    }
    with two_ranks(folder, overrides=overrides) as process:
        return folder, finish(folder, process)


def test_all_ranks_end_with_the_same_weights(both: tuple[Path, list[dict[str, Any]]]) -> None:
    """Learning, acting and target networks, BatchNorm's and the normaliser's statistics: bit for bit."""
    one, two = (rank["state"] for rank in both[1])
    assert one.keys() == two.keys()
    assert {name for name in one if not torch.equal(one[name], two[name])} == set()
    assert float(one["model.normalizer.count"]) == UPDATES * 8, "the normaliser has seen both halves"
    assert any("running_var" in name for name in one)


def test_the_global_batch_is_the_spec_s(both: tuple[Path, list[dict[str, Any]]]) -> None:
    for one, two in zip(both[1][0]["batches"], both[1][1]["batches"], strict=True):
        assert len(one) == len(two) == 4
        assert torch.cat([one, two]).bincount().tolist() == [4, 4]


def test_each_rank_has_its_own_experience(both: tuple[Path, list[dict[str, Any]]]) -> None:
    one, two = (rank["observed"] for rank in both[1])
    assert not any(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert (both[0] / "checkpoints" / "replay" / "rank0").is_dir(), "rank 0 told the others the run's folder"
    assert not (both[0] / "nowhere").exists()
    for rank in both[1]:
        assert rank["stored"] > 0 and rank["blocks"] == 10, "half of the capacity, in blocks of 50"


def test_steps_are_counted_over_ranks(both: tuple[Path, list[dict[str, Any]]]) -> None:
    one, two = both[1]
    assert torch.equal(one["env_steps"], two["env_steps"])
    assert torch.equal(one["env_steps"], one["own_steps"] + two["own_steps"])
    budget, at_once = fit_experiment().collect.env_steps, 2 * 2 * 25
    for own in (one["own_steps"], two["own_steps"]):
        assert budget // 2 - 2 * at_once <= own.min() <= own.max() <= budget // 2 + at_once
    saved = contents(last(both[0]))["SelfPlayDataModule"]["control_steps"]
    assert (saved > budget // 2).all() and (saved <= one["env_steps"]).all()


def test_an_evaluation_is_that_of_all_ranks(both: tuple[Path, list[dict[str, Any]]]) -> None:
    one, two = (rank["returns"] for rank in both[1])
    assert len(one) == len(two) == 2
    for mine, theirs in zip(one, two, strict=True):
        assert torch.equal(mine, theirs) and mine.shape == (2, 1) and mine.isfinite().all()


def test_nothing_is_left_behind(both: tuple[Path, list[dict[str, Any]]]) -> None:
    for rank in both[1]:
        assert [name for name in rank["threads"] if "collector" in name] == []


@pytest.mark.parametrize(
    ("moment", "names"),
    [
        ("killed", ["another rank of this run has died", "rank 1 has ended with code -9"]),
        ("physics", ["RankError: rank 1: self-play failed: ZeroDivisionError('physics broke')"]),
        pytest.param(
            "learner",
            ["ZeroDivisionError: the learner broke", "another rank of this run has died"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_when_one_rank_fails_all_end_and_say_why(moment: str, names: list[str], tmp_path: Path) -> None:
    long = {"optim": {"total_updates": 10**5}, "collect": {"env_steps": 10**6}}
    with two_ranks(tmp_path, moment, long) as process:
        assert process.wait(PATIENCE) != 0
        printed = said(tmp_path)
        for name in names:
            assert name in printed, printed
        assert nobody_left(process)
    if moment == "physics":
        assert contents(last(tmp_path))["global_step"] >= 2, "ranks that know of the failure save together"


@pytest.mark.parametrize("whom", ["all ranks", pytest.param("rank 0", marks=pytest.mark.slow)])
def test_ctrl_c_stops_all_ranks_at_the_same_update(whom: str, tmp_path: Path) -> None:
    long = {"optim": {"total_updates": 10**5}, "collect": {"env_steps": 10**6}}
    with two_ranks(tmp_path, overrides=long) as process:
        deadline = time.monotonic() + PATIENCE
        while "UPDATE 1 3" not in said(tmp_path) and time.monotonic() < deadline:
            assert process.poll() is None, said(tmp_path)
            time.sleep(0.05)
        (os.killpg if whom == "all ranks" else os.kill)(process.pid, signal.SIGINT)
        one, two = finish(tmp_path, process)
        assert nobody_left(process)
    assert one["status"] == two["status"] == "interrupted"
    assert one["updates"] == two["updates"] >= 3
    assert all(torch.equal(one["state"][name], two["state"][name]) for name in one["state"])
    assert contents(last(tmp_path))["global_step"] == one["updates"]


SIZES = make_sizes([4, 3], [2, 1])


class Loss(torch.nn.Module):
    """One update's loss as `EZMModule` computes it."""

    def __init__(self, entropy: float = 0.0) -> None:
        super().__init__()
        # The entropy's noise is drawn rank by rank, so that term differs.
        self.experiment = make_experiment({"loss": {"entropy": entropy}, "model": {"initial_log_std": 0.0}})
        self.model = make_model(self.experiment, SIZES)

    def forward(self, batch: Batch, targets: Targets) -> torch.Tensor:
        self.model.normalizer.update(batch.observation[:, 0])
        noise = torch.Generator().manual_seed(0)
        unrolled = unroll(self.model, batch, targets, self.experiment.targets, noise)
        return losses(unrolled, self.experiment.loss).total


def batch_and_targets() -> tuple[Batch, Targets]:
    experiment = make_experiment()
    batch = make_batch(experiment, SIZES, size=16)
    batch = batch._replace(weight=torch.linspace(0.1, 1, 16))
    return batch, make_targets(experiment, SIZES, batch)


def half(parts: Any, rank: int) -> Any:
    return type(parts)(*(part[8 * rank : 8 * rank + 8] for part in parts))


def gradients_on(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    loss = Loss()
    wrapped = torch.nn.parallel.DistributedDataParallel(loss)
    batch, targets = batch_and_targets()
    wrapped(half(batch, rank), half(targets, rank)).backward()
    found = {name: parameter.grad for name, parameter in loss.named_parameters()}
    torch.save({"gradients": found, "state": loss.state_dict()}, f"{folder}/{rank}")
    torch.distributed.destroy_process_group()


GRADIENTS = """
import sys
from test_ranks import gradients_on
gradients_on(int(sys.argv[1]), sys.argv[2])
"""


def test_two_ranks_have_the_gradients_of_one(tmp_path: Path) -> None:
    """The same batch, halved: gradients and statistics to float tolerance, and equal bit for bit."""
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    ranks = [
        fork_server.start(["-c", GRADIENTS, str(rank), str(tmp_path)], cwd=tmp_path, env=environment)
        for rank in range(2)
    ]
    assert [rank.wait(PATIENCE) for rank in ranks] == [0, 0]
    one, two = (torch.load(tmp_path / str(rank), weights_only=True) for rank in range(2))
    whole = Loss()
    whole(*batch_and_targets()).backward()
    # A bias before BatchNorm has no gradient but rounding errors, so all are measured by the largest.
    largest = max(float(x.grad.abs().max()) for x in whole.parameters() if x.grad is not None)
    for name, parameter in whole.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(one["gradients"][name], two["gradients"][name]), name
        torch.testing.assert_close(one["gradients"][name], parameter.grad, rtol=1e-3, atol=2e-5 * largest)
    for name, expected in whole.state_dict().items():
        assert torch.equal(one["state"][name], two["state"][name]), name
        torch.testing.assert_close(one["state"][name], expected, rtol=1e-5, atol=1e-5)


def test_what_is_counted_over_ranks_is_divided() -> None:
    experiment = fit_experiment({"targets": {"search_value_age": 7}, "replay": {"capacity": 1000}})
    share = per_rank(experiment, Ranks(1, 2))
    assert (share.optim.batch_size, share.collect.env_steps, share.collect.random_steps) == (4, 750, 300)
    assert (share.replay.capacity, share.targets.search_value_age) == (500, 4)
    assert share.env == experiment.env and share.loss == experiment.loss
    assert per_rank(experiment, Ranks()) == experiment
    with pytest.raises(SpecError, match=r"optim\.batch_size 8 cannot be divided equally among 3 ranks"):
        per_rank(experiment, Ranks(0, 3))


@dataclass
class Meeting:
    """Where ranks that are threads of this process meet."""

    size: int
    barrier: threading.Barrier = field(init=False)
    told: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.size)

    def exchange(self, rank: int, mine: Any) -> list[Any]:
        self.told[rank] = mine
        self.barrier.wait(30)
        everyone = [self.told[rank] for rank in range(self.size)]
        self.barrier.wait(30)
        return everyone


@dataclass(frozen=True)
class ThreadRanks(Ranks):
    """Ranks whose connection is a `Meeting`."""

    def gather(self, values: Any) -> NDArray[np.float64]:
        return np.array(self.group.exchange(self.rank, np.asarray(values, np.float64)))

    def gather_objects(self, mine: Any) -> list[Any]:
        return self.group.exchange(self.rank, mine)


class Fleet:
    """Two data modules with filled buffers, and collectors that are never started."""

    def __init__(self) -> None:
        experiment = fit_experiment(merge({"replay": {"min_importance": 0.2}}, {"optim": {"batch_size": 16}}))
        task_sizes, meeting = sizes(experiment.tasks), Meeting(2)
        self.data = [
            SelfPlayDataModule(experiment, task_sizes, ThreadRanks(rank, 2, 2, meeting)) for rank in range(2)
        ]
        for rank, data in enumerate(self.data):
            random = np.random.default_rng(rank)
            rows, width = 4, task_sizes.obs_size
            for step in range(60):
                nobody = np.zeros(rows, bool)
                observation = random.normal(size=(rows, width)).astype(np.float32)
                action = np.zeros((rows, task_sizes.action_size), np.float32)
                reward = np.full(rows, 1.0 + 9 * rank, np.float32)
                data.buffer.add(observation, action, reward, nobody, nobody | (step == 59), observation)
            data.sync.count(Collector(
                data.per_rank, task_sizes, data.buffer, None, None, data.store, data.pacing,  # type: ignore[arg-type]
                device=torch.device("cpu"), rank=rank, collected=100 * (rank + 1),
            ))  # fmt: skip

    def sync_ranks(self, windows: list[Any]) -> list[Any]:
        """What each rank's `sync_ranks` returns or raises."""
        answers: list[Any] = [None, None]

        def ask(rank: int) -> None:
            try:
                answers[rank] = self.data[rank].sync.sync_ranks(windows[rank], self.data[rank].buffer)
            except RuntimeError as error:
                answers[rank] = error

        threads = [threading.Thread(target=ask, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return answers


def test_weights_and_return_scales_are_those_of_the_global_batch() -> None:
    fleet = Fleet()
    for rank, data in enumerate(fleet.data):
        # Unequal priorities, so that weights differ: rank 1's rarest position is much rarer.
        spread = np.linspace(1, 5 if rank == 0 else 50, 200)
        for task in range(2):
            tasks = np.full(100, task)
            index = np.arange(100)
            ids = data.buffer.blocks.transition_id[task].ravel()[index]
            data.buffer.update_priorities(tasks, index, ids, spread[index])
    sampled = [data.buffer.sample(8) for data in fleet.data]
    agreed = fleet.sync_ranks(sampled)
    for task in range(2):
        maximum = max(windows.max_weight[task] for windows in sampled)
        raw = [w.weight[w.task == task] * w.max_weight[task] for w in sampled]
        expected = [np.clip(weights / maximum, 0.2, 1) for weights in raw]
        for rank in range(2):
            np.testing.assert_allclose(agreed[rank].weight[agreed[rank].task == task], expected[rank], 1e-5)
        assert max(w.weight[w.task == task].max() for w in agreed) == 1
    squares, counts = (
        sum(getattr(data.buffer.returns, name) for data in fleet.data) for name in ("squares", "count")
    )
    for windows in agreed:
        np.testing.assert_allclose(windows.return_scale, np.sqrt(squares / counts)[windows.task], 1e-5)
    assert all((data.sync.control_steps == 300).all() for data in fleet.data)


def test_ranks_go_on_only_when_all_have_a_batch() -> None:
    fleet = Fleet()
    windows = fleet.data[0].buffer.sample(8)
    assert fleet.sync_ranks([windows, None]) == [None, None]
    assert not any(data.sync.interrupted.is_set() for data in fleet.data)


def test_one_that_is_asked_to_stop_stops_all() -> None:
    fleet = Fleet()
    fleet.data[1].sync.ask_to_stop()
    assert not fleet.data[1].sync.interrupted.is_set(), "not before the others have heard"
    assert fleet.sync_ranks([data.buffer.sample(8) for data in fleet.data]) == [None, None]
    assert all(data.sync.interrupted.is_set() for data in fleet.data)


def test_a_collector_s_failure_reaches_all_ranks() -> None:
    fleet = Fleet()
    assert fleet.data[1].sync.collector is not None
    fleet.data[1].sync.collector._failure = ZeroDivisionError("physics broke")
    one, two = fleet.sync_ranks([fleet.data[0].buffer.sample(8), None])
    assert isinstance(one, RankError) and "rank 1: self-play failed" in str(one)
    assert isinstance(two, CollectorError) and isinstance(two.__cause__, ZeroDivisionError)
