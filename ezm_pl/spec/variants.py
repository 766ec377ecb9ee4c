"""The grid of an ablation: the base experiment beside variants of it, each a few settings laid over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ezm_pl.spec.bases import laid_over, read_chain
from ezm_pl.spec.errors import SpecError, nearest
from ezm_pl.spec.experiment import Experiment

REFERENCE = "full"
"""Label of the grid point that is the base experiment itself."""
_OWN = ("name", "preset")
"""Keys of a variant's file that belong to it alone when it is trained by itself."""

Variants = dict[str, dict[str, Any]]


def read_variants(folder: Path, *, source: str) -> Variants:
    """Label (the file's name) to settings, for every spec file of a folder, in alphabetical order.

    What a file says is laid over the sweep's base in place of the file's own.

    Raises:
        SpecError: no such folder, no spec file in it, or one that cannot be read.
    """
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise SpecError(f"{source}: variants: {folder}: a folder of spec files expected")
    return {path.stem: _settings(path) for path in files}


def _settings(path: Path) -> dict[str, Any]:
    chain = read_chain(path)
    whole = laid_over(chain[:-1] if len(chain) > 1 else chain)
    return {key: value for key, value in whole.items() if key not in _OWN}


def selected(variants: Variants, only: Sequence[str]) -> Variants:
    """The variants named in `only`, in its order.

    Raises:
        SpecError: there is none of such a name.
    """
    for label in only:
        if label not in variants:
            raise SpecError(f"--only {label}: no such variant{nearest(label, variants)}")
    return {label: variants[label] for label in only}


def unfit(label: str, variant: Experiment, base: Experiment, changed: Mapping[str, Any]) -> str | None:
    """Why a variant says nothing about a base, in words; None where it can be compared.

    Args:
        label: of the variant. variant, base: the resolved experiments.
        changed: the variant's settings.
    """
    if not set(variant.tasks) <= set(base.tasks):
        return f"{label}: its tasks ({', '.join(variant.tasks)}) are not all tasks of the base experiment"
    if variant == base:
        return f"{label}: changes nothing of the base experiment ({', '.join(changed) or 'no settings'})"
    return None
