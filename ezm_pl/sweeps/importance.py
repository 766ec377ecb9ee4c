"""Which searched field mattered: Optuna's importances, over a study rebuilt from what MLflow holds."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

LEAST_TRIALS = 10
"""Complete trials below which importances would be noise."""

STEADY_TRIALS = 20
"""Complete trials from which the best quarter holds the five that PED-ANOVA's authors ask for."""

_BEST = 0.25
"""Share of trials that count as the best. Optuna's default, a tenth, is one trial out of ten."""


def importances(
    trials: Sequence[tuple[Mapping[str, Any], float]],
    *,
    direction: Literal["maximize", "minimize"],
    log: Sequence[str] = (),
) -> dict[str, float]:
    """Share of each field in reaching the best quarter of the trials (PED-ANOVA, arXiv 2304.10255).

    PED-ANOVA is Optuna's default and needs nothing beyond Optuna; its fANOVA and mean decrease in
    impurity need scikit-learn.

    Args:
        trials: (field to value, objective) of complete trials, objectives finite.
        direction: `maximize` or `minimize`.
        log: fields searched on a logarithmic scale.

    Returns:
        Field to share, summing to 1, greatest first. Empty below `LEAST_TRIALS`, where nothing was
        searched, and where all objectives are alike.
    """
    objectives = [objective for _, objective in trials]
    names = list(dict.fromkeys(name for values, _ in trials for name in values))
    if len(trials) < LEAST_TRIALS or not names or np.ptp(objectives) == 0:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {
        name: _distribution([values[name] for values, _ in trials if name in values], log=name in log)
        for name in names
    }
    study = optuna.create_study(direction=direction)
    study.add_trials(
        [
            optuna.trial.create_trial(
                params=dict(values), distributions={name: space[name] for name in values}, value=objective
            )
            for values, objective in trials
        ]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of too few trials: the report says so itself
        return optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator(target_quantile=_BEST)
        )


def _distribution(values: Sequence[Any], *, log: bool) -> BaseDistribution:
    """The range that was seen: MLflow holds values, not Optuna's own objects."""
    kinds = {type(value) for value in values}
    if kinds == {int}:
        return IntDistribution(min(values), max(values), log=log and min(values) > 0)
    if kinds <= {int, float}:
        return FloatDistribution(min(values), max(values), log=log and min(values) > 0)
    return CategoricalDistribution(sorted(set(values), key=str))
