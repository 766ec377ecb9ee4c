"""`ezm train SPEC --init RUN`: a new run's first weights are those of a trained world model.

Tasks differ in what they observe and in what they act on, so what belongs to a single observation, actuator
or task is carried over by its name (docs/transfer.md); everything else is carried over whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from ezm_pl.envs import sizes
from ezm_pl.envs.signals import task_signals
from ezm_pl.spec import Experiment, SpecError
from ezm_pl.training.fault_tolerance.checkpoint import (
    checkpoint_experiment,
    experiment_of,
    read_checkpoint,
)
from ezm_pl.training.module import EZMModule
from ezm_pl.world_model import WorldModel

_SHAPES = (
    "latent_size", "task_conditioning", "task_embedding_size", "task_embedding_in", "action_embedding_size",
    "blocks", "head_size", "value_heads", "projector_size", "projection_size", "atoms", "support",
    "head_norm",
)  # fmt: skip
"""Fields of `model` that the weights belong to; the others may differ."""
_OWN = {
    "normalizer.mean": (0, ("observation",)),
    "normalizer.variance": (0, ("observation",)),
    "encoder.0.weight": (1, ("observation", "same")),
    "dynamics.norm.weight": (0, ("latent", "action", "same")),
    "dynamics.norm.bias": (0, ("latent", "action", "same")),
    "dynamics.inner.weight": (1, ("latent", "action", "same")),
    "action_encoder.0.weight": (1, ("action", "same")),
    "policy_head.weights.2": (1, ("action", "action")),
    "policy_head.biases.2": (1, ("action", "action")),
    "decoder.weight": (0, ("observation",)),
    "decoder.bias": (0, ("observation",)),
    "task_embedding": (0, ("task",)),
}
"""Parameters with entries of single observations, actuators or tasks: their axis, and the order along it."""
_NOT_CARRIED = "described.training_", "described.held_out_"
"""Beginnings of the names of what describes the new run's own tasks."""
_NEW_COUNT = 10_000.0
"""Rows that the normaliser counts as seen where observations are new, so that it gets to know them soon."""


@dataclass(frozen=True)
class CarriedOver:
    """What a new run takes from a trained one.

    Attributes:
        source: the checkpoint.
        observation, action, task: pairs `[n, 2]` of the new index and the old one.
        new: names of what is not carried over, by kind.
    """

    source: Path
    observation: Tensor
    action: Tensor
    task: Tensor
    new: dict[str, list[str]]

    def __str__(self) -> str:
        kinds = {"observation": "observations", "action": "actuators", "task": "tasks"}
        parts = []
        for kind, plural in kinds.items():
            kept, new = len(getattr(self, kind)), self.new[kind]
            listed = f" (new: {', '.join(new[:6])}{', ...' if len(new) > 6 else ''})" if new else ""
            parts.append(f"{kept} of {kept + len(new)} {plural}{listed}")
        return f"first weights from {self.source}: {', '.join(parts)}"


def plan_transfer(checkpoint: Path, experiment: Experiment) -> CarriedOver:
    """What a run of `experiment` can take over from a checkpoint.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        SpecError: its networks have other sizes, or nothing that it observes is observed here.
    """
    source = checkpoint_experiment(checkpoint)
    if {source.agent, experiment.agent} != {"ezm"}:
        raise SpecError(
            f"--init {checkpoint}: agent {source.agent} there, {experiment.agent} here; both must be ezm"
        )
    old, new = source.model.model_dump(), experiment.model.model_dump()
    differing = [
        f"model.{name}: {old[name]} there, {new[name]} here" for name in _SHAPES if old[name] != new[name]
    ]
    if bool(source.loss.observation) != bool(experiment.loss.observation):
        has = ["without", "with"]
        there, here = (has[bool(each.loss.observation)] for each in (source, experiment))
        differing.append(f"loss.observation: {there} a decoder there, {here} one here")
    if differing:
        raise SpecError(f"--init {checkpoint}: its weights do not fit: {'; '.join(differing)}")
    pairs, unknown = {}, {}
    names = [_names(each) for each in (source, experiment)]
    for kind in ("observation", "action", "task"):
        pairs[kind], unknown[kind] = _matched(names[0][kind], names[1][kind])
    if not len(pairs["observation"]):
        raise SpecError(f"--init {checkpoint}: it observes nothing that these tasks observe")
    return CarriedOver(checkpoint, **pairs, new=unknown)


