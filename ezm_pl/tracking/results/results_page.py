"""`ezm results render`: a page of results, written from its template and the records."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from ezm_pl.spec import SpecError, normalized_score, read_text
from ezm_pl.spec.tasks import score_bounds
from ezm_pl.tracking.results.comparison import INTERPOLATED, Agent, thousands
from ezm_pl.tracking.results.curves import Curve
from ezm_pl.tracking.results.record import curves_of, read_record
from ezm_pl.tracking.runs.metrics import part_in_words
from ezm_pl.tracking.sweep.statistics import bootstrap_difference, bootstrap_iqm, probability_of_improvement
from ezm_pl.tracking.sweep.statistics import trend as trend_of

_MOST_COLUMNS = 8
_NONE = ""
_WAYS = ("planned", "policy alone")
"""In which the episodes of a last checkpoint are played."""


def render(template: Path, records: Path) -> str:
    """The page's text.

    Args:
        template: in Jinja2. It calls `returns`, `final`, `steadiness`, `published`, `variants`, `trend`,
            `conflict` and `runs` for tables, each with a record's name, and writes no number of a run itself.
        records: folder of the records (`ezm results collect`).

    Raises:
        SpecError: a template that cannot be read or is wrong, or a record that is missing or damaged.
    """
    tables = {
        "returns": returns,
        "final": final,
        "steadiness": steadiness,
        "published": published,
        "variants": variants,
        "trend": trend,
        "conflict": conflict,
        "runs": runs,
    }

    def table(name: str, make: Any, record: str, *arguments: Any, **named: Any) -> str:
        loaded = read_record(records / f"{record}.json", f"{template}: {name}({record!r})")
        try:
            text: str = make(loaded, *arguments, **named)
        except (KeyError, IndexError, TypeError, ValueError, StopIteration) as error:
            raise SpecError(f"{template}: {name}({record!r}): {records / record}.json: {error!r}") from None
        return text

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    try:
        page = environment.from_string(read_text(template))
        return page.render({name: partial(table, name, make) for name, make in tables.items()})
    except OSError as error:
        raise SpecError(f"{template}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{template}: cannot be read: {error}") from None
    except jinja2.TemplateError as error:
        raise SpecError(f"{template}: {error.message}") from None


def stale(page: Path, text: str) -> str | None:
    """The first line in which a written page differs from what would be written; None where none does."""
    written = page.read_text(encoding="utf-8") if page.is_file() else ""
    lines = difflib.unified_diff(written.splitlines(), text.splitlines(), lineterm="", n=0)
    without_header = islice(lines, 2, None)
    return next((line for line in without_header if line[0] in "+-"), None)


def returns(record: Mapping[str, Any], agent: str | None = None, protocol: str | None = None) -> str:
    """Learning curves of an agent (None: the only one): a row per task, at most eight evaluations."""
    own = _of_agent(record, agent)
    protocol = protocol or own[0]["protocol"]
    curves = {task: [_curve(run, task, protocol) for run in own] for task in own[0]["tasks"]}
    steps = min(
        (each for found in curves.values() for each in found), key=lambda c: c.env_steps[-1]
    ).env_steps
    chosen = steps[
        np.unique(np.linspace(0, len(steps) - 1, min(_MOST_COLUMNS, len(steps))).round().astype(int))
    ]
    rows = [
        [task, *(_reading(Agent(task, tuple(found), True), at) for at in chosen)]
        for task, found in curves.items()
    ]
    return _table(["control steps per task", *map(thousands, chosen)], rows)


def final(record: Mapping[str, Any]) -> str:
    """Returns of the episodes that were played with the last checkpoints: a row per task and agent."""
    rows, notes = [], []
    for name, own in _with_episodes(record).items():
        if settings := own[0]["final"].get("settings"):
            notes.append(f"\n{name}: planned with {', '.join(settings)}.")
        for task in own[0]["tasks"]:
            each = own[0]["final"]["episodes"]
            means = [_interval([[_mean_played(run, way, task) for run in own]]) for way in _WAYS]
            rows.append([task, name, str(len(own)), str(each), *means])
    return "\n".join([_table(["task", "agent", "seeds", "episodes per seed", *_WAYS], rows), *notes])


def steadiness(record: Mapping[str, Any]) -> str:
    """How much episodes of a last checkpoint, and the last evaluations, differ: a row per task and agent."""
    rows = []
    for name, own in _with_episodes(record).items():
        own.sort(key=lambda run: run["seed"])
        for task in own[0]["tasks"]:
            played = [np.array(run["final"]["planned"][run["protocol"]][task]) for run in own]
            low = [int((returns < np.median(returns) / 2).sum()) for returns in played]
            last = [_curve(run, task, run["protocol"]).returns[-3:] for run in own]
            spread = [f"{1 - each.min() / each.max():.0%}" for each in last]
            seeds = ", ".join(str(run["seed"]) for run in own)
            rows.append([task, name, seeds, ", ".join(map(str, low)), ", ".join(spread)])
    head = ["task", "agent", "seeds", "planned episodes below half of their median"]
    return _table([*head, "last three evaluations: 1 − lowest / highest"], rows)


def published(record: Mapping[str, Any], at: int | None = None) -> str:
    """Published returns at steps that they were recorded at, ours beside them: a row per agent.

    Args:
        at: control steps per task; None: the first that were recorded.

    Raises:
        KeyError: nothing was recorded at `at`.
    """
    rows = []
    steps = record["published"][0]["env_steps"] if at is None else at
    theirs = [row for row in record["published"] if row["env_steps"] == steps]
    if not theirs:
        raise KeyError(f"no published returns at {steps:,} steps; collect it with --at {steps}")
    tasks = list(dict.fromkeys(row["task"] for row in theirs))
    for protocol in dict.fromkeys(row["protocol"] for row in theirs):
        others = [row for row in theirs if row["protocol"] == protocol]
        against = {row["task"] for row in others}
        for name in _agents(record):
            own = _of_agent(record, name)
            cells = []
            for task in tasks:
                found = [
                    _curve(run, task, protocol if protocol != "dm_control" else "ezm")
                    for run in own
                    if task in run["returns"] and task in against
                ]
                cells.append(_reading(Agent(name, tuple(found), True), steps) if found else _NONE)
            rows.append([f"**{name}**", protocol, str(len(own)), *cells])
        for name in dict.fromkeys(row["agent"] for row in others):
            by_task = {row["task"]: row for row in others if row["agent"] == name}
            seeds = next(iter(by_task.values()))["seeds"]
            cells = [_published_return(by_task[task]) if task in by_task else _NONE for task in tasks]
            rows.append([name, protocol, "mean" if seeds is None else str(seeds), *cells])
    return _table([f"at {thousands(steps)} control steps per task", "protocol", "seeds", *tasks], rows)


def variants(record: Mapping[str, Any], reference: str = "full") -> str:
    """Agents against a reference, on the tasks of both: IQM of last scores, difference, probability."""
    base = _of_agent(record, reference)
    rows = []
    for name in [reference, *(name for name in _agents(record) if name != reference)]:
        own = _of_agent(record, name)
        tasks = [task for task in base[0]["tasks"] if task in own[0]["tasks"]]
        ours, theirs = ([[_score(run, task) for run in each] for task in tasks] for each in (own, base))
        against = [_NONE, _NONE]
        if name != reference:
            chance = probability_of_improvement(theirs, ours)
            against = [bootstrap_difference(ours, theirs).text(3), chance.text(2)]
        rows.append([name, str(len(own)), ", ".join(tasks), bootstrap_iqm(ours).text(3), *against])
    head = ["variant", "seeds", "tasks", "score, IQM", f"minus {reference}", f"P({reference} scores higher)"]
    return _table(head, rows)


def trend(record: Mapping[str, Any], task: str) -> str:
    """A task's returns by the number of tasks that were trained together: a row per kind of evaluation."""
    named = sorted(_agents(record), key=lambda name: len(_of_agent(record, name)[0]["tasks"]))
    agents = {name: own for name in named if task in (own := _of_agent(record, name))[0]["tasks"]}
    kinds: dict[str, list[list[float]]] = {
        "last evaluation": [[_last(run, task) for run in own] for own in agents.values()]
    }
    if all(run["final"] for own in agents.values() for run in own):
        for way in _WAYS:
            kinds[f"{record['runs'][0]['final']['episodes']} episodes, {way}"] = [
                [_mean_played(run, way, task) for run in own] for own in agents.values()
            ]
    rows = [
        [kind, *(_interval([group]) for group in groups), trend_of(groups).text]
        for kind, groups in kinds.items()
    ]
    return _table([f"{task}, returns", *agents, "in order of the number of tasks"], rows)


