"""Parts of one's own in a spec: `<module>:<name>` imports the module and takes the name from it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from ezm_pl.spec.errors import nearest


def load_extension(name: str) -> Callable[..., Any]:
    """The function or class behind `<module>:<name>`. The module must be importable.

    Raises:
        ValueError: there is no such module, or nothing of that name in it; in one line.
    """
    module, _, attribute = name.rpartition(":")
    if not module or not attribute:
        raise ValueError(f"{name!r} is not of the form <module>:<name>")
    try:
        loaded = importlib.import_module(module)
    except Exception as error:  # somebody else's module: anything may be wrong with it
        raise ValueError(f"{name!r}: module {module!r} does not import: {error!r}") from error
    found = getattr(loaded, attribute, None)
    if not callable(found):
        hint = nearest(attribute, vars(loaded))
        raise ValueError(f"{name!r}: {module!r} has no function or class {attribute!r}{hint}")
    return found
