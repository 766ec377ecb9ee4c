"""The record of runs: what they returned, with where each number is from, as one JSON file.

`ezm results collect` makes it from MLflow alone, but for the final episodes, which are played with the run's
checkpoint. Pages of results are written from it (see `results_page.py`). `ezm compare` takes it in place of
runs whose store is no longer at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from ezm_pl.spec import SpecError, build_experiment, read_json, write_json
from ezm_pl.spec.agents import UNREAD
from ezm_pl.tracking.console import count, say
from ezm_pl.tracking.results.comparison import contests
from ezm_pl.tracking.results.curves import Curve, read_published, run_curves
from ezm_pl.tracking.runs.metrics import ENV_STEPS, GRADIENT_CONFLICT
from ezm_pl.tracking.runs.mlflow_run import last_params, resumes, stored_run
from ezm_pl.tracking.runs.params import spec_params
from ezm_pl.tracking.runs.run_lookup import checkpoint_errors, find_run, usable_checkpoint
from ezm_pl.tracking.sweep.runs import open_sweep
from ezm_pl.tracking.sweep.scores import score_points

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_HOST = ("host.cpu", "host.cores", "host.gpu", "version.torch", "version.mujoco")
_NOT_SETTINGS = (
    "name", "seed", "tracking.", "trainer.", "env.worker", "env.max_worker_restarts", "eval.at_start",
    "eval.video", "optim.compiled", "optim.max_skipped_updates", "replay.save", "search.compiled",
)  # fmt: skip
"""Params under these say how a run was made, not what was trained."""


def collect_runs(
    references: Sequence[str],
    *,
    sweep: str | None,
    published: Sequence[Path],
    at: Sequence[int],
    episodes: int | None,
    seed: int,
    settings: Sequence[str],
    out: Path,
    console: Console,
) -> None:
    """Writes the record of finished runs, or of a sweep's.

    Args:
        references: runs and records, as for `read_runs`.
        sweep: a sweep in place of runs: each grid point is an agent, of the runs that `score_points` scores.
        published: files of published curves.
        at: control steps per task to record these at; none: where the shortest run ends, rounded down to
            tens of thousands.
        episodes: per task, played with each last checkpoint, planned and by the policy alone; None: none.
            Of a run in a record they are as they were.
        seed: of these episodes.
        settings: `search.a=b`, laid over the specs of these episodes' checkpoints.
        out: the JSON file.
        console: where to say what was written.

    Raises:
        SpecError: no such run or sweep, a run that has not finished, was not evaluated or is named twice,
            published files that are none, share a name or end before a number of `at`, a file that
            cannot be written.
    """
    others = read_published(published)
    if sweep:
        runs = [_record(client, run, label) for client, run, label in _of_sweep(sweep)]
        references = [run["run"] for run in runs]
    else:
        runs = read_runs(references, finished=True)
    if episodes is not None:
        tracked = {find_run(each, option="RUN").run_id: each for each in references if not _is_record(each)}
        for run in runs:
            if run["run"] in tracked:
                run["final"] = _final(tracked[run["run"]], episodes, seed, settings, console)
    document = {"runs": runs, "published": _published(runs, others, at)}
    write_json(out, document)
    say(console, f"wrote {out}: {count(len(runs), 'run')}")


def read_runs(references: Sequence[str], *, finished: bool) -> list[dict[str, Any]]:
    """The records of runs; those of equal settings are one agent's seeds.

    Args:
        references: each a run id, a run folder, a checkpoint or `last`, or a record's JSON file.
        finished: whether the runs must be.

    Raises:
        SpecError: no such run or record, a run that has not finished, has no evaluations or is named twice.
    """
    runs: list[dict[str, Any]] = []
    for reference in references:
        if _is_record(reference):
            found = read_record(Path(reference), "RUN")["runs"]
        else:
            _, client, run = stored_run(find_run(reference, option="RUN"))
            if finished and run.info.status != "FINISHED":
                raise SpecError(
                    f"RUN {run.info.run_id}: is {run.info.status} in MLflow; only finished runs are recorded"
                )
            found = [_record(client, run, run.data.params["name"])]
        for each in found:
            if each["run"] in [other["run"] for other in runs]:
                raise SpecError(f"RUN {reference}: run {each['run']} is named twice")
            runs.append(each)
    _name_agents(runs)
    return runs


def _is_record(reference: str) -> bool:
    return reference.endswith(".json")


def read_record(path: Path, named: str) -> dict[str, Any]:
    """A record's file.

    Args:
        path: of the file.
        named: how it was named, for messages.

    Raises:
        SpecError: no such file, or no record.
    """
    try:
        document = read_json(path)
        if not document.get("runs"):
            raise ValueError("it has no runs")
        for run in document["runs"]:  # of older records, too
            settings = run.get("settings", {})
            run["settings"] = {k: v for k, v in settings.items() if not k.startswith(_NOT_SETTINGS)}
    except FileNotFoundError:
        raise SpecError(
            f"{named}: no record {path}; `ezm results collect RUN --out {path}` makes it"
        ) from None
    except (OSError, ValueError, AttributeError) as error:
        raise SpecError(f"{named}: {path} is no record: {error}") from None
    return dict(document)


def curves_of(run: Mapping[str, Any]) -> dict[str, list[Curve]]:
    """Task to the curves of a recorded run, one per protocol."""
    return {
        task: [
            Curve(
                run["agent"],
                each["protocol"],
                np.array(each["env_steps"], float),
                np.array(each["returns"], float),
            )
            for each in curves
        ]
        for task, curves in run["returns"].items()
    }


def _of_sweep(reference: str) -> list[tuple[MlflowClient, Run, str]]:
    client, sweep = open_sweep(reference)
    found = [
        (client, client.get_run(run.run_id), scored.point.label)
        for scored in score_points(sweep)
        for run in scored.runs
    ]
    if not found:
        raise SpecError(f"--sweep {reference}: no trial of it is complete")
    return found


def _record(client: MlflowClient, run: Run, label: str) -> dict[str, Any]:
    run_id, params, marks = run.info.run_id, last_params(run), run.data.tags
    curves = run_curves(client, run_id)
    if not curves:
        raise SpecError(f"RUN {run_id}: has no evaluations")
    tasks = params["tasks"].split(", ")
    resumed = resumes(run)
    return {
        "agent": label,
        "run": run_id,
        "spec": params["name"],
        "preset": params["preset"],
        "settings": _settings(params, tasks) | ({"init": "a trained agent"} if "init" in marks else {}),
        "seed": int(params["seed"]),
        "tasks": tasks,
        "protocol": params["env.protocol"],
        "commit": marks.get("git.commit", "unknown"),
        "uncommitted": marks.get("git.dirty") == "true",
        "hardware": {name: marks.get(name, "unknown") for name in _HOST},
        "updates": max(point.step for point in client.get_metric_history(run_id, ENV_STEPS)),
        "env_steps": int(run.data.metrics[ENV_STEPS]),
        "minutes": None
        if resumed or run.info.end_time is None
        else round((run.info.end_time - run.info.start_time) / 60_000, 1),
        "resumed": resumed,
        "episodes": int(params["eval.episodes"]),
        "returns": {task: [_curve(curve) for curve in curves[task]] for task in tasks if task in curves},
        "gradient_conflict": _gradient_conflict(client, run),
        "final": None,
    }


def _gradient_conflict(client: MlflowClient, run: Run) -> dict[str, dict[str, float]] | None:
    """Part to the means over the run of what `trainer.gradient_conflict_every` measured; None without it."""
    found: dict[str, dict[str, float]] = {}
    for key in sorted(run.data.metrics):
        if key.startswith(GRADIENT_CONFLICT):
            _, part, number = key.split("/")
            history = client.get_metric_history(run.info.run_id, key)
            found.setdefault(part, {})[number] = round(float(np.mean([point.value for point in history])), 4)
    return found or None


def _settings(params: Mapping[str, str], tasks: Sequence[str]) -> dict[str, str]:
    """What the spec says beyond its preset and its agent reads, by field."""
    unread = UNREAD["sac" if params.get("agent") == "sac" else "ezm"]  # older runs name no agent
    document = {"name": "bare", "preset": params["preset"], "tasks": list(tasks)}
    meta: dict[str, Any] = {task: {} for task in tasks}  # so that each field of it has its default in `bare`
    bare = spec_params(build_experiment({**document, "tasks_meta": meta}))
    return {
        key: value
        for key, value in sorted(params.items())
        if (key in bare or key.startswith("loss.extra."))
        and bare.get(key) != value
        and not key.startswith(_NOT_SETTINGS + unread)
    }


def _curve(curve: Curve) -> dict[str, Any]:
    return {
        "protocol": curve.protocol,
        "env_steps": [int(steps) for steps in curve.env_steps],
        "returns": [round(float(value), 2) for value in curve.returns],
    }


def _final(
    reference: str, episodes: int, seed: int, settings: Sequence[str], console: Console
) -> dict[str, Any]:
    """Returns of episodes with a run's last checkpoint: way to act, protocol, task, each episode's."""
    from ezm_pl.training import evaluate

    with checkpoint_errors(f"RUN {reference}"):
        checkpoint = usable_checkpoint(reference, console)
        ways = {
            way: evaluate(checkpoint, episodes=episodes, seed=seed, settings=settings, search=search)
            for way, search in (("planned", True), ("policy alone", False))
        }
    found: dict[str, Any] = {"episodes": episodes, "seed": seed, "settings": list(settings)}
    for way, played in ways.items():
        tables = {"ezm": played.returns_ezm, "humanoidbench": played.returns_humanoidbench}
        found[way] = {
            protocol: dict(zip(played.tasks, table.round(2).tolist(), strict=True))
            for protocol, table in tables.items()
        }
    return found


def _name_agents(runs: Sequence[dict[str, Any]]) -> None:
    """Runs of equal settings are one agent's seeds, named after the first; others have names of their own."""
    first: list[dict[str, Any]] = []
    for run in runs:
        same = [other for other in first if _trained(other) == _trained(run)]
        if same:
            run["agent"] = same[0]["agent"]
            continue
        if run["agent"] in [other["agent"] for other in first]:
            run["agent"] += f" {run['run'][:8]}"
        first.append(run)


