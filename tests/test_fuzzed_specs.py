"""Random damage to spec files: a clear error or a valid spec, by the way that `ezm validate` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ezm_pl.cli import main
from ezm_pl.spec import Experiment, SpecError, build_experiment, dump_experiment, read_document

SPECS = sorted((Path(__file__).parents[1] / "experiments").glob("*.yaml"))
VALUES: list[Any] = [
    None, True, -1, 0, 1, 2**70, 1e400, float("nan"), -0.5, "", "text", "1e-3", [], {}, [1, [2]],
    {"a": {"b": 1}}, "h1-walk", ["h1-walk", "h1-walk"], ["h1-stand", 3], "hb-29", "\x00", ["dmc-no-such"],
    "!!python/object/apply:os.system [id]", "a:b", 10**9,
]  # fmt: skip
SYNTAX = [b"&a *a", b"{{", b"!!python/name:os.system ", b"\t", b": ", b"<<: *x\n", b"? ", b"\xff\xfe"]


def mutated_document(document: dict[str, Any], random: np.random.Generator) -> dict[str, Any]:
    """Some fields set to values that may not fit, renamed or taken out."""
    for _ in range(int(random.integers(1, 4))):
        inner = document
        while True:
            key = list(inner)[int(random.integers(len(inner)))]
            if not isinstance(inner[key], dict) or not inner[key] or random.random() < 0.2:
                break
            inner = inner[key]
        match int(random.integers(5)):
            case 0:
                inner[key + "x"] = inner.pop(key)
            case 1 if len(inner) > 1:
                del inner[key]
            case _:
                inner[key] = VALUES[int(random.integers(len(VALUES)))]
    return document


def mutated_text(text: str, random: np.random.Generator) -> bytes:
    """Bytes changed, lines doubled, taken out, indented, or YAML's own syntax put in."""
    data = bytearray(text.encode())
    at = int(random.integers(len(data)))
    lines = text.splitlines()
    line = int(random.integers(len(lines)))
    match int(random.integers(6)):
        case 0:
            data[at] = int(random.integers(256))
        case 1:
            del data[at : at + int(random.integers(1, 30))]
        case 2:
            data[at:at] = SYNTAX[int(random.integers(len(SYNTAX)))]
        case 3:
            lines.insert(line, lines[line])
            return "\n".join(lines).encode()
        case 4:
            lines[line] = "  " + lines[line]
            return "\n".join(lines).encode()
        case 5:
            del data[at:]
    return bytes(data)


@pytest.mark.parametrize(
    "seeds", [range(300), pytest.param(range(300, 3000), marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_damaged_specs(seeds: range, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, whole = tmp_path / "spec.yaml", dump_experiment(build_experiment(read_document(SPECS[0])))
    valid = 0
    for seed in seeds:
        random = np.random.default_rng(seed)
        text = whole if seed % 2 else SPECS[seed % len(SPECS)].read_text()
        if seed % 3:
            document = mutated_document(yaml.safe_load(text), random)
            path.write_text(yaml.safe_dump(document))
        else:
            path.write_bytes(mutated_text(text, random))
        try:
            experiment = build_experiment(read_document(path), source=str(path))
        except SpecError as error:
            assert str(error).strip()
            assert all(str(path) in line for line in str(error).splitlines()), str(error)
        else:
            assert isinstance(experiment, Experiment)
            valid += 1
        if seed % 10 == 0:
            code = main(["validate", str(path)])
            printed = capsys.readouterr()
            assert code in (0, 2) and (code == 0) == (not printed.err)
            assert "Traceback" not in printed.err
    assert 0 < valid < len(seeds) / 2
