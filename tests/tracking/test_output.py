"""Consoles that fail: a run writes on and ends as it would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys, warnings
from pathlib import Path
from ezm_pl.tracking.fault_tolerance.output import install_safe_output
install_safe_output()
install_safe_output()
from rich.console import Console
console = Console()
for _ in range(3000):
    console.print("a line of the run, 2 ± 1", markup=False)
    print("a line on standard error, 2 ± 1", file=sys.stderr)
warnings.warn("and a warning")
Path("done").write_text("yes")
sys.exit(7)
"""


def run(folder: Path, redirection: str, **environment: str) -> None:
    """Runs `SCRIPT` under the shell's `redirection`; it must come to its own end."""
    (folder / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} script.py {redirection}; exit ${{PIPESTATUS[0]}}"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (folder / "done").is_file()
    assert done.returncode == 7
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize(
    "redirection",
    [
        "| true",
        "| head -1",
        "2>&1 | head -1",
        "> /dev/full",
        "> /dev/full 2>&1",
        ">&-",
        ">&- 2>&-",
        "> out 2> err",
    ],
)
def test_no_console_ends_a_run(redirection: str, tmp_path: Path) -> None:
    run(tmp_path, redirection)


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["encoding", "locale"],
)
def test_characters_that_the_terminal_lacks(environment: dict[str, str], tmp_path: Path) -> None:
    run(tmp_path, "> out", **environment)
    lines = (tmp_path / "out").read_text().splitlines()
    assert lines == ["a line of the run, 2 \\xb1 1"] * 3000


def test_nothing_is_lost_on_a_working_console(tmp_path: Path) -> None:
    run(tmp_path, "> out 2> err")
    assert (tmp_path / "out").read_text(encoding="utf-8").count("2 ± 1\n") == 3000
    assert (tmp_path / "err").read_text(encoding="utf-8").count("2 ± 1\n") == 3000
