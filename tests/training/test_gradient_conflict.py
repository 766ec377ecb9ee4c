"""Gradient conflict: cosines by hand, gradients that add up to the update's own, runs that stay the same."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fit_helpers import contents, fit_experiment, last, run
from PIL import Image
from torch import nn
from training_helpers import make_batch, make_experiment, make_model, make_sizes, make_targets

from ezm_pl.tracking.results.gradient_conflict import CONFLICT, conflict_figure, mean_cosines
from ezm_pl.training.gradient_conflict import (
    FILE,
    PARTS,
    cosines,
    half_of_each_task,
    shared_parts,
    summary,
    task_gradients,
)
from ezm_pl.training.losses import losses, unroll

SIZES = make_sizes([4, 3], [2, 1])


def test_gradients_of_the_groups_add_up_to_those_of_the_update() -> None:
    """In training mode, with BatchNorm over the whole batch; the graph is there for the update afterwards."""
    experiment = make_experiment()
    model = make_model(experiment, SIZES)
    batch = make_batch(experiment, SIZES, 9)
    targets = make_targets(experiment, SIZES, batch)
    found = losses(unroll(model, batch, targets, experiment.targets, torch.Generator()), experiment.loss)
    torch.testing.assert_close(found.windows.sum(), found.total)
    parts = shared_parts(model)
    assert list(parts) == list(PARTS)
    groups = half_of_each_task(batch.task, 2)
    assert groups.sum(0).tolist() == [1] * 9 and groups.sum(1).tolist() == [3, 2, 2, 2]
    gradients = task_gradients(found.windows, groups, parts)
    assert all(parameter.grad is None for parameter in model.parameters())
    found.total.backward()
    for part, parameters in parts.items():
        whole = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        # Random targets far from a narrow policy: gradients of 1e7, in which float32 rounds by units.
        largest = float(whole.abs().max())
        torch.testing.assert_close(gradients[part].sum(0), whole, rtol=1e-3, atol=1e-6 * largest, msg=part)


def test_cosines_by_hand() -> None:
    """Tasks: (1, 0) twice; (0, 3) and (0, -1), so (0, 2) in all; none at all; (-2, 0) and (-1, 0)."""
    halves = torch.tensor([[[1.0, 0], [0, 3], [0, 0], [-2, 0]], [[1.0, 0], [0, -1], [0, 0], [-1, 0]]])
    found = cosines(halves)
    assert found[0].tolist()[:2] == [1, 0] and found[3, 0] == -1 and found[1, 1] == -1 and found[3, 3] == 1
    assert found[2].isnan().all() and found[:, 2].isnan().all()
    metrics = summary({"dynamics": found.tolist()})
    assert metrics == pytest.approx({
        "gradient_conflict/dynamics/cosine": -1 / 3,
        "gradient_conflict/dynamics/conflicting": 1 / 3,
        "gradient_conflict/dynamics/own_cosine": 1 / 3,
    })  # fmt: skip


def test_a_learner_with_other_parts_is_measured_by_those_that_it_has() -> None:
    """As a model-free baseline: an encoder, Q heads and a policy."""
    learner = nn.ModuleDict(
        {"encoder": nn.Linear(2, 2), "q_heads": nn.Linear(2, 1), "policy_head": nn.Linear(2, 1)}
    )
    learner.other = nn.Linear(2, 2)
    parts = shared_parts(learner)
    assert {part: len(parameters) for part, parameters in parts.items()} == {
        "representation": 2,
        "value_policy": 4,
    }


def test_a_run_measures_at_its_interval_and_is_otherwise_the_same(tmp_path: Path) -> None:
    """In lockstep: equal weights with and without; a heat map can be drawn of what the run leaves."""
    assert FILE == CONFLICT
    deterministic = {"trainer": {"deterministic": True}, "env": {"workers": "sync"}}
    measured = {"trainer": {"deterministic": True, "gradient_conflict_every": 2}, "env": {"workers": "sync"}}
    run(fit_experiment(deterministic), tmp_path / "plain", progress=False)
    run(fit_experiment(measured), tmp_path / "measured", progress=False)
    plain, other = (contents(last(tmp_path / name))["state_dict"] for name in ("plain", "measured"))
    for name, tensor in plain.items():
        assert torch.equal(tensor, other[name]), name
    file = tmp_path / "measured" / FILE
    document = json.loads(file.read_text())
    assert [each["update"] for each in document["measured"]] == [0, 2, 4]
    tasks, means, span = mean_cosines(file)
    assert len(tasks) == 2 and span == (3, 0, 4) and list(means) == list(PARTS)
    assert all(-1 <= means[part][1, 0] <= 1 for part in PARTS if math.isfinite(means[part][1, 0]))
    np.testing.assert_allclose(means["dynamics"], means["dynamics"].T * np.ones((2, 2)), atol=1e-6)
    conflict_figure(file, tmp_path / "figure.png", title="a run")
    with Image.open(tmp_path / "figure.png") as picture:
        assert picture.width > 600
