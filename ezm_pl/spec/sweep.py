"""The sweep spec: which experiment, over which tasks, searched how, judged by what."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ezm_pl.spec.experiment import Experiment
from ezm_pl.spec.fields import NAME, Listed, Name, PositiveFloat, PositiveInt, Real, Strict
from ezm_pl.spec.tasks import SUITES, first_tasks, resolve_tasks
from ezm_pl.spec.variants import REFERENCE

Choice = bool | int | float | str | None
GridPoint = int | str | tuple[str, ...]

MOST_TRIALS = 10_000
_MOST_STEPS = 1e12
"""Of a range: beyond that, a 64-bit float no longer tells its values apart."""


class Dimension(Strict):
    """What a field may be: a range (`low` to `high`), or one of some `choices`."""

    low: Real | None = None
    high: Real | None = None
    log: bool = Field(False, description="draw evenly in the logarithm")
    step: PositiveFloat | None = Field(None, description="null: any value of the range")
    choices: Listed[Choice] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Dimension:
        if self.choices is not None:
            if (self.low, self.high, self.step, self.log) != (None, None, None, False):
                raise ValueError("give either low and high, or choices")
            if not self.choices or len({repr(choice) for choice in self.choices}) < len(self.choices):
                raise ValueError(f"choices: different values expected, got {list(self.choices)}")
            return self
        if self.low is None or self.high is None:
            raise ValueError("a range needs low and high; anything else needs choices")
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"a log range needs low above 0, got {self.low:g}")
        if self.log and self.step is not None:
            raise ValueError("a log range has no step")
        if self.step is not None and self.low + self.step > self.high:
            raise ValueError(f"a step of {self.step:g} leads from {self.low:g} past {self.high:g}")
        if self.step is not None and not (self.high - self.low) / self.step < _MOST_STEPS:
            raise ValueError(f"a step of {self.step:g} is too fine for {self.low:g} to {self.high:g}")
        return self

    @property
    def text(self) -> str:
        """`0.1 to 10 (log)`, `[best, improved]`."""
        if self.choices is not None:
            return f"[{', '.join(str(choice) for choice in self.choices)}]"
        how = " (log)" if self.log else f" in steps of {self.step:g}" if self.step else ""
        return f"{self.low:g} to {self.high:g}{how}"

    @property
    def count(self) -> int | None:
        """How many values there are; None in a range without a step."""
        if self.choices is not None:
            return len(self.choices)
        return self._grid().stop if self.step is not None else None

    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest value of a range, whole numbers as such."""
        if self.low is None or self.high is None:
            raise ValueError("choices have no bounds")
        return (_whole(self.low), _whole(self.high)) if self.step is None else (self._at(0), self._at(-1))

    def values(self) -> list[Choice]:
        """Every value, in order; a range must have a step."""
        return list(self.choices) if self.choices is not None else [*map(self._at, self._grid())]

    def probes(self) -> list[Choice]:
        """Values that fit a field only if all do: choices; a range's first, second and last value."""
        if self.choices is not None:
            return list(self.choices)
        return [*self.bounds()] if self.step is None else [*map(self._at, (0, 1, -1))]

    def _grid(self) -> range:
        """The steps from `low` that stay within `high`."""
        assert self.low is not None and self.high is not None and self.step is not None
        return range(math.floor((self.high - self.low) / self.step + 1e-9) + 1)

    def _at(self, index: int) -> float:
        assert self.low is not None and self.step is not None
        return _whole(round(self.low + self._grid()[index] * self.step, 12))


def _whole(number: float) -> float:
    return int(number) if float(number).is_integer() else number


class PrunerSpec(Strict):
    """Who ends a trial early, and when at the earliest."""

    kind: Literal["none", "median", "hyperband"] = "none"
    startup_trials: PositiveInt = Field(
        4, description="median: trials of a grid point that end unpruned first"
    )
    warmup_updates: PositiveInt = Field(1, description="updates before which no trial is pruned")
    reduction: PositiveInt = Field(3, ge=2, description="hyperband: a rung keeps one trial in so many")


