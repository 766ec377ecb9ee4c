"""`ezm report`: a sweep as one HTML page with its figures beside it, from MLflow alone."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from ezm_pl.spec import SpecError, writing
from ezm_pl.spec.files import file_name
from ezm_pl.sweeps import report_tables as tables
from ezm_pl.sweeps.ablations import ablation_parts
from ezm_pl.sweeps.findings import limits, listed, summary
from ezm_pl.sweeps.importance import LEAST_TRIALS, STEADY_TRIALS, importances
from ezm_pl.tracking.console import count, say
from ezm_pl.tracking.results import html
from ezm_pl.tracking.results.curves import Curve, published_curves, run_curves
from ezm_pl.tracking.store import first_line, store_errors
from ezm_pl.tracking.sweep import tags
from ezm_pl.tracking.sweep.figures import curves_figure, importance_figure, scaling_figure, slice_figure
from ezm_pl.tracking.sweep.runs import Sweep, open_sweep
from ezm_pl.tracking.sweep.scores import Band, PointScore, band, score_points

if TYPE_CHECKING:
    from mlflow import MlflowClient

REPORTS = Path("mlruns/reports")
PAGE = "report.html"
_RATE = "time/updates_per_second"


def make_report(
    reference: str, *, out: Path | None, published: Sequence[Path], console: Console, uri: str | None = None
) -> Path:
    """Writes a sweep's page, its PNG and SVG figures, and logs all of it to the sweep's run under `report/`.

    Args:
        reference: `last`, a run id, or a sweep's name.
        out: folder to write to; None: `mlruns/reports/<sweep name>-<run id>`.
        published: files of published learning curves to draw beside the sweep's.
        console: where to say what was written.
        uri: of the tracking store; None: the usual one.

    Returns:
        The page.

    Raises:
        SpecError: no such sweep, a file that is not published results, a folder that cannot be written, or
            MLflow does not take what was written.
    """
    others = [published_curves(path) for path in published]
    client, sweep = open_sweep(reference, uri)
    folder = out or REPORTS / file_name(f"{sweep.name}-{sweep.run_id[:8]}")
    path = folder / PAGE
    with tempfile.TemporaryDirectory() as made:  # the folder may hold other files, which MLflow must not take
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            page = _page(client, sweep, Path(made), others)
            Path(made, PAGE).write_text(page, encoding="utf-8")
            shutil.copytree(made, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
        state = " (partial: the sweep has not ended)" if sweep.partial else ""
        say(console, f"wrote {path}{state}")
        try:
            client.log_artifacts(sweep.run_id, made, "report")
        except store_errors() as error:
            raise SpecError(
                f"MLflow did not take the report into run {sweep.run_id}: {first_line(error)}"
            ) from None
    return path


def _page(
    client: MlflowClient, sweep: Sweep, folder: Path, published: Sequence[Mapping[str, Sequence[Curve]]]
) -> str:
    scored = score_points(sweep)
    parts = [html.heading(f"Sweep {sweep.name}", 1)]
    if sweep.partial:
        parts.append(html.paragraph(limits(sweep, scored)[0], "notice"))
    if sweep.reference is None:
        parts.append(html.paragraph(summary(sweep, scored)))
    held_against = [line for line in limits(sweep, scored) if not line.startswith("Partial")]
    if held_against:
        parts += [html.heading("What it cannot say", 3), html.bullets(held_against)]
    if sweep.reference is not None:
        parts += ablation_parts(sweep, scored, folder)
        parts += _search(sweep, scored, folder) if sweep.searched else []
    elif scored:
        parts += _scores(sweep, scored, folder)
        parts += _curves(client, sweep, scored, folder, published)
        parts += [html.heading("Final returns beside published ones")]
        for protocol, words in (("ezm", "ezm protocol"), ("humanoidbench", "humanoidbench protocol")):
            parts += [html.heading(words, 3), tables.returns_table(sweep, scored, protocol)]
        parts += _search(sweep, scored, folder)
    parts += [html.heading("Trials"), tables.trials_table(sweep)]
    parts += [html.heading("Cost"), tables.cost_table(sweep, _rates(client, sweep))]
    parts += _origin(sweep)
    return html.page(f"Sweep {sweep.name}", parts)


def _scores(sweep: Sweep, scored: Sequence[PointScore], folder: Path) -> list[str]:
    pictures = []
    if any(point.shared for point in scored):
        path = folder / "score_shared_tasks"
        svg = scaling_figure(scored, path, shared=True, tasks=len(sweep.shared_tasks))
        pictures.append((svg, "IQM of normalised scores on the shared tasks, by grid point"))
    if any(point.own for point in scored):
        svg = scaling_figure(scored, folder / "score_own_tasks", shared=False)
        pictures.append((svg, "IQM of normalised scores on each grid point's own tasks"))
    note = (
        "Interquartile mean over tasks and seeds; 95% percentile intervals from a bootstrap that resamples "
        "seeds within each task (Agarwal et al. 2021). Each grid point's own tasks are different ones, so "
        "scores on them can be compared only roughly."
    )
    shared = f"Shared tasks: {listed(sweep.shared_tasks)}." if sweep.shared_tasks else ""
    return [
        html.heading("Score against the number of tasks"),
        html.figures(pictures),
        html.paragraph(f"{note} {shared}", "quiet"),
        tables.scores_table(sweep, scored),
    ]


def _curves(
    client: MlflowClient,
    sweep: Sweep,
    scored: Sequence[PointScore],
    folder: Path,
    published: Sequence[Mapping[str, Sequence[Curve]]],
) -> list[str]:
    """The scored protocol's curves, and the other's too where curves of it were given to compare with."""
    found = _bands(client, scored)
    others = {
        task: [curve for document in published for curve in document.get(task, ())] for task in sweep.tasks
    }
    given = {curve.protocol for curves in others.values() for curve in curves}
    parts = [html.heading("Learning curves")]
    for protocol in sorted({sweep.protocol, *given}, key=lambda name: name != sweep.protocol):
        pictures = [
            (
                curves_figure(
                    task,
                    found[task, protocol],
                    folder / f"curves_{protocol}" / file_name(task),
                    protocol=protocol,
                    labels=[point.label for point in sweep.points],
                    published=[curve for curve in others[task] if curve.protocol == protocol],
                ),
                f"Learning curves of {task}, {protocol} protocol",
            )
            for task in sweep.tasks
            if (task, protocol) in found
        ]
        words = {"ezm": "falls do not end the episode", "humanoidbench": "summed up to the first fall"}
        parts += [html.heading(f"{protocol} protocol ({words[protocol]})", 3), html.figures(pictures)]
        if not pictures:
            parts.append(html.paragraph("No evaluations were logged.", "quiet"))
    best = " of each grid point's best trial" if sweep.searched else ""
    note = f"Mean over seeds{best}; the band spans the lowest and highest seed."
    if given:
        note += " Published curves are cut where the sweep's runs end."
    return [*parts, html.paragraph(note, "quiet")]


def _bands(client: MlflowClient, scored: Sequence[PointScore]) -> dict[tuple[str, str], dict[str, Band]]:
    """(task, protocol) to grid point to its curves over seeds."""
    curves: dict[tuple[str, str], dict[str, list[Curve]]] = {}
    for point in scored:
        for run in point.runs:
            for task, own in run_curves(client, run.run_id).items():
                for curve in own:
                    of_task = curves.setdefault((task, curve.protocol), {})
                    of_task.setdefault(point.point.label, []).append(curve)
    return {key: {label: band(group) for label, group in by.items()} for key, by in curves.items()}


def _search(sweep: Sweep, scored: Sequence[PointScore], folder: Path) -> list[str]:
    parts = [html.heading("What was searched")]
    if not sweep.searched:
        return [*parts, html.paragraph("Nothing: every grid point has the base experiment's values.")]
    parts.append(tables.best_table(sweep, scored))
    rows = {point.label: tables.trial_rows(point.trials) for point in sweep.points}
    log = [name for name in sweep.searched if "log" in sweep.params.get(f"search.{name}", "")]
    shares = {
        label: found
        for label, trials in rows.items()
        if (found := importances(trials, direction=sweep.direction, log=log))
    }
    parts.append(html.heading("Parameter importances", 3))
    few = [f"{label} ({len(trials)})" for label, trials in rows.items() if len(trials) < LEAST_TRIALS]
    if few:
        parts.append(
            html.paragraph(
                f"Too few complete trials for importances, {LEAST_TRIALS} are needed per grid point: "
                f"{listed(few)}."
            )
        )
    if shares:
        pictures = [(importance_figure(shares, folder / "importances"), "Importance of each searched field")]
        note = "PED-ANOVA: the share of each field in reaching the best quarter of a grid point's trials."
        if any(len(rows[label]) < STEADY_TRIALS for label in shares):
            note += f" Below {STEADY_TRIALS} complete trials per grid point they are rough."
        parts += [html.figures(pictures), html.paragraph(note, "quiet")]
    slices = [
        (
            slice_figure(
                field,
                {
                    label: [(values[field], objective) for values, objective in trials if field in values]
                    for label, trials in rows.items()
                },
                folder / "slices" / field,
                objective=sweep.params.get("objective", tags.OBJECTIVE),
            ),
            f"Objective against {field}",
        )
        for field in sweep.searched
        if any(field in values for trials in rows.values() for values, _ in trials)
    ]
    if slices:
        parts += [html.heading("Objective against each searched field", 3), html.figures(slices)]
        parts.append(
            html.paragraph("Each mark is one complete trial: its objective, averaged over seeds.", "quiet")
        )
    return parts


def _rates(client: MlflowClient, sweep: Sweep) -> dict[str, float]:
    """Run id to its mean updates per second."""
    rates = {}
    for run in sweep.runs:
        if _RATE in run.metrics:
            history = client.get_metric_history(run.run_id, _RATE)
            rates[run.run_id] = float(np.mean([point.value for point in history]))
    return rates


def _origin(sweep: Sweep) -> list[str]:
    asked = [f"{name}: {value}" for name, value in sorted(sweep.params.items())]
    parts = [html.heading("How it was made"), html.code("\n".join(asked))]
    if sweep.spec:
        again = f"ezm sweep run sweeps/{sweep.name}.yaml"
        parts += [html.heading(tags.SPEC_FILE, 3), html.paragraph(f"Save it under sweeps/, then: {again}")]
        parts.append(html.code(sweep.spec))
    parts += [html.heading("Where it ran", 3), html.code("\n".join(tables.host_lines(sweep.runs)))]
    parts.append(
        html.paragraph(f"MLflow run {sweep.run_id}, {count(len(sweep.runs), 'training run')}.", "quiet")
    )
    return parts
