"""The examples of docs/environments.md run as they stand; docs/tasks.md has every task."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

import ezm_pl.envs as envs
from ezm_pl.spec import HUMANOID_BENCH, build_experiment

PAGE = (Path(__file__).parents[2] / "docs" / "environments.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_an_example_runs(code: str) -> None:
    if "stable_baselines3" in code and importlib.util.find_spec("stable_baselines3") is None:
        compile(code, "environments.md", "exec")
        pytest.skip("Stable-Baselines3 is not among the dependencies")
    if "render_mode" in code and not envs.rendering_available()[0]:
        pytest.skip(envs.rendering_available()[1])
    names: dict[str, object] = {"ezm_pl": __import__("ezm_pl.envs")}
    exec(compile(code, "environments.md", "exec"), names)


def test_the_example_spec_is_valid() -> None:
    (document,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.S)
    assert build_experiment(yaml.safe_load(document)).score_bounds == {"gym:HalfCheetah-v5": (-280, 12000)}


def test_examples_of_other_libraries_are_short() -> None:
    for name in ("stable_baselines3", "torch"):
        (code,) = [block for block in BLOCKS if f"import {name}" in block or f"from {name}" in block]
        assert len([line for line in code.splitlines() if line.strip()]) <= 15


def test_the_page_of_tasks_has_the_table_of_tasks() -> None:
    page = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
    for number, (task, facts) in enumerate(HUMANOID_BENCH.items(), 1):
        sizes = f"{facts.obs_size} | {facts.action_size} | {facts.nq}/{facts.nv} | {facts.episode_steps}"
        scores = f"{facts.random_score:g} | {facts.success_score:g}"
        assert f"| {number} | `{task}` | {sizes} | {scores} |" in page
    for suite in ("hb-14", "hb-medium", "hb-hard-20", "hb-locomotion", "hb-manipulation", "hb-all"):
        assert f"`{suite}`" in page
