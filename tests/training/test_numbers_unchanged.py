"""Targets, losses and gradients of the presets equal recorded numbers: an update computes what it did.

`recorded_update.json` holds the numbers of commit 723c277, which on other batches were those of ff126c6. On
these batches weights changed by a rounding, 6e-8 of their size, move no number by more than 1e-5 of it. On
others a ReLU of the paper's networks is so close to zero that this moves a gradient by 5e-4. Run as a script
(with `tests/training` in `PYTHONPATH`), this file prints the numbers of the present tree.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from training_helpers import make_batch, make_sizes

from ezm_pl.spec import build_experiment
from ezm_pl.spec.presets import merge
from ezm_pl.training.losses import losses, unroll
from ezm_pl.training.module import EZMModule

PLAIN = {
    "name": "recorded",
    "tasks": ["h1-walk", "h1-run"],
    "search": {"dtype": "float32"},
    "trainer": {"precision": "32-true", "accelerator": "cpu", "devices": 1},
}
SIZES = make_sizes([51, 44], [19, 13])
H1_LAPTOP = Path(__file__).parents[2] / "experiments" / "h1_laptop.yaml"
RECORDED = json.loads((Path(__file__).parent / "recorded_update.json").read_text(encoding="utf-8"))


def document(name: str) -> dict[str, Any]:
    """What is recorded under `name`: a preset, or `experiments/h1_laptop.yaml`."""
    if name == "h1_laptop":
        return merge(yaml.safe_load(H1_LAPTOP.read_text(encoding="utf-8")), PLAIN)
    every_position = {"targets": {"search_every": 1}} if name == "laptop" else {}  # as it was recorded
    return PLAIN | {"preset": name} | every_position


def numbers(name: str) -> dict[str, float]:
    """The second of two updates' targets, losses and gradients, on two random batches."""
    experiment = build_experiment(document(name))
    module = EZMModule(experiment, SIZES)
    module.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for head in (module.model.reward_head, module.model.policy_head):
            torch.nn.init.normal_(head.weights[2], std=0.01)  # they start at zero
    module.actor_weights.load(module.model)
    module.target.load(module.model)
    noise = module.generator("entropy")
    optimizer = torch.optim.SGD(module.model.parameters(), lr=1e-4)
    for seed in (1, 8):
        optimizer.zero_grad()
        batch = make_batch(
            experiment, SIZES, 6, seed, length=[10, 10, 3, 2, 1, 4], terminated=[False, True] * 3
        )
        batch = batch._replace(weight=torch.linspace(0.1, 1, 6), age=torch.arange(6) * 10_000)
        targets = module.reanalyse(batch, 5_000)
        module.model.normalizer.update(batch.observation[:, 0])
        found = losses(
            unroll(module.model, batch, targets, experiment.targets, noise, module.spread), experiment.loss
        )
        found.total.backward()
        optimizer.step()
    parameters, state = dict(module.model.named_parameters()), module.model.state_dict()
    parts: dict[str, float] = {}
    for key, parameter in parameters.items():
        part = key.split(".")[0]
        gradient = 0.0 if parameter.grad is None else float(parameter.grad.square().sum())
        parts[part] = parts.get(part, 0.0) + gradient
    return {
        "parameters": float(sum(p.numel() for p in parameters.values())),
        "target value": float(targets.value.mean()),
        "target action": float(targets.action.abs().mean()),
        "target weight": float(targets.action_weight.square().mean()),
        "total": float(found.total.detach()),
        **{f"loss {key}": float(each) for key, each in found.terms.items()},
        "value error": float(found.value_error.abs().mean()),
        **{key: float(each) for key, each in found.diagnostics.items()},
        **{f"gradient {part}": squares**0.5 for part, squares in parts.items()},
        "statistics": float(sum(x.abs().sum() for name, x in state.items() if name not in parameters)),
    }


@pytest.mark.parametrize("name", RECORDED)
def test_an_update_computes_what_it_did(name: str) -> None:
    assert numbers(name) == pytest.approx(RECORDED[name], rel=1e-4)


if __name__ == "__main__":
    print(json.dumps({name: numbers(name) for name in RECORDED}, indent=1))
