"""A resolved spec as MLflow params: one per field, `model.latent_size` and the like."""

from __future__ import annotations

import json
from typing import Any

from ezm_pl.spec import Experiment, flatten


def spec_params(experiment: Experiment) -> dict[str, str]:
    """Every field, dotted; lists as `a, b`, numbers and switches as in JSON; `num_tasks`, to plot against."""
    fields = {key: _text(value) for key, value in flatten(experiment.model_dump(mode="json")).items()}
    return {**fields, "num_tasks": str(len(experiment.tasks))}


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value)
    return json.dumps(value)
