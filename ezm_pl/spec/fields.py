"""What every spec is made of: strict types, and the base that refuses unknown keys."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Item = TypeVar("Item")

Real = Annotated[float, Field(allow_inf_nan=False)]
MOST = 10**12
"""Of anything that is counted: more than a run can do, and sums of it stay within 64 bits."""
LARGEST_SIZE = 10**6
"""Of an axis of an array: what is larger fits into no memory."""
MOST_EPISODES = 10_000
"""Of one evaluation, per task: each is an environment of its own."""

NAME = r"^[\w.\-]+$"
"""Of a spec, a sweep and a variant: names of files, and quoted in queries of MLflow."""

Name = Annotated[str, Field(min_length=1, max_length=120, pattern=NAME)]
PositiveInt = Annotated[int, Field(gt=0, le=MOST)]
NonNegativeInt = Annotated[int, Field(ge=0, le=MOST)]
Size = Annotated[int, Field(gt=0, le=LARGEST_SIZE)]
PositiveFloat = Annotated[Real, Field(gt=0)]
NonNegativeFloat = Annotated[Real, Field(ge=0)]
Fraction = Annotated[Real, Field(ge=0, le=1)]
Listed = Annotated[tuple[Item, ...], Field(strict=False)]
"""A YAML list of items, each as strict as anywhere."""
EpisodeProtocol = Literal["ezm", "humanoidbench"]
Network = Literal["representation", "dynamics", "reward", "value_policy"]
Networks = Annotated[
    tuple[Network, ...],
    Field(strict=False),
    AfterValidator(lambda given: tuple(one for one in get_args(Network) if one in given)),
]
"""A set of networks, in the order of `Network` however it is written."""


class Strict(BaseModel):
    """Base of every spec. Unknown keys are errors; neither "3" nor true is a number; values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)
