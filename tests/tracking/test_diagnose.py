"""`ezm diagnose`'s files: what was found stays where a figure cannot be written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from ezm_pl.spec import SpecError
from ezm_pl.tracking.results import diagnose
from ezm_pl.training import diagnostics


class NothingFound:
    """Stands for `Diagnostics`, for a checkpoint without tasks."""

    networks = SimpleNamespace(updates=6, env_steps=60, experiment=SimpleNamespace(name="made"))
    buffer = object()

    def __init__(self, *_: object, **__: object) -> None: ...

    def tasks(self) -> Iterator[object]:
        return iter(())

    def embeddings(self) -> tuple[NDArray[np.float64], float]:
        return np.zeros((0, 2)), 1.0


def test_a_figure_that_cannot_be_written_is_one_line_and_leaves_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnose, "usable_checkpoint", lambda *_: tmp_path / "last.ckpt")
    monkeypatch.setattr(diagnostics, "Diagnostics", NothingFound)
    (tmp_path / "file").touch()
    output, figure = tmp_path / "found.json", tmp_path / "file" / "figure.png"
    with pytest.raises(SpecError, match=r"figure\.png cannot be written: [^\n]*$"):
        diagnose.diagnose_run(
            "made",
            states=1,
            actions=1,
            rollouts=1,
            seed=0,
            output=output,
            figure=figure,
            console=Console(quiet=True),
        )
    assert json.loads(output.read_text())["updates"] == 6
