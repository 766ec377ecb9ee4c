"""Experiments that build on others: `base: FILE` in a spec names the file that it is laid over."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

from ezm_pl.spec.errors import SpecError
from ezm_pl.spec.presets import merge
from ezm_pl.spec.yaml_file import read_yaml

BASE = "base"
Chain = list[tuple[Path, dict[str, Any]]]
"""A spec file and its bases, itself first: each file with what it says, without its `base`."""


def read_chain(path: Path) -> Chain:
    """Reads a spec file and its bases, each once: a pipe, such as `<(...)`, can be read only once.

    A base is named relative to the folder of the file that names it.

    Raises:
        SpecError: a file that is missing or no mapping, a `base` that is no file name, or bases that
            lead back to a file of the chain.
    """
    chain: Chain = []
    following: Path | None = path
    while following is not None:
        try:
            document = read_yaml(following)
        except SpecError as error:
            raise SpecError(f"{chain[-1][0]}: base: {error}" if chain else str(error)) from None
        base = document.pop(BASE, None)
        chain.append((following, document))
        if base is not None and not (isinstance(base, str) and base and "\0" not in base):
            raise SpecError(f"{following}: base: the name of a spec file expected, got {base!r}")
        following = None if base is None else following.parent / base
        if following is not None and following.resolve() in [each.resolve() for each, _ in chain]:
            files = " -> ".join(str(each) for each in [*(each for each, _ in chain), following])
            raise SpecError(f"{path}: base: the files name each other in a circle: {files}")
    return chain


def laid_over(chain: Chain) -> dict[str, Any]:
    """The documents of a chain as one: each laid over its base."""
    return reduce(merge, (document for _, document in reversed(chain)))


def source_of(chain: Chain) -> str:
    """The files of a chain, for messages: `a.yaml (base b.yaml, c.yaml)`."""
    path, *bases = (str(each) for each, _ in chain)
    return f"{path} (base {', '.join(bases)})" if bases else path
