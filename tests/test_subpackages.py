"""A subpackage imports only those above it, and not what docs/architecture.md, "Subpackages", bars.

import-linter's contracts name external packages as a whole, so `torch.nn` could not be barred where `torch`
is allowed, and they see neither what a package exports nor `importlib.import_module`.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ezm_pl"

SUBPACKAGES = (
    "spec", "envs", "programs", "world_model", "search", "replay", "selfplay", "training", "distillation",
    "tracking", "sweeps",
)  # fmt: skip
"""From the ground up: a subpackage may import the subpackages before it."""

BARRED: dict[str, tuple[str, ...]] = {
    "spec": ("torch", "mujoco", "lightning"),
    "envs": ("torch", "lightning"),
    "programs": ("torch.nn", "lightning", "ezm_pl.envs"),
    "world_model": ("lightning", "ezm_pl.envs"),
    "search": ("lightning", "ezm_pl.envs"),
    "replay": ("torch.nn", "lightning"),
    "selfplay": ("lightning",),
    "training": ("mlflow", "optuna"),
    "distillation": ("mlflow", "optuna"),
    "tracking": ("optuna",),
    "sweeps": (),
}

COMMAND = ("agent", "export", "cli", "commands")
"""What people use: below all subpackages, none of which may import it."""


def imported(tree: ast.AST, module: str) -> Iterator[tuple[str, int]]:
    """Every module or name that `tree` imports, at any depth: (dotted name, line), relative ones resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = module.split(".")[: -node.level]
                base = ".".join([*parent, base] if base else parent)
            for alias in node.names:
                yield f"{base}.{alias.name}", node.lineno
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield argument.value, node.lineno


def violations(source: str, module: str) -> list[str]:
    """What `module` (such as `ezm_pl.envs.core`) imports against the rules, one line each."""
    parts = module.split(".")
    subpackage = parts[1] if len(parts) > 1 else ""
    found = []
    for name, line in imported(ast.parse(source), module):
        into = name.split(".")
        if subpackage in SUBPACKAGES:
            found += [
                f"{module}:{line}: {subpackage} may not import {name}"
                for barred in BARRED[subpackage]
                if name == barred or name.startswith(f"{barred}.")
            ]
            if subpackage == "search" and name.startswith("ezm_pl.world_model.") and not _is_public(name):
                found.append(f"{module}:{line}: search may not import world_model's internals ({name})")
            if into[0] == "ezm_pl" and len(into) > 1 and into[1] in (*SUBPACKAGES, *COMMAND):
                above = SUBPACKAGES[: SUBPACKAGES.index(subpackage) + 1]
                if into[1] not in above:
                    found.append(f"{module}:{line}: {subpackage} may not import {into[1]}, which is below it")
    return found


def _is_public(name: str) -> bool:
    """Whether `name` is something the world_model package itself exports."""
    exported = ast.parse((PACKAGE / "world_model" / "__init__.py").read_text(encoding="utf-8"))
    names = {
        alias.asname or alias.name
        for node in ast.walk(exported)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return name.removeprefix("ezm_pl.world_model.") in names


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    """Dotted name of a file; `__init__` stays in it, so that relative imports resolve alike."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


@pytest.mark.parametrize("path", files(), ids=module_of)
def test_file_keeps_to_its_subpackage(path: Path) -> None:
    assert violations(path.read_text(encoding="utf-8"), module_of(path)) == []


def private_lightning_names(source: str) -> list[str]:
    """Private names that `source` imports from Lightning, or takes from a `trainer` or one of its parts."""
    tree = ast.parse(source)
    found = [
        name
        for name, _ in imported(tree, "")
        if name.startswith("lightning") and re.search(r"\._[a-z]", name, re.I)
    ]
    parts = r"\b(trainer|strategy|launcher|\w*loop|callback|optimizer)\._[a-z]"
    nodes = (ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return found + [text for text in nodes if re.search(parts, text)]


def test_private_parts_of_lightning_are_used_in_one_file() -> None:
    using = {path.name for path in files() if private_lightning_names(path.read_text(encoding="utf-8"))}
    assert using == {"lightning_internals.py"}
    assert private_lightning_names("self._trainer = trainer") == []
    assert private_lightning_names("def f(self):\n    self.trainer._results")


def test_every_folder_is_a_known_subpackage() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders <= {*SUBPACKAGES, *COMMAND}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ezm_pl.spec.presets", "import torch"),
        ("ezm_pl.spec.presets", "def f():\n    from torch import nn"),
        ("ezm_pl.envs.core", "from lightning.pytorch import Trainer"),
        ("ezm_pl.envs.core", "from ezm_pl.replay import buffer"),
        ("ezm_pl.envs.core", "from ..replay import buffer"),
        ("ezm_pl.envs.__init__", "from .. import replay"),
        ("ezm_pl.envs.core", "import ezm_pl.training"),
        ("ezm_pl.envs.core", "import importlib\nimportlib.import_module('torch')"),
        ("ezm_pl.world_model.model", "from ezm_pl.envs import make"),
        ("ezm_pl.search.tree", "from ezm_pl.world_model.layers import mlp"),
        ("ezm_pl.replay.buffer", "from torch import nn"),
        ("ezm_pl.training.fit", "import mlflow"),
        ("ezm_pl.training.fit", "from ezm_pl.tracking import logger"),
        ("ezm_pl.tracking.runs.train", "from ezm_pl import cli"),
        ("ezm_pl.tracking.runs.train", "from ezm_pl.commands import train"),
    ],
)
def test_the_check_can_fail(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ezm_pl.replay.buffer", "import torch"),
        ("ezm_pl.envs.core", "from . import core\nfrom ezm_pl.spec import SUITES"),
        ("ezm_pl.training.fit", "import lightning\nfrom ezm_pl.selfplay import Collector"),
        ("ezm_pl.cli", "from ezm_pl.sweeps import study"),
    ],
)
def test_the_check_lets_pass_what_is_allowed(module: str, source: str) -> None:
    assert violations(source, module) == []


@pytest.mark.parametrize(
    "path", [PACKAGE / "cli.py", *sorted((PACKAGE / "commands").glob("*.py"))], ids=module_of
)
def test_the_command_imports_subpackages_where_it_needs_them(path: Path) -> None:
    """Bad input is answered at once: what is imported at the top is light."""
    at_the_top = {
        name
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name, _ in imported(node, module_of(path))
    }
    ours = {name for name in at_the_top if name.startswith("ezm_pl.")}
    assert all(name.startswith(("ezm_pl.spec.", "ezm_pl.commands.")) for name in ours)
    others = {name.partition(".")[0] for name in at_the_top - ours}
    assert others <= {*sys.stdlib_module_names, "rich"}