def conflict(record: Mapping[str, Any], agent: str | None = None) -> str:
    """How far the gradients of tasks agree (docs/diagnose.md), over seeds: a row per agent and part."""
    rows = []
    for name in _agents(record) if agent is None else [agent]:
        own = [each for run in _of_agent(record, name) if (each := run.get("gradient_conflict"))]
        for part in own[0] if own else ():
            cells = [
                bootstrap_iqm([[each[part][number] for each in own]]).text(3)
                for number in ("cosine", "own_cosine", "conflicting")
            ]
            rows.append([name, part_in_words(part), str(len(own)), *cells])
    if not rows:
        raise KeyError("no run has measured it; train with trainer.gradient_conflict_every")
    head = ["agent", "part", "seeds", "cosine of two tasks", "of a task's own halves", "pairs below 0"]
    return _table(head, rows)


def runs(record: Mapping[str, Any]) -> str:
    """Where the numbers are from: a row per run."""
    rows = []
    for run in record["runs"]:
        hardware = run["hardware"]
        cores = hardware["host.cores"]
        machine = f"{cores} core{'s' if cores != '1' else ''} of {hardware['host.cpu']}"
        if hardware["host.gpu"] != "none":
            machine = f"{hardware['host.gpu']}, {machine}"
        minutes = "resumed" if run["minutes"] is None else f"{run['minutes']:,.0f}"
        commit = f"`{run['commit'][:7]}`" + (" and uncommitted changes" if run["uncommitted"] else "")
        made = [f"{run['updates']:,}", f"{run['env_steps']:,}", minutes, commit, machine]
        rows.append([run["agent"], f"`{run['run'][:8]}`", str(run["seed"]), *made])
    head = ["agent", "run", "seed", "updates", "control steps per task", "minutes", "commit", "hardware"]
    return "\n".join([_table(head, rows), "", *_specs(record)])