class SweepSpec(Strict):
    """A sweep as its file says it; `ezm_pl.spec.sweep_plan` resolves it against its base experiment."""

    name: Name
    base: str = Field(description="an experiment's YAML file, relative to this file or the working directory")
    experiment: dict[str, Any] = Field({}, description="laid over the base: budgets, sizes")
    tasks: Listed[GridPoint] | None = Field(
        None, description="the grid: 8 (hb-8), a suite or task, or a list of them"
    )
    variants: dict[str, dict[str, Any]] = Field(
        {}, description="or this grid: label to settings laid over the base; in a file, a folder of specs"
    )
    search: dict[str, Dimension] = Field({}, description="dotted field of the experiment to its range")
    trials: Annotated[PositiveInt, Field(le=MOST_TRIALS)] | None = Field(
        None, description="per grid point; null: all of a grid sampler's, else 1"
    )
    seeds: PositiveInt = Field(1, le=MOST_TRIALS, description="runs per trial; its objective is their mean")
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    pruner: PrunerSpec = PrunerSpec()
    objective: str = "eval/score"
    direction: Literal["maximize", "minimize"] = "maximize"

    @field_validator("tasks", mode="before")
    @classmethod
    def _tasks(cls, points: object) -> tuple[GridPoint, ...] | None:
        if points is None:
            return None
        if not isinstance(points, list | tuple) or not points:
            raise ValueError(f"a list such as [8, 16, 29] expected, got {points!r}")
        found: dict[tuple[str, ...], object] = {}
        for point in points:
            tasks = point_tasks(point)
            if tuple(sorted(tasks)) in found:
                raise ValueError(f"{point!r} is listed twice")
            found[tuple(sorted(tasks))] = point
        return tuple(tuple(p) if isinstance(p, list) else p for p in points)

    @field_validator("pruner", mode="before")
    @classmethod
    def _pruner(cls, pruner: object) -> object:
        return {"kind": pruner} if isinstance(pruner, str) else pruner

    @model_validator(mode="after")
    def _one_grid(self) -> SweepSpec:
        if (self.tasks is None) == (not self.variants):
            raise ValueError("tasks or variants: one of them is required, and only one")
        for label, settings in self.variants.items():
            if not re.fullmatch(NAME, label):
                raise ValueError(f"variants: {label!r}: a name of letters, digits, '_', '-' and '.' expected")
            if label == REFERENCE:
                raise ValueError(f"variants: {REFERENCE!r} is the base experiment itself")
            if fixed := [key for key in ("name", "preset", "seed", "trainer", "tracking") if key in settings]:
                raise ValueError(f"variants.{label}: {fixed[0]} is the same for all variants")
        return self

    @model_validator(mode="after")
    def _countable(self) -> SweepSpec:
        if self.sampler != "grid":
            if self.trials is None and self.search:
                raise ValueError("trials: is required with a search space")
            return self
        endless = [field for field, dimension in self.search.items() if dimension.count is None]
        if endless:
            raise ValueError(f"sampler grid needs choices or a step: {', '.join(endless)}")
        count = math.prod(dimension.count or 1 for dimension in self.search.values())
        if count > MOST_TRIALS:
            raise ValueError(f"sampler grid: {count:,} combinations are more than {MOST_TRIALS:,}")
        if self.trials not in (None, count):
            raise ValueError(
                f"sampler grid tries all {count} combinations, so trials {self.trials} cannot be"
            )
        return self

    def combinations(self) -> list[dict[str, Choice]]:
        """All combinations of a grid sampler, the last field changing fastest."""
        return list(self._product([dimension.values() for dimension in self.search.values()]))

    def probes(self) -> list[dict[str, Choice]]:
        """Combinations that an experiment must take: a grid's every one, of other samplers the corners."""
        if self.sampler == "grid":
            return self.combinations()
        found = [dimension.probes() for dimension in self.search.values()]
        if math.prod(map(len, found)) > MOST_TRIALS:
            found = [[values[0], values[-1]] for values in found]
        return list(itertools.islice(self._product(found), MOST_TRIALS))

    def _product(self, values: Sequence[Sequence[Choice]]) -> Iterator[dict[str, Choice]]:
        return (dict(zip(self.search, chosen, strict=True)) for chosen in itertools.product(*values))

    @property
    def trials_per_point(self) -> int:
        """How many trials a grid point gets."""
        if self.trials is not None:
            return self.trials
        return len(self.combinations()) if self.sampler == "grid" else 1


def is_sweep(document: Mapping[str, Any]) -> bool:
    """Whether a spec file's document is a sweep's: it has keys that no experiment has."""
    return not document.keys().isdisjoint(SweepSpec.model_fields.keys() - Experiment.model_fields.keys())


def point_tasks(point: object) -> tuple[str, ...]:
    """The tasks of a grid point: a number of tasks, a suite, a task or a list of them.

    Raises:
        ValueError: there are no such tasks.
    """
    if isinstance(point, int) and not isinstance(point, bool):
        return first_tasks(point)
    if isinstance(point, str):
        return resolve_tasks(point)
    if isinstance(point, list | tuple) and all(isinstance(name, str) for name in point):
        return resolve_tasks(point)
    raise ValueError(f"a number of tasks, a suite or a list of tasks expected, got {point!r}")


def point_label(point: GridPoint) -> str:
    """A grid point in a word: `hb-8`, `h1-walk`, `3-tasks`."""
    if isinstance(point, int):
        # `hb-14` is the field's suite of another 14 tasks; the first 14 are `hb-hard`.
        return next(name for name in (f"hb-{point}", "hb-hard") if SUITES[name] == first_tasks(point))
    if isinstance(point, str):
        return point
    tasks = point_tasks(point)
    return tasks[0] if len(tasks) == 1 else f"{len(tasks)}-tasks"


def parse_points(text: str) -> list[GridPoint]:
    """`8,16,29` or `hb-medium,h1-walk` from the command line.

    Raises:
        ValueError: an entry is empty or no number of tasks, suite or task.
    """
    points: list[GridPoint] = []
    for entry in (part.strip() for part in text.split(",")):
        if not entry:
            raise ValueError(f"an entry is empty in {text!r}; write it as 8,16,29")
        point = int(entry) if entry.lstrip("-").isdecimal() else entry
        point_tasks(point)
        points.append(point)
    return points