class InitialWeights(Callback):
    """Carries weights over before the first update; what a resumed run restores comes after it.

    Args:
        plan: from `plan_transfer`.
    """

    def __init__(self, plan: CarriedOver) -> None:
        self.plan = plan
        self._done = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Carries them over, once."""
        if not self._done:
            assert isinstance(pl_module, EZMModule)
            carry_over(self.plan, pl_module)
        self._done = True


def carry_over(plan: CarriedOver, module: EZMModule) -> None:
    """Gives `module` the weights of the plan's checkpoint, to all of its copies of the world model."""
    contents = read_checkpoint(plan.source)
    experiment = experiment_of(contents, plan.source)
    source = EZMModule(experiment, sizes(experiment.tasks))
    source.load_state_dict(contents["state_dict"])
    _copy(plan, source.smoothed, module.model)
    if module.average is not None:
        module.average.load_state_dict(module.model.state_dict())
    module.actor_weights.load(module.model)
    module.target.load(module.model)


@torch.no_grad()
def _copy(plan: CarriedOver, source: WorldModel, model: WorldModel) -> None:
    theirs = source.state_dict()
    for name, mine in model.state_dict().items():
        if name.startswith(_NOT_CARRIED):
            continue
        if name not in _OWN:
            mine.copy_(theirs[name])
            continue
        axis, parts = _OWN[name]
        given = theirs[name]
        sizes_here, sizes_there = (_lengths(each, parts, tensor.shape[axis]) for each, tensor in
                                   ((model, mine), (source, given)))  # fmt: skip
        index = []
        here = there = 0
        for part, length, before in zip(parts, sizes_here, sizes_there, strict=True):
            same = torch.arange(length).unsqueeze(1).expand(-1, 2)
            index.append(
                (same if part in ("latent", "same") else getattr(plan, part)) + torch.tensor([here, there])
            )
            here, there = here + length, there + before
        to, at = torch.cat(index).unbind(1)
        if name == "encoder.0.weight":
            mine[:, : sizes_here[0]] = 0  # what is new does not disturb the latent at first
        if name == "task_embedding":
            mine.copy_(source.capped_embedding().mean(0).expand_as(mine))
        mine.index_copy_(axis, to, given.index_select(axis, at))
    if plan.new["observation"]:
        model.normalizer.count.clamp_(max=_NEW_COUNT)


def _lengths(model: WorldModel, parts: Sequence[str], whole: int) -> list[int]:
    """How long each part of an axis of length `whole` is; at most one of them is `same`."""
    tasks, actions = model.action_mask.shape
    known = {
        "observation": len(model.normalizer.mean),
        "action": actions,
        "task": tasks,
        "latent": model.spec.latent_size,
    }
    rest = whole - sum(known.get(part, 0) for part in parts)
    return [known.get(part, rest) for part in parts]


Names = list[frozenset[str]]


def _names(experiment: Experiment) -> dict[str, Names]:
    """The names that each column of the padded observations and actions has in the tasks, and the tasks'."""
    signals = {task: task_signals(task, experiment.env.backend) for task in experiment.tasks}
    observations = [[_own(each.name, task) for each in of.observation] for task, of in signals.items()]
    actions = [[_own(each.name, task) for each in of.action] for task, of in signals.items()]
    return {
        "observation": _columns(observations),
        "action": _columns(actions),
        "task": [frozenset([task]) for task in experiment.tasks],
    }


def _own(name: str, task: str) -> str:
    """The name; with the task's where it is only a number among those that have no name of their own."""
    return f"{task} {name}" if re.fullmatch(r"(observation|action|task\d+)\[\d+\]", name) else name


def _columns(named: list[list[str]]) -> Names:
    width = max(map(len, named))
    return [frozenset(names[column] for names in named if column < len(names)) for column in range(width)]


def _matched(old: Names, new: Names) -> tuple[Tensor, list[str]]:
    """Pairs `[n, 2]` of a new column and the old one of the same name, and the names without one.

    A column that stands for different things in different tasks matches where it did so before.
    """
    single = {names: column for column, names in reversed(list(enumerate(old))) if len(names) == 1}
    pairs, unknown = [], []
    for column, names in enumerate(new):
        at = single.get(names)
        if at is None and column < len(old) and old[column] == names:
            at = column
        if at is None:
            unknown.append(" or ".join(sorted(names)))
        else:
            pairs.append([column, at])
    return torch.tensor(pairs, dtype=torch.long).view(-1, 2), unknown
