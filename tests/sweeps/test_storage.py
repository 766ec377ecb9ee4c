"""Where studies are stored: in the folder that is meant, whatever its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from ezm_pl.sweeps.storage import open_storage


@pytest.mark.parametrize("name", ["feature%2Fwalk? {x}", "'\" :y\\n"])
def test_a_folder_of_any_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.chdir(folder)
    with open_storage(None).alone():
        assert (folder / "mlruns" / "optuna.db").stat().st_size > 0
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert {path.name for path in (folder / "mlruns").iterdir()} == {"optuna.db", "optuna.db.lock"}
