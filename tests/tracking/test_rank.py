"""Which rank a process is, whatever launchers and shells have left in its environment."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from lightning.pytorch.utilities import rank_zero_only

from ezm_pl.spec import Experiment, SpecError
from ezm_pl.spec.launcher import RANK_VARIABLES, WORLD_VARIABLES, check_launcher_variables
from ezm_pl.training import this_rank

LAUNCHER = (*RANK_VARIABLES, *WORLD_VARIABLES, "MASTER_ADDR", "MASTER_PORT", "SLURM_NTASKS", "SLURM_JOB_NAME")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Without a launcher's variables; what a test and Lightning change is put back."""
    before = rank_zero_only.rank
    for name in LAUNCHER:
        monkeypatch.setenv(name, "")  # so that it is restored, also where the code sets it
        monkeypatch.delenv(name)
    yield monkeypatch
    rank_zero_only.rank = before


def devices(experiment: Experiment, count: int, nodes: int = 1, strategy: str = "auto") -> Experiment:
    trainer = {"accelerator": "cpu", "devices": count, "num_nodes": nodes, "strategy": strategy}
    return experiment.model_copy(update={"trainer": experiment.trainer.model_copy(update=trainer)})


@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("strategy", ["auto", "ddp"])
def test_a_world_of_one_is_rank_zero(
    seed: int, strategy: str, experiment: Experiment, environment: pytest.MonkeyPatch
) -> None:
    """Any leftovers: the run is tracked; only a launcher that has started more processes is refused."""
    draw = random.Random(seed)
    for name in draw.sample(RANK_VARIABLES, draw.randint(1, len(RANK_VARIABLES))):
        environment.setenv(name, str(draw.randint(0, 3)))
    world = draw.choice([None, None, 1, 2])
    if world is not None:
        environment.setenv(draw.choice(WORLD_VARIABLES), str(world))
    rank_zero_only.rank = draw.randint(0, 3)
    one = devices(experiment, 1, strategy=strategy)
    if world == 2:
        with pytest.raises(SpecError, match=r"^trainer: .* is 1, but the launcher has started 2 \(\w+\)$"):
            this_rank(one)
    else:
        assert this_rank(one) == 0
        assert rank_zero_only.rank == 0


@pytest.mark.parametrize("rank", [0, 1])
def test_a_launcher_that_agrees_with_the_spec(
    rank: int, experiment: Experiment, environment: pytest.MonkeyPatch
) -> None:
    variables = {"LOCAL_RANK": rank, "RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": 1234}
    for name, value in variables.items():
        environment.setenv(name, str(value))
    assert this_rank(devices(experiment, 2)) == rank


def test_this_process_starts_the_others(experiment: Experiment, environment: pytest.MonkeyPatch) -> None:
    assert this_rank(devices(experiment, 2)) == 0


@pytest.mark.parametrize(
    ("count", "nodes", "variables", "reason"),
    [
        (2, 1, {"LOCAL_RANK": "1"}, "unset LOCAL_RANK"),
        (2, 1, {"LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_PORT": "1"}, "has started 4"),
        (2, 1, {"NODE_RANK": "1"}, "this is rank 2"),
        (2, 1, {"SLURM_NTASKS": "4"}, "--ntasks"),
    ],
)
def test_contradictions_are_one_line(
    count: int,
    nodes: int,
    variables: dict[str, str],
    reason: str,
    experiment: Experiment,
    environment: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        environment.setenv(name, value)
    with pytest.raises(SpecError) as error:
        this_rank(devices(experiment, count, nodes))
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["x", "", "-1", "1.5", "²"])
def test_variables_that_are_no_numbers(value: str, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("RANK", value)
    with pytest.raises(SpecError, match=r"RANK=.*whole number"):
        check_launcher_variables()
