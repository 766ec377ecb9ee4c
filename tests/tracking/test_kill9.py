"""SIGKILL at random moments of a real run, each followed by a resume (30 of them: the script itself)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_three_times_and_resumed(tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "kill9.py"
    command = [sys.executable, str(script), "--kills", "3", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1700, cwd=script.parents[1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills, 3 resumed" in done.stdout
