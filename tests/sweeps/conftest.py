"""A workplace for sweeps."""

from __future__ import annotations

from pathlib import Path

import pytest
from sweep_helpers import write


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workplace with a tiny sweep; nothing of the machine's own tracking is seen."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write(tmp_path)
    return tmp_path