def _specs(record: Mapping[str, Any]) -> list[str]:
    """One line per agent: what it was trained with; of variants, what they change."""
    first = {name: _of_agent(record, name)[0] for name in _agents(record)}
    base = next(iter(first.values()))
    lines = []
    for name, run in first.items():
        settings = (
            run["settings"] if run is base else dict(run["settings"].items() - base["settings"].items())
        )
        settings |= (
            {} if run is base else {key: "preset's" for key in base["settings"].keys() - run["settings"]}
        )
        if run["tasks"] != base["tasks"]:
            settings |= {"tasks": ", ".join(run["tasks"])}
        said = ", ".join(f"{key}={value}" for key, value in sorted(settings.items())) or "nothing"
        over = f"preset {run['preset']}" if run is base else next(iter(first))
        lines.append(f"- {name}: {over} with {said}; {run['episodes']} episodes per evaluation.")
    return lines


def _agents(record: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(run["agent"] for run in record["runs"]))


def _with_episodes(record: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Agent to its runs whose last checkpoints have played episodes."""
    found = {name: [run for run in _of_agent(record, name) if run["final"]] for name in _agents(record)}
    found = {name: own for name, own in found.items() if own}
    if not found:
        raise KeyError("no run has final episodes; collect it with --episodes")
    return found


def _of_agent(record: Mapping[str, Any], agent: str | None) -> list[Mapping[str, Any]]:
    names = _agents(record)
    if agent is None and len(names) > 1:
        raise KeyError(f"name one of the agents {', '.join(names)}")
    if agent is not None and agent not in names:
        raise KeyError(f"no agent {agent!r} among {', '.join(names)}")
    return [run for run in record["runs"] if run["agent"] == (agent or names[0])]


def _curve(run: Mapping[str, Any], task: str, protocol: str) -> Curve:
    return next(curve for curve in curves_of(run)[task] if curve.protocol == protocol)


def _score(run: Mapping[str, Any], task: str) -> float:
    """The published bounds' score; for a task that has none, by the spec's; NaN where nobody says any."""
    own = [run["settings"].get(f"tasks_meta.{task}.{bound}") for bound in ("random_score", "success_score")]
    bounds = None if score_bounds(task) or None in own else (float(own[0]), float(own[1]))
    return normalized_score(task, _last(run, task), bounds)


def _last(run: Mapping[str, Any], task: str) -> float:
    return float(_curve(run, task, run["protocol"]).returns[-1])


def _mean_played(run: Mapping[str, Any], way: str, task: str) -> float:
    return float(np.mean(run["final"][way][run["protocol"]][task]))


def _reading(agent: Agent, steps: float) -> str:
    reading = agent.at(steps)
    return reading.mark + _interval([reading.returns]) if reading.returns else reading.absent


def _published_return(row: Mapping[str, Any]) -> str:
    return f"{INTERPOLATED if row.get('interpolated') else ''}{row['return']:,.0f}"


def _interval(values: Sequence[Sequence[float]]) -> str:
    found = bootstrap_iqm(values)
    return found.text(0 if abs(found.value) >= 10 else 1)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
