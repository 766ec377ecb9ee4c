"""A sweep resolved against its base experiment: what is stored, compared on resuming, and run by workers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from ezm_pl.spec.agents import UNREAD
from ezm_pl.spec.errors import SpecError, as_spec_error, describe, nearest
from ezm_pl.spec.experiment import Experiment
from ezm_pl.spec.facts import why_unread
from ezm_pl.spec.io import build_experiment, flatten, parse_settings, read_document
from ezm_pl.spec.metrics import logged_metrics
from ezm_pl.spec.presets import merge, nested
from ezm_pl.spec.sweep import Choice, Dimension, SweepSpec, parse_points, point_label, point_tasks
from ezm_pl.spec.variants import REFERENCE, read_variants, selected, unfit
from ezm_pl.spec.yaml_file import dump_yaml, read_yaml

_FIXED = ("name", "preset", "seed", "tasks", "trainer.", "tracking.")
"""Fields under these cannot be searched: they are the sweep's own, or change nothing that is learned."""


@dataclass(frozen=True)
class Point:
    """A grid point.

    Attributes:
        label: in a word, such as `hb-8`, or the name of a variant.
        experiment: resolved; trials change its searched fields and its seed.
    """

    label: str
    experiment: Experiment


@dataclass(frozen=True)
class SweepPlan:
    """A sweep with every experiment resolved.

    Attributes:
        spec: as the file and the command line say it.
        points: the grid, in order; of variants, the base experiment first.
        left_out: variants that say nothing about the base, and why, in words.
    """

    spec: SweepSpec
    points: tuple[Point, ...]
    left_out: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What tells sweeps apart in a storage: name, preset and grid points.

        Of variants, the base in place of the points: a sweep may be given further variants later.
        """
        preset = self.points[0].experiment.preset
        if self.spec.variants:
            return f"{self.spec.name} {preset} {Path(self.spec.base).stem}"
        return f"{self.spec.name} {preset} {','.join(point.label for point in self.points)}"

    @cached_property
    def shared_tasks(self) -> tuple[str, ...]:
        """Tasks that all grid points have, in the first one's order; none of variants, as more may join."""
        if self.spec.variants:
            return ()
        first, *others = (point.experiment.tasks for point in self.points)
        return tuple(task for task in first if all(task in tasks for tasks in others))

    def document(self) -> dict[str, Any]:
        """Everything, as plain data: `from_document` makes an equal plan of it."""
        first = self.points[0].experiment
        grid, unused = ("variants", "tasks") if self.spec.variants else ("tasks", "variants")
        experiment = first.model_dump(
            mode="json", exclude={"name"} if grid == "variants" else {"tasks", "name"}
        )
        if grid == "tasks":  # of variants, the first has all tasks, and the others say what they change
            experiment["tasks_meta"] = {
                task: meta.model_dump(mode="json")
                for point in self.points
                for task, meta in point.experiment.tasks_meta.items()
            }
        return {
            **self.spec.model_dump(mode="json", exclude={"experiment", unused}),
            "trials": self.spec.trials_per_point,
            "experiment": experiment,
        }

    def text(self) -> str:
        """The document as YAML."""
        return dump_yaml(self.document())

    def changed(self, values: Mapping[str, Choice], point: Point, seed: int) -> Experiment:
        """A trial's experiment: `values` of the searched fields laid over the grid point's."""
        return _with(point.experiment, {**values, "seed": seed})

    def takes_whole(self, field: str) -> bool:
        """Whether a field takes whole numbers only."""
        model: Any = Experiment
        *sections, name = field.split(".")
        for section in sections:
            model = model.model_fields[section].annotation
            if not hasattr(model, "model_fields"):  # the weights of `loss.extra`
                return False
        return float not in _members(model.model_fields[name].annotation)

    def seed(self, trial: int, index: int) -> int:
        """Seed of a trial's run: trials that differ in their fields share seeds, repetitions do not."""
        base = self.points[0].experiment.seed
        return base + index + (0 if self.spec.search else trial * self.spec.seeds)


