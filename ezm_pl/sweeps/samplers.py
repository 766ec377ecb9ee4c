"""Optuna's samplers, pruners and distributions for a sweep's spec."""

from __future__ import annotations

import warnings

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from ezm_pl.spec import Experiment
from ezm_pl.spec.sweep import Dimension, SweepSpec


def new_sampler(spec: SweepSpec, seed: int) -> BaseSampler:
    """The sampler of one trial; a grid's trials hold their values already."""
    if spec.sampler != "tpe":
        return RandomSampler(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant_liar is marked experimental
        return TPESampler(seed=seed, constant_liar=True)


def new_pruner(spec: SweepSpec, experiment: Experiment) -> BasePruner:
    """The pruner of a grid point; its steps are updates."""
    pruner = spec.pruner
    if pruner.kind == "median":
        return MedianPruner(n_startup_trials=pruner.startup_trials, n_warmup_steps=pruner.warmup_updates)
    if pruner.kind == "hyperband":
        return HyperbandPruner(
            min_resource=max(pruner.warmup_updates, min(experiment.eval.every, experiment.max_steps)),
            max_resource=experiment.max_steps,
            reduction_factor=pruner.reduction,
        )
    return NopPruner()


def distribution(dimension: Dimension, whole: bool) -> BaseDistribution:
    """A searched field's distribution, over `whole` numbers or any."""
    if dimension.choices is not None:
        return CategoricalDistribution(dimension.choices)
    low, high = dimension.bounds()
    if whole:
        return IntDistribution(int(low), int(high), log=dimension.log, step=int(dimension.step or 1))
    return FloatDistribution(low, high, log=dimension.log, step=dimension.step)
