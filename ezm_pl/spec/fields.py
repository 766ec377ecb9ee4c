"""What every spec is made of: strict types, and the base that refuses unknown keys."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Item = TypeVar("Item")

Real = Annotated[float, Field(allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[Real, Field(gt=0)]
NonNegativeFloat = Annotated[Real, Field(ge=0)]
Fraction = Annotated[Real, Field(ge=0, le=1)]
Listed = Annotated[tuple[Item, ...], Field(strict=False)]
"""A YAML list of items, each as strict as anywhere."""
EpisodeProtocol = Literal["ezm", "humanoidbench"]


class Strict(BaseModel):
    """Base of every spec. Unknown keys are errors; neither "3" nor true is a number; values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)
