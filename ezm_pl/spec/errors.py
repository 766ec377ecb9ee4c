"""What is wrong with a spec, in one clear line per problem: where, what was given, what would be valid."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text",
    "dict": "a mapping of keys to values",
    "model": "a mapping of keys to values",
    "tuple": "a list",
    "list": "a list",
}
"""What to write instead, by the first word of Pydantic's error type."""

_GOT = " expected, got "

_LONG = 100
"""Characters of a wrong value that a line shows."""


class SpecError(ValueError):
    """A spec or command line that cannot work, said in one line per problem."""


class RunFailed(RuntimeError):
    """A run that cannot continue; its message says the reason in full, so no traceback is shown."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the choice nearest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


@contextmanager
def as_spec_error(*kinds: type[Exception], named: str = "") -> Iterator[None]:
    """Inside, an error of these kinds becomes a `SpecError`, that begins with what was `named`."""
    try:
        yield
    except kinds as error:
        raise SpecError(f"{named}: {error}" if named else str(error)) from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside, a file or folder that cannot be written, such as on a full disk, is one line that names it."""
    try:
        yield
    except OSError as error:
        raise SpecError(f"{path} cannot be written: {error.strerror or error}") from None


def describe(
    error: ValidationError, model: type[BaseModel], document: Mapping[Any, Any], source: str
) -> list[str]:
    """One line for each field that is wrong.

    Args:
        error: what validating `document` as `model` raised.
        model: the model that was validated.
        document: what was validated, as nested dicts and lists.
        source: what each line starts with, such as the file's path.
    """
    by_field: dict[str, list[str]] = {}
    for problem in error.errors(include_url=False):
        where = ".".join(str(part) for part in _path(problem["loc"], document))
        texts = by_field.setdefault(where, [])
        text = _text(problem, model)
        if text not in texts:
            texts.append(text)
    return [f"{source}: {where + ': ' if where else ''}{_join(texts)}" for where, texts in by_field.items()]


def _path(location: tuple[int | str, ...], document: object) -> list[int | str]:
    """`location` without the marks that Pydantic adds for the members of a union."""
    path: list[int | str] = []
    for part in location:
        if isinstance(document, Mapping):
            path.append(part)
            document = document.get(part)
        elif isinstance(document, list | tuple) and isinstance(part, int) and part < len(document):
            path.append(part)
            document = document[part]
    return path


def _text(problem: Any, model: type[BaseModel]) -> str:
    kind, given = problem["type"], repr(problem["input"])
    if len(given) > _LONG:
        given = given[:_LONG] + "..."
    context = problem.get("ctx", {})
    match kind:
        case "extra_forbidden":
            fields = list(_fields_at(model, problem["loc"][:-1]))
            return f"unknown key{nearest(str(problem['loc'][-1]), fields)} (valid: {', '.join(fields)})"
        case "invalid_key":
            return "unknown key (keys are text)"
        case "missing":
            return "is required"
        case "value_error":
            return str(context["error"])
        case "literal_error":
            return f"{context['expected']}{_GOT}{given}"
        case "string_pattern_mismatch":
            return f"text matching {context['pattern']}{_GOT}{given}"
        case "string_too_short" | "string_too_long":
            limit = context.get("min_length", context.get("max_length"))
            bound = "at least" if kind == "string_too_short" else "at most"
            return f"{bound} {limit} characters{_GOT}{given}"
    if kind.startswith(("greater_than", "less_than")):
        rule = problem["msg"].removeprefix("Input should be ")
        return f"must be {rule}, got {given}"
    expected = _EXPECTED.get(kind.split("_")[0], problem["msg"])
    return f"{expected}{_GOT}{given}"


def _join(texts: list[str]) -> str:
    """What the members of a union say, as one text."""
    precise = [text for text in texts if _GOT not in text]
    if len(texts) == 1 or precise:
        return "; ".join(precise or texts)
    wanted = [text.partition(_GOT)[0] for text in texts]
    return f"{' or '.join(wanted)}{_GOT}{texts[0].partition(_GOT)[2]}"


def _fields_at(model: type[BaseModel], path: Iterable[int | str]) -> Iterable[str]:
    for part in path:
        if str(part) not in model.model_fields:
            continue  # the key of a mapping whose values are models
        annotation = model.model_fields[str(part)].annotation
        nested = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type)]
        model = next(a for a in nested if issubclass(a, BaseModel))
    return model.model_fields