def load_sweep(
    path: str | Path,
    *,
    tasks: str | None = None,
    trials: int | None = None,
    seeds: int | None = None,
    preset: str | None = None,
    base: str | None = None,
    name: str | None = None,
    only: Sequence[str] = (),
    settings: Sequence[str] = (),
    gpu: bool = False,
) -> SweepPlan:
    """Reads, completes and checks a sweep.

    Args:
        path: the sweep's YAML file.
        tasks: grid points in place of the file's, such as `8,16,29`.
        trials: per grid point, in place of the file's.
        seeds: per trial, in place of the file's.
        preset: in place of the base experiment's.
        base: an experiment's file in place of the sweep's, relative to the working directory.
        name: of the sweep, in place of the file's.
        only: variants by name, in place of all.
        settings: `a.b=c`, laid over the base experiment.
        gpu: whether the machine has a GPU, for `preset: auto`.

    Raises:
        SpecError: anything that cannot work, in one line per problem.
    """
    path = Path(path)
    document = read_yaml(path)
    over: dict[str, Any] = {"trials": trials, "seeds": seeds, "base": base, "name": name}
    if tasks is not None:
        with as_spec_error(ValueError, named="TASKS"):
            over["tasks"] = parse_points(tasks)
    document |= {key: value for key, value in over.items() if value is not None}
    if isinstance(folder := document.get("variants"), str):
        document["variants"] = read_variants(path.parent / folder, source=str(path))
    if only and isinstance(document.get("variants") or {}, dict):  # else it is refused below
        document["variants"] = selected(document.get("variants") or {}, only)
    spec = _spec(document, source=str(path) if tasks is None else f"{path} with TASKS={tasks}")
    file = _base_file(spec.base, path) if base is None else Path(base)
    over = merge(spec.experiment, parse_settings(settings))
    for field, own in (("name", True), ("tasks", spec.tasks is not None)):
        if own and field in over:
            raise SpecError(
                f"{path}: experiment.{field} (or --set {field}=) cannot be set: the sweep has its own {field}"
            )
    experiment = merge(read_document(file), over)
    if preset is not None:
        experiment["preset"] = preset
    plan = _plan(spec, experiment, source=f"{path} (base {file})", gpu=gpu, required=only)
    _check_search(plan, source=str(path))
    _check_objective(plan, source=str(path))
    return plan


def from_document(document: dict[str, Any]) -> SweepPlan:
    """The plan that `SweepPlan.document` came from.

    Raises:
        SpecError: it was written by a version that this one does not understand.
    """
    spec = _spec(document, source="stored sweep")
    return _plan(spec, spec.experiment, source="stored sweep", gpu=False)


def of_point(document: dict[str, Any], label: str) -> dict[str, Any]:
    """What of a sweep's document says how one grid point is trained, of variants its own alone.

    The name of the base is left out: the experiment holds all that it says.
    """
    own = {key: value for key, value in document.items() if key != "base"}
    if "variants" in own:
        own["variants"] = {key: settings for key, settings in own["variants"].items() if key == label}
    return own


def _spec(document: dict[str, Any], *, source: str) -> SweepSpec:
    try:
        return SweepSpec.model_validate(document)
    except ValidationError as error:
        raise SpecError("\n".join(describe(error, SweepSpec, document, source))) from None


def _base_file(base: str, sweep: Path) -> Path:
    beside = sweep.parent / base
    return beside if beside.is_file() or not Path(base).is_file() else Path(base)


def _plan(
    spec: SweepSpec, experiment: dict[str, Any], *, source: str, gpu: bool, required: Sequence[str] = ()
) -> SweepPlan:
    if spec.variants:
        return _variants_plan(spec, experiment, source=source, gpu=gpu, required=required)
    points = []
    assert spec.tasks is not None
    labels = [point_label(point) for point in spec.tasks]
    known = {task for point in (*spec.tasks, *_own_tasks(experiment)) for task in point_tasks(point)}
    for index, point in enumerate(spec.tasks):
        label = labels[index] if labels.count(labels[index]) == 1 else f"{labels[index]}.{index + 1}"
        whole = {**experiment, "name": spec.name, "tasks": list(point_tasks(point))}
        whole = _without_meta_of(known - {*whole["tasks"]}, whole)
        points.append(Point(label, _built(whole, source=source, gpu=gpu)))
    return SweepPlan(spec, tuple(points))


def _variants_plan(
    spec: SweepSpec, experiment: dict[str, Any], *, source: str, gpu: bool, required: Sequence[str]
) -> SweepPlan:
    """The base and its variants, but for those that say nothing about it and are not `required`."""
    experiment = {**experiment, "name": spec.name}
    reference = _built(experiment, source=source, gpu=gpu)
    points, left_out = [Point(REFERENCE, reference)], []
    for label, settings in spec.variants.items():
        inherited = experiment
        if "tasks" in settings:
            inherited = _without_meta_of({*reference.tasks} - {*_own_tasks(settings)}, experiment)
        whole = merge(inherited, settings)
        built = _built(whole, source=f"{source}: variant {label}", gpu=gpu)
        why = unfit(label, built, reference, settings)
        if why and label in required:
            raise SpecError(f"{source}: variant {why}")
        if why:
            left_out.append(why)
        else:
            points.append(Point(label, built))
    kept = {point.label: spec.variants[point.label] for point in points[1:]}
    if not kept:
        raise SpecError(f"{source}: no variant is left: {'; '.join(left_out)}")
    return SweepPlan(spec.model_copy(update={"variants": kept}), tuple(points), tuple(left_out))


