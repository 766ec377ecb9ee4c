"""`ezm figure`: the returns figure of a run, again, with published learning curves beside it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ezm_pl.spec import SpecError
from ezm_pl.tracking.runs.run_lookup import find_run
from ezm_pl.tracking.store import open_store, shown, tracking_uri


def draw_returns(reference: str, output: Path, *, published: Path | None, console: Console) -> None:
    """Draws a run's evaluation curves from MLflow, and published ones where a file of them is given.

    Raises:
        SpecError: no such run, no evaluation in it, or a file that is not published results.
    """
    from mlflow.exceptions import MlflowException

    from ezm_pl.tracking.results.curves import published_curves, run_curves
    from ezm_pl.tracking.results.returns_figure import returns_figure

    others = published_curves(published) if published else None
    run_id = find_run(reference, option="RUN").run_id
    client = open_store(tracking_uri())
    try:
        name = client.get_run(run_id).info.run_name
    except MlflowException:
        raise SpecError(f"RUN {reference}: run {run_id} is not in {shown(tracking_uri())}") from None
    curves = run_curves(client, run_id)
    if not curves:
        raise SpecError(f"RUN {reference}: run {run_id} has no evaluations yet")
    returns_figure(curves, output, title=name, published=others)
    console.print(f"wrote {output}", highlight=False)