def _trained(run: Mapping[str, Any]) -> tuple[object, ...]:
    return run["preset"], run["settings"], run["tasks"]


def shortest_end(runs: Sequence[Mapping[str, Any]]) -> int:
    """Control steps per task at the first last evaluation of any task of recorded runs."""
    ends = [each["env_steps"][-1] for run in runs for curves in run["returns"].values() for each in curves]
    return int(min(ends))


def _published(
    runs: Sequence[Mapping[str, Any]], others: Mapping[str, Mapping[str, Sequence[Curve]]], at: Sequence[int]
) -> list[dict[str, Any]]:
    """Published means of the runs' tasks at `at` or else where the shortest of them ends."""
    if not others:
        return []
    found = contests({run["run"]: curves_of(run) for run in runs}, others)
    last = shortest_end(runs)
    # Rounded: a run ends some steps past its budget, and the page's tables are headed with this number.
    default = last // 10_000 * 10_000 or last
    rows: list[dict[str, Any]] = []
    for steps in sorted(set(at)) or [default]:
        there = [
            (contest, agent, reading)
            for contest in found
            for agent in contest.agents
            if not agent.own and (reading := agent.at(steps)).returns
        ]
        if at and not there:
            raise SpecError(f"--at {steps}: no published curve of these tasks reaches it")
        rows += [
            {
                "task": contest.task,
                "protocol": contest.protocol,
                "agent": agent.name,
                "seeds": agent.seeds,
                "env_steps": steps,
                "return": round(reading.interval.value, 1),
                **({"interpolated": True} if reading.interpolated else {}),
            }
            for contest, agent, reading in there
        ]
    return rows
