"""Experiment specs: Pydantic models, presets, the task table, YAML in and out."""

from ezm_pl.spec.agents import searches
from ezm_pl.spec.errors import RunFailed, SpecError, as_spec_error, writing
from ezm_pl.spec.experiment import Experiment
from ezm_pl.spec.files import read_json, read_text, write_json
from ezm_pl.spec.io import (
    build_experiment,
    differences,
    dump_experiment,
    flatten,
    load_experiment,
    read_document,
)
from ezm_pl.spec.presets import PRESETS, choose_preset
from ezm_pl.spec.tasks import DMC, HUMANOID_BENCH, SUITES, normalized_score, resolve_tasks

__all__ = [
    "DMC",
    "HUMANOID_BENCH",
    "PRESETS",
    "SUITES",
    "Experiment",
    "RunFailed",
    "SpecError",
    "as_spec_error",
    "build_experiment",
    "choose_preset",
    "differences",
    "dump_experiment",
    "flatten",
    "load_experiment",
    "normalized_score",
    "read_document",
    "read_json",
    "read_text",
    "resolve_tasks",
    "searches",
    "write_json",
    "writing",
]
