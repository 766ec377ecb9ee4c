"""Whether a checkpoint's contents are built as the state of the run that is to go on from it.

Lightning restores part after part and fails somewhere inside if one does not fit: this asks beforehand.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from ezm_pl.training.checkpoint import CheckpointError, read_checkpoint
from ezm_pl.training.data import SelfPlayDataModule
from ezm_pl.training.module import EZMModule


def check_contents(path: Path, trainer: Trainer, module: EZMModule, data: SelfPlayDataModule) -> None:
    """Raises `CheckpointError` naming the first part of a checkpoint that is not as this run's own state."""
    contents = read_checkpoint(path)
    callbacks = {callback.state_key: _callback_like(callback) for callback in trainer.callbacks}  # type: ignore[attr-defined]
    expected: dict[str, Any] = {
        "state_dict": module.state_dict(),
        "optimizer_states": [_fits_optimizer(module.configure_optimizers())],
        "loops": {"fit_loop": trainer.fit_loop.state_dict()},
        "callbacks": {key: state for key, state in callbacks.items() if state},
        "global_step": 0,
        "lr_schedulers": [],
        "pytorch-lightning_version": _is_version,
        "generators": _are_generators,
        "SelfPlayDataModule": {key: _counts_like(value) for key, value in data.state_dict().items()},
    }
    for part, wanted in expected.items():
        found = contents[part]
        if part in ("loops", "callbacks") and isinstance(found, dict):
            # Other loops and callbacks that a checkpoint speaks of are of no concern.
            found = {key: found[key] for key in wanted if key in found}
            if part == "callbacks":
                wanted = {key: wanted[key] for key in found}
        problem = structure_problem(wanted, found, part)
        if problem is not None:
            raise CheckpointError(f"{path}: does not fit this experiment: {problem} is not as expected")


def structure_problem(expected: Any, found: Any, where: str) -> str | None:
    """The first place at which nested dicts and lists are not built alike: keys, types, tensors' shapes.

    An expected function tests a leaf: it returns whether that fits.
    """
    if callable(expected):
        return None if expected(found) else where
    if isinstance(expected, dict):
        if not isinstance(found, dict) or expected.keys() != found.keys():
            return where
        pairs = ((f"{where}.{key}", expected[key], found[key]) for key in expected)
    elif isinstance(expected, list | tuple):
        if not isinstance(found, list | tuple) or len(expected) != len(found):
            return where
        pairs = ((f"{where}[{i}]", e, f) for i, (e, f) in enumerate(zip(expected, found, strict=True)))
    elif isinstance(expected, Tensor):
        same = isinstance(found, Tensor) and (expected.shape, expected.dtype) == (found.shape, found.dtype)
        return None if same else where
    else:
        return None if isinstance(found, type(expected)) or expected is None else where
    problems = (structure_problem(inner, got, place) for place, inner, got in pairs)
    return next((problem for problem in problems if problem), None)


def _fits_optimizer(optimizer: torch.optim.Optimizer) -> Callable[[Any], bool]:
    """A test of an Adam's state dict, which has no moments before the first update."""
    (group,) = optimizer.state_dict()["param_groups"]
    parameters = optimizer.param_groups[0]["params"]

    def fits(found: Any) -> bool:
        if not isinstance(found, dict) or not isinstance(found.get("state"), dict):
            return False
        moments = {
            i: {"step": torch.zeros(()), "exp_avg": x.detach(), "exp_avg_sq": x.detach()}
            for i, x in enumerate(parameters)
        }
        wanted = {"state": moments if found["state"] else {}, "param_groups": [group]}
        return structure_problem(wanted, found, "") is None

    return fits


def _callback_like(callback: Callback) -> dict[str, Any]:
    """What is expected of a callback's state: its keys, and of `ModelCheckpoint`, which we use, the types."""
    state = callback.state_dict()
    if not isinstance(callback, ModelCheckpoint):
        return dict.fromkeys(state)
    by_type: dict[type, Any] = {str: "", dict: _are_scores}
    return {key: by_type.get(type(value), _is_score) for key, value in state.items()}


def _is_score(found: Any) -> bool:
    return found is None or (isinstance(found, Tensor) and found.is_floating_point() and found.ndim == 0)


def _are_scores(found: Any) -> bool:
    return isinstance(found, dict) and all(
        isinstance(path, str) and score is not None and _is_score(score) for path, score in found.items()
    )


def _is_version(found: Any) -> bool:
    """Lightning converts the checkpoints of older ones, which never were ours."""
    return isinstance(found, str) and re.fullmatch(r"2(\.\d+)+((rc|\.dev|\.post)\d+)?", found) is not None


def _are_generators(found: Any) -> bool:
    return isinstance(found, dict) and all(
        isinstance(name, str) and isinstance(state, Tensor) and state.dtype == torch.uint8
        for name, state in found.items()
    )


def _counts_like(own: Any) -> Callable[[Any], bool]:
    """A test of a counter or a tensor of counters, whose first dimension of two (ranks) may be another."""

    def fits(found: Any) -> bool:
        if not isinstance(own, Tensor):
            return type(found) is int and found >= 0
        if not isinstance(found, Tensor) or found.dtype != torch.int64 or found.ndim != own.ndim:
            return False
        return len(found) > 0 and found.shape[-1] == own.shape[-1] and bool((found >= 0).all())

    return fits
