"""A resolved spec as MLflow params: one per field, `model.latent_size` and the like."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

from ezm_pl.spec import Experiment, flatten


def spec_params(experiment: Experiment) -> dict[str, str]:
    """Every field, dotted, as `field_params`; `num_tasks`, to plot against."""
    return {**field_params(experiment), "num_tasks": str(len(experiment.tasks))}


def field_params(spec: BaseModel) -> dict[str, str]:
    """Every field of a spec, dotted; lists as `a, b`, numbers and switches as in JSON."""
    return {key: _text(value) for key, value in flatten(spec.model_dump(mode="json")).items()}


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value)
    return json.dumps(value)
