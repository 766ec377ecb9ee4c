"""YAML files as plain mappings: keys that repeat are errors, and `1e-3` is a number."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from ezm_pl.spec.errors import SpecError
from ezm_pl.spec.tasks import nearest


class _Loader(yaml.SafeLoader):
    """`SafeLoader` with YAML 1.2's floats (1.1 reads `1e-3` as text) and without repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"key {key.value!r} appears twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping a YAML file holds.

    Raises:
        SpecError: no such file (the nearest one is offered), not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        siblings = [str(p) for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise SpecError(f"{path}: no such file{nearest(str(path), siblings)}") from None
    except IsADirectoryError:
        raise SpecError(f"{path}: a folder; give a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read: {error}") from None
    document = parse_yaml(text, source=str(path))
    if not isinstance(document, dict):
        given = "an empty file" if document is None else type(document).__name__
        raise SpecError(f"{path}: a mapping of keys to values expected, got {given}")
    return document


def parse_yaml(text: str, *, source: str) -> Any:
    """The value of a YAML text; raises `SpecError` of one line, with the place, where it does not parse."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        problem, place = " ".join(str(error).split()), ""
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
            mark = error.problem_mark
            problem, place = error.problem or problem, f"line {mark.line + 1}, column {mark.column + 1}: "
        raise SpecError(f"{source}: not valid YAML: {place}{problem}") from None
