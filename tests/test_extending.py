"""docs/extending.md does what it says: its files are written out, checked, and trained with."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import fork_server
import pytest
import torch
import yaml
from torch import Tensor
from workplaces import new_project

from ezm_pl.search import Planner
from ezm_pl.spec import SpecError, build_experiment
from ezm_pl.spec.experiment import SearchSpec
from ezm_pl.spec.io import parse_settings
from ezm_pl.spec.metrics import logged_metrics
from ezm_pl.spec.sweep_plan import load_sweep
from ezm_pl.tracking.store import open_store
from ezm_pl.world_model import SquashedGaussian

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
FILES = ("my_losses", "my_tasks", "my_proposals")
TERM, TASK, PROPOSAL = "my_losses:smoothness", "my_tasks:h1-bell", "my_proposals:Mirrored"
SETTINGS = (
    "env.num_envs=1",
    "optim.total_updates=6",
    "collect.env_steps=600",
    "collect.random_steps=400",
    "collect.max_lead=1.0",
    "eval.every=1000",
    "trainer.log_every=1",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
)

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workplace with the page's files in it, each under the name that the page gives it."""
    folder = tmp_path_factory.mktemp("extending")
    blocks = re.findall(
        r"`(my_\w+)\.py`:\n\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    assert [name for name, _ in blocks] == list(FILES)
    for name, code in blocks:
        (folder / f"{name}.py").write_text(code, encoding="utf-8")
    return folder


@pytest.fixture
def importable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's files can be imported, and are not yet."""
    monkeypatch.syspath_prepend(str(folder))
    for name in FILES:
        monkeypatch.delitem(sys.modules, name, raising=False)


def document(**parts: object) -> dict[str, object]:
    return {"name": "own", "preset": "smoke", "tasks": ["h1-walk"], **parts}


def test_a_run_with_all_three_is_trained_and_logged(folder: Path) -> None:
    spec = document(
        tasks=[TASK, "h1-walk"],
        loss={"extra": {TERM: 0.01}},
        search={"proposal": PROPOSAL, "dtype": "float32"},
    )
    (folder / "own.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    words = [word for setting in SETTINGS for word in ("--set", setting)]
    done = fork_server.run(["train", "own.yaml", *words], cwd=new_project(folder))
    assert done.returncode == 0, done.stdout + done.stderr

    client = open_store(f"sqlite:///{folder}/mlruns/mlflow.db")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    history = [point.value for point in client.get_metric_history(run.info.run_id, "train/loss/smoothness")]
    assert len(history) >= 5
    assert all(value > 0 for value in history[1:])  # the policy starts as the same in every state
    assert any("h1-bell" in name and "return" in name for name in run.data.metrics)
    assert PROPOSAL in run.data.params.values()


def test_the_weight_counts(importable: None) -> None:
    """The total is the weight times the new term, where all other terms have a weight of zero."""
    sys.path.insert(0, str(Path(__file__).parent / "training"))
    try:
        from training_helpers import make_batch, make_experiment, make_model, make_sizes, make_targets
    finally:
        sys.path.pop(0)
    from ezm_pl.training.losses import TERMS, losses, unroll

    sizes = make_sizes([4, 3], [2, 1])
    for weight in (0.0, 1.0, 3.0):
        experiment = make_experiment({"loss": {**dict.fromkeys(TERMS, 0.0), "extra": {TERM: weight}}})
        model = make_model(experiment, sizes)
        batch = make_batch(experiment, sizes)
        targets = make_targets(experiment, sizes, batch)
        generator = torch.Generator().manual_seed(0)
        found = losses(unroll(model, batch, targets, experiment.targets, generator), experiment.loss)
        assert found.terms["smoothness"] > 0
        torch.testing.assert_close(found.total.detach(), weight * found.terms["smoothness"])


def test_a_sweep_searches_over_the_weight(importable: None, tmp_path: Path) -> None:
    base = document(loss={"extra": {TERM: 0.01}})
    field = f"loss.extra.{TERM}"
    search = {field: {"low": 0.001, "high": 1.0, "log": True}}
    sweep = {"name": "own", "base": "own.yaml", "tasks": [["h1-walk"]], "search": search, "trials": 2}
    for name, content in (("own", base), ("sweep", sweep)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    plan = load_sweep(tmp_path / "sweep.yaml", tasks=None, trials=None, seeds=None, preset=None, gpu=False)
    assert not plan.takes_whole(field)
    assert plan.changed({field: 0.5}, plan.points[0], 0).loss.extra == {TERM: 0.5}
    assert "train/loss/smoothness" in logged_metrics(plan.points[0].experiment)


@pytest.mark.parametrize(
    "setting",
    [
        "tasks_meta.my.waves:wave.success_score=5",
        "tasks_meta.my.waves:wave={success_score: 5}",
        "tasks_meta={my.waves:wave: {success_score: 5}}",
    ],
)
def test_the_name_of_a_task_of_ones_own_keeps_its_dots(setting: str) -> None:
    assert parse_settings([setting]) == {"tasks_meta": {"my.waves:wave": {"success_score": 5}}}


@pytest.mark.parametrize("setting", ["loss.extra.my.losses:term=0.5", "loss.extra={my.losses:term: 0.5}"])
def test_a_term_of_a_module_in_a_package_has_a_weight(setting: str) -> None:
    assert parse_settings([setting]) == {"loss": {"extra": {"my.losses:term": 0.5}}}


class OneGaussian:
    """A model whose policy is the same everywhere."""

    def policy(self, state: Tensor, task: Tensor) -> SquashedGaussian:
        each = torch.ones(len(state), 3)
        return SquashedGaussian(0.3 * each, -2 * each, each)


def test_the_planner_draws_from_the_proposal(importable: None) -> None:
    planner = Planner(SearchSpec(proposal=PROPOSAL, num_root_actions=8), 0.97, action_size=3)
    state, task = torch.zeros(5, 1), torch.zeros(5, dtype=torch.long)
    actions, prior = planner.proposal.root(OneGaussian(), state, task, torch.Generator().manual_seed(0))
    u = torch.atanh(actions) - 0.3
    assert actions.shape == (5, 8, 3) and prior is None
    torch.testing.assert_close(u[:, :4], -u[:, 4:], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        ({"loss": {"extra": {"my_losses:smothness": 1.0}}}, "no function or class 'smothness'; did you mean"),
        ({"loss": {"extra": {"my_loses:smoothness": 1.0}}}, "module 'my_loses' does not import"),
        ({"loss": {"extra": {"smoothness": 1.0}}}, "is not of the form <module>:<name>"),
        ({"loss": {"extra": {TERM: -1.0}}}, "loss.extra"),
        ({"loss": {"extra": {"ezm_pl.training.losses:value": 1.0}}}, "there is another term 'value'"),
        ({"search": {"proposal": TERM}}, "has no from_spec"),
        (
            {"search": {"proposal": "my_proposals:Miror"}},
            "no function or class 'Miror'; did you mean",
        ),
    ],
)
def test_what_does_not_load_is_one_line(importable: None, parts: dict[str, object], line: str) -> None:
    with pytest.raises(SpecError, match=re.escape(line)) as error:
        build_experiment(document(**parts), source="own.yaml")
    assert "\n" not in str(error.value)


def test_the_name_of_the_sum_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_sums.py").write_text("total = extra = print\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    build_experiment(document(loss={"extra": {"my_sums:extra": 1.0}}))
    with pytest.raises(SpecError, match="there is another term 'total'"):
        build_experiment(document(loss={"extra": {"my_sums:total": 1.0}}))
