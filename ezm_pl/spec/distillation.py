"""The spec of a distillation: how small the student is, what it sees, how long it learns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, model_validator

from ezm_pl.spec.errors import SpecError, describe
from ezm_pl.spec.fields import MOST_EPISODES, Name, NonNegativeInt, PositiveFloat, PositiveInt, Size, Strict
from ezm_pl.spec.io import parse_settings, read_document
from ezm_pl.spec.seeds import MAX_SEED
from ezm_pl.spec.yaml_file import dump_yaml

MAX_PARAMETERS = 300_000
"""Of a student: more is no longer light."""


class StudentSpec(Strict):
    """Sizes of the student: an MLP over the normalised observation and the task's embedding."""

    width: Annotated[Size, Field(le=MAX_PARAMETERS)] = 256
    layers: Annotated[Size, Field(le=100)] = Field(3, description="hidden layers")
    task_embedding_size: Annotated[Size, Field(le=MAX_PARAMETERS)] = 16


class Distillation(Strict):
    """One distillation. The tasks, their environments and the search are the teacher's.

    Raises:
        pydantic.ValidationError: unknown keys, wrong types or ranges, or no rows at all.
    """

    name: Name = "distilled"
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    student: StudentSpec = StudentSpec()
    replay_rows: NonNegativeInt = Field(
        20_000, description="observations per task from the teacher's replay, or its own episodes without one"
    )
    visited_rows: NonNegativeInt = Field(20_000, description="observations per task that the student visits")
    num_envs: Size = Field(8, description="environments per task")
    updates: PositiveInt = 20_000
    batch_size: Size = 512
    learning_rate: PositiveFloat = 1e-3
    eval_every: PositiveInt = Field(5_000, description="updates between evaluations")
    episodes: Annotated[PositiveInt, Field(le=MOST_EPISODES)] = Field(
        8, description="evaluation episodes per task"
    )
    checkpoint_every: PositiveInt = Field(1_000, description="updates that a kill costs at most")
    log_every: PositiveInt = 100

    @model_validator(mode="after")
    def _some_rows(self) -> Distillation:
        if self.rows == 0:
            raise ValueError("replay_rows and visited_rows are both 0: there is nothing to learn from")
        return self

    @property
    def rows(self) -> int:
        """Labelled observations per task at the end."""
        return self.replay_rows + self.visited_rows


def load_distillation(path: str | Path | None, overrides: Sequence[str] = ()) -> Distillation:
    """Reads and checks a distillation.

    Args:
        path: a YAML file; None: the defaults.
        overrides: `a.b=c` settings laid over it; `c` is YAML.

    Raises:
        SpecError: a missing file, YAML that does not parse, or any field that is wrong.
    """
    document = parse_settings(overrides) if path is None else read_document(path, overrides)
    try:
        return Distillation.model_validate(document)
    except ValidationError as error:
        source = "distillation" if path is None else str(path)
        raise SpecError("\n".join(describe(error, Distillation, document, source))) from None


def dump_distillation(spec: Distillation) -> str:
    """The whole spec as YAML; loading it again gives an equal spec."""
    return dump_yaml(spec.model_dump(mode="json"))
