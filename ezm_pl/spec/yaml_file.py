"""YAML in and out: scalars as YAML 1.2 reads them (its core schema), and a repeated key is an error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from ezm_pl.spec.errors import SpecError, nearest
from ezm_pl.spec.files import read_text


class _Loader(yaml.SafeLoader):
    """PyYAML reads YAML 1.1, where `010` is 8, `1:30` is 90, `no` is false and `1e-3` is text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own

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

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """`010` is ten, `0o10` eight, `0x10` sixteen."""
        text = self.construct_scalar(node)
        return int(text, 0 if text[:2] in ("0o", "0x") else 10)


class _Dumper(yaml.SafeDumper):
    """Quotes text that either version of YAML would read as something else."""


_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]{1,99}|0x[0-9a-fA-F]{1,99}", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}
"""YAML 1.2.2, section 10.3.2 (and 1.1's merge key): what a plain scalar is, and how it may start."""

for _name, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping a YAML file holds.

    Raises:
        SpecError: no such file (the nearest one is offered), not YAML, or not a mapping.
    """
    try:
        text = read_text(path)
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
    except RecursionError:
        raise SpecError(f"{source}: not valid YAML: nested too deeply") from None
    except ValueError as error:  # Python refuses a number of more than 4,300 digits
        raise SpecError(f"{source}: not valid YAML: {error}") from None
    except yaml.YAMLError as error:
        problem, place = " ".join(str(error).split()), ""
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
            mark = error.problem_mark
            problem, place = error.problem or problem, f"line {mark.line + 1}, column {mark.column + 1}: "
        raise SpecError(f"{source}: not valid YAML: {place}{problem}") from None


def dump_yaml(document: Any) -> str:
    """Plain data as YAML that `parse_yaml` reads back as it was, keys in their order."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
