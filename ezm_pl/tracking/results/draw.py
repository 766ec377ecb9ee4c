"""`ezm figure`: the returns figure of a run, again, with published learning curves beside it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ezm_pl.spec import SpecError, writing
from ezm_pl.tracking.console import say
from ezm_pl.tracking.runs.mlflow_run import stored_run
from ezm_pl.tracking.runs.run_lookup import find_run


def draw_returns(reference: str, output: Path, *, published: Path | None, console: Console) -> None:
    """Draws a run's evaluation curves from MLflow, and published ones where a file of them is given.

    Raises:
        SpecError: no such run, no evaluation in it, or a file that is not published results.
    """
    from ezm_pl.tracking.results.curves import published_curves, run_curves
    from ezm_pl.tracking.results.returns_figure import returns_figure

    others = published_curves(published) if published else None
    _, client, run = stored_run(find_run(reference, option="RUN"))
    curves = run_curves(client, run.info.run_id)
    if not curves:
        raise SpecError(f"RUN {reference}: run {run.info.run_id} has no evaluations yet")
    with writing(output):
        returns_figure(curves, output, title=run.info.run_name, published=others)
    say(console, f"wrote {output}")
