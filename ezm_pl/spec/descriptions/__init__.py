"""What tasks ask for, in sentences: to train agents on, and held out to test them (docs/language.md).

Those of built-in tasks lie in the YAML files beside this one, others in a spec's `tasks_meta`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ezm_pl.spec.errors import SpecError
from ezm_pl.spec.yaml_file import read_yaml

ROBOTS = {"h1": "the humanoid", "h1hand": "the humanoid with hands", "h1strong": "the strong humanoid"}
"""How the sentences call HumanoidBench's robots."""
NEEDED = ("all_minilm_l6_v2", "safetensors", "tokenizers", "transformers")
"""Packages that embed a sentence."""


@dataclass(frozen=True)
class Descriptions:
    """A task in words.

    Attributes:
        training: at least one sentence; an agent acts by the first one.
        held_out: sentences of which no agent learns.
    """

    training: tuple[str, ...]
    held_out: tuple[str, ...] = ()


def built_in(task: str) -> Descriptions | None:
    """The sentences of a built-in task; None for any other."""
    robot, _, name = task.partition("-")
    if robot == "dmc":
        return _sentences("dm_control.yaml", name)
    return _sentences("humanoid_bench.yaml", name, ROBOTS[robot]) if robot in ROBOTS else None


def described(tasks: Sequence[str], own: Mapping[str, Descriptions]) -> dict[str, Descriptions]:
    """The sentences of tasks, by task.

    Args:
        tasks: names.
        own: in place of the built-in ones.

    Raises:
        ValueError: a task has none, two tasks are described by the same sentence, or one that is held out
            is also to be learned from.
    """
    found: dict[str, Descriptions] = {}
    of: dict[str, str] = {}
    for task in tasks:
        sentences = own.get(task) or built_in(task)
        if sentences is None:
            raise ValueError(
                f"model.task_conditioning: text: {task!r} has no description; write some sentences into "
                f"tasks_meta.{task}.descriptions"
            )
        for sentence in (*sentences.training, *sentences.held_out):
            other = of.setdefault(_plain(sentence), task)
            if other != task:
                raise ValueError(f"tasks_meta: {task!r} and {other!r} are both described by {sentence!r}")
        learned = {_plain(sentence) for sentence in sentences.training}
        if both := [sentence for sentence in sentences.held_out if _plain(sentence) in learned]:
            raise ValueError(
                f"tasks_meta.{task}.held_out_descriptions: {both[0]!r} is one to learn from, too"
            )
        found[task] = sentences
    return found


def _plain(sentence: str) -> str:
    return " ".join(sentence.lower().split())


def check_encoder(what: str) -> None:
    """Raises `SpecError` where the packages that embed a sentence are missing: `what` needs them."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SpecError(f"{what} needs {', '.join(missing)}: pip install 'ezm_pl[text]'")


def _sentences(file: str, name: str, robot: str = "") -> Descriptions | None:
    kinds = _read(file).get(name)
    if kinds is None:
        return None
    filled = {kind: tuple(each.replace("$robot", robot) for each in lines) for kind, lines in kinds.items()}
    return Descriptions(**filled)


@cache
def _read(file: str) -> dict[str, dict[str, list[str]]]:
    return read_yaml(Path(__file__).with_name(file))
