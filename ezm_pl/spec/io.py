"""Experiments from YAML files and `--set` settings, and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ezm_pl.spec.bases import Chain, laid_over, read_chain, source_of
from ezm_pl.spec.errors import SpecError, describe, nearest
from ezm_pl.spec.experiment import Experiment
from ezm_pl.spec.presets import PRESETS, choose_preset, merge, nested
from ezm_pl.spec.yaml_file import dump_yaml, parse_yaml


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Reads, completes and checks an experiment.

    Args:
        path: a YAML file holding a mapping; its `base`, if it has one, names the file that it is laid over.
        overrides: `a.b=c` settings laid over the file; `c` is YAML.

    Raises:
        SpecError: a missing file, YAML that does not parse, or any field that is wrong.
    """
    chain = read_chain(Path(path))
    return build_experiment(under_settings(chain, overrides), source=source_of(chain))


def read_document(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What a spec file, its bases and `a.b=c` settings say, as they stand: no preset, no checks of fields.

    Raises:
        SpecError: a missing file, YAML that does not parse, bases in a circle, a setting that is not `a.b=c`.
    """
    return under_settings(read_chain(Path(path)), overrides)


def under_settings(chain: Chain, overrides: Sequence[str]) -> dict[str, Any]:
    """What spec files and the `a.b=c` settings laid over them say (see `read_document`)."""
    return merge(laid_over(chain), parse_settings(overrides))


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """What `a.b=c` settings say as one nested mapping; raises `SpecError` for one that is not `a.b=c`."""
    document: dict[str, Any] = {}
    for setting in settings:
        document = merge(document, _setting(setting))
    return document


def build_experiment(document: dict[str, Any], *, source: str = "spec", gpu: bool = False) -> Experiment:
    """Lays `document` over its preset and validates the whole (see `load_experiment`).

    With `gpu` the machine has a GPU, which `preset: auto` goes by.
    """
    preset = document.get("preset", "auto")
    if preset == "auto":
        preset, _ = choose_preset(gpu=gpu)
    if not isinstance(preset, str) or preset not in PRESETS:
        names = ", ".join(["auto", *PRESETS])
        raise SpecError(f"{source}: preset: {preset!r} is not one of {names}{nearest(str(preset), PRESETS)}")
    whole = merge(PRESETS[preset], {**document, "preset": preset})
    try:
        return Experiment.model_validate(whole)
    except ValidationError as error:
        raise SpecError("\n".join(describe(error, Experiment, whole, source))) from None


def with_settings(experiment: Experiment, settings: Sequence[str], *, section: str) -> Experiment:
    """A spec with `a.b=c` settings of one section laid over it; raises `SpecError` for those of others."""
    if not settings:
        return experiment
    document = parse_settings(settings)
    if others := sorted(document.keys() - {section}):
        raise SpecError(f"--set {others[0]}: only {section}.* can be set here")
    return build_experiment(merge(experiment.model_dump(mode="json"), document), source="--set")


def dump_experiment(experiment: Experiment) -> str:
    """The whole resolved spec as YAML; loading it again gives an equal spec."""
    return dump_yaml(experiment.model_dump(mode="json"))


def flatten(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one level with dotted keys; everything else is left as it is."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(old: Experiment, new: Experiment, ignore: Iterable[str] = ()) -> list[str]:
    """`field: old -> new` for every field that differs, fields under `ignore` prefixes left out."""
    return changes(old.model_dump(mode="json"), new.model_dump(mode="json"), tuple(ignore))


def changes(old: dict[str, Any], new: dict[str, Any], ignore: tuple[str, ...] = ()) -> list[str]:
    """As `differences`, of nested dicts."""
    before, after = flatten(old), flatten(new)
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(ignore)
    ]


def _setting(setting: str) -> dict[str, Any]:
    key, separator, text = setting.partition("=")
    path = key.strip()
    if not separator or not all(path.split(".")):
        raise SpecError(f"--set {setting!r}: write it as key.path=value")
    return nested(path, parse_yaml(text, source=f"--set {setting!r}"))
