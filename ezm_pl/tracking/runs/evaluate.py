"""`ezm eval`: a checkpoint's returns as a table, and films of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ezm_pl.spec import writing
from ezm_pl.tracking.console import say
from ezm_pl.tracking.runs.run_lookup import usable_checkpoint

if TYPE_CHECKING:
    from ezm_pl.training.from_checkpoint import Descriptions


def evaluate_run(
    reference: str,
    *,
    episodes: int,
    seed: int,
    search: bool,
    settings: Sequence[str],
    video: Path | None,
    console: Console,
    descriptions: Descriptions = None,
) -> None:
    """Evaluates the checkpoint behind `reference` (see `find_checkpoint`) and prints a table.

    Args:
        reference: `last`, a run id, a run folder or a checkpoint.
        episodes: per task, and per description.
        seed: of the environments and the search.
        search: plan; otherwise the policy decides alone.
        settings: `search.a=b`, laid over the checkpoint's spec.
        video: folder for one MP4 per task; None: no films.
        console: where to print.
        descriptions: see `ezm_pl.training.evaluate`.

    Raises:
        SpecError: no such run, a checkpoint that cannot be read, or films that cannot be written.
    """
    checkpoint = usable_checkpoint(reference, console)
    from ezm_pl.tracking.results.tables import returns_table
    from ezm_pl.tracking.results.videos import film_tasks
    from ezm_pl.training import evaluate

    evaluation = evaluate(
        checkpoint, episodes=episodes, seed=seed, settings=settings, search=search, descriptions=descriptions
    )
    console.print(returns_table(evaluation))
    if descriptions is not None:
        count = evaluation.returns_ezm.shape[1] // episodes
        say(console, f"by {count} {descriptions} descriptions of each task")
    say(console, f"{checkpoint}: {evaluation.updates:,} updates, {evaluation.env_steps:,} env steps per task")
    if video is not None:
        with writing(video):
            films = film_tasks(
                checkpoint,
                evaluation.tasks,
                video,
                seed=seed,
                console=console,
                search=search,
                settings=settings,
                descriptions=descriptions,
            )
        for path in films:
            say(console, f"wrote {path}")