def _own_tasks(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The tasks that settings name; none where they are wrong, which is said when they are validated."""
    try:
        return point_tasks(settings.get("tasks", ()))
    except ValueError:
        return ()


def _without_meta_of(tasks: set[str], document: dict[str, Any]) -> dict[str, Any]:
    """A document without what it says of tasks that another grid point has, and this one has not."""
    meta = document.get("tasks_meta")
    if not isinstance(meta, dict):
        return document
    return {**document, "tasks_meta": {task: own for task, own in meta.items() if task not in tasks}}


def _built(document: dict[str, Any], *, source: str, gpu: bool) -> Experiment:
    built = build_experiment(document, source=source, gpu=gpu)
    if built.trainer.devices not in ("auto", 1) or built.trainer.num_nodes != 1:
        raise SpecError(
            f"{source}: trainer.devices: a sweep's trial runs on one device; start a worker for each GPU "
            "(CUDA_VISIBLE_DEVICES)"
        )
    return _with(built, {"trainer.devices": 1})


def _with(experiment: Experiment, values: Mapping[str, Any]) -> Experiment:
    return Experiment.model_validate(_document_with(experiment, values))


def _document_with(experiment: Experiment, values: Mapping[str, Any]) -> dict[str, Any]:
    document = experiment.model_dump(mode="json")
    for field, value in values.items():
        document = merge(document, nested(field, value))
    return document


def _members(annotation: Any) -> set[Any]:
    """The types that an annotation such as `Annotated[float, ...] | None` is made of."""
    inner = get_args(annotation)
    return {annotation}.union(*map(_members, inner)) if inner else {annotation}


def _check_search(plan: SweepPlan, *, source: str) -> None:
    """Raises `SpecError` for searched fields that do not exist or cannot take what is searched."""
    found = [(field, _field_problem(plan, field, dimension)) for field, dimension in plan.spec.search.items()]
    problems = [f"{source}: search.{field}: {problem}" for field, problem in found if problem]
    problems += [f"{source}: {problem}" for problem in _pruner_problems(plan)]
    if not problems:
        combined = itertools.product(plan.spec.probes(), plan.points)
        wrong = ((values, said) for values, point in combined if (said := _problem(point, values)))
        for values, said in itertools.islice(wrong, 1):
            given = ", ".join(map(repr, values.values()))
            problems.append(f"{source}: search.{', '.join(values)}: {given} cannot be, {said}")
    if not problems:
        built = [_with(point.experiment, values) for values in plan.spec.probes() for point in plan.points]
        for field in plan.spec.search:
            reasons = [why_unread(experiment, field) for experiment in built]
            if all(reasons):
                problems.append(f"{source}: search.{field}: no trial reads it: {reasons[0]}")
    if problems:
        raise SpecError("\n".join(problems))


def _field_problem(plan: SweepPlan, field: str, dimension: Dimension) -> str | None:
    fields = flatten(plan.points[0].experiment.model_dump(mode="json"))
    searchable = [name for name in fields if not name.startswith(_FIXED)]
    if field not in searchable:
        what = "cannot be searched" if field in fields else "no field of an experiment"
        return f"{what}{nearest(field, searchable)}"
    for point in plan.points:
        agent = point.experiment.agent
        if field.startswith(UNREAD[agent]):
            return f"agent {agent} (on {point.label}) does not read it"
    for label, settings in plan.spec.variants.items():
        if field in flatten(settings):
            return f"variant {label} sets it, too"
    for value in dimension.probes():
        problem = _problem(plan.points[0], {field: value}, alone=True)
        if problem:
            step = f" (from {dimension.low:g} in steps of {dimension.step:g})" if dimension.step else ""
            return f"{value!r}{step} cannot be, {problem}"
    return None


def _pruner_problems(plan: SweepPlan) -> Iterator[str]:
    """Why a pruner selects what it must not, or would never end a trial."""
    pruner, searched = plan.spec.pruner, plan.spec.search
    if pruner.kind == "none":
        return
    if not searched:
        yield "pruner: needs a search: without one, trials are seeds, and must not be selected"
    if not searched.keys().isdisjoint(("eval.every", "optim.total_updates", "optim.final_updates")):
        return
    for point in plan.points:
        every, updates = point.experiment.eval.every, point.experiment.max_steps
        first = -(-pruner.warmup_updates // every) * every
        if first >= updates:
            yield (
                f"pruner: prunes nothing on {point.label}: the first evaluation after pruner.warmup_updates "
                f"{pruner.warmup_updates:,}, every {every:,}, is not before the end, {updates:,} updates"
            )


def _problem(point: Point, values: Mapping[str, Choice], *, alone: bool = False) -> str | None:
    """What is wrong with a trial of these values on `point`; `alone`: with the fields themselves."""
    document = _document_with(point.experiment, values)
    try:
        Experiment.model_validate(document)
    except ValidationError as error:
        said = describe(error, Experiment, document, "")
        found = [
            text
            for line in said
            if (text := line.removeprefix(": ")).partition(": ")[0] in values or not alone
        ]
        return f"on {point.label}: {found[0]}" if found else None
    return None


def _check_objective(plan: SweepPlan, *, source: str) -> None:
    """Raises `SpecError` for an objective that the runs of some grid point do not log."""
    objective = plan.spec.objective
    logged = {point.label: set(logged_metrics(point.experiment)) for point in plan.points}
    for point in plan.points:
        if objective in logged[point.label]:
            continue
        hint = nearest(objective, sorted(set.intersection(*logged.values())))
        tasks = point.experiment.tasks
        if objective in logged_metrics(point.experiment, bounds=tasks):
            hint = ": that needs a task's random_score and success_score (tasks_meta)"
        raise SpecError(f"{source}: objective: no run on {point.label} logs {objective!r}{hint}")
