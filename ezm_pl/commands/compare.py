"""`ezm compare`: returns of runs beside published ones."""

from __future__ import annotations

import argparse

from ezm_pl.commands import outputs
from ezm_pl.commands.arguments import Group, add_published, add_steps, command, new_console


def add(group: Group) -> None:
    """Adds the command."""
    compare = command(group, "compare", _compare, "set returns beside published ones at equal steps")
    compare.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="last, a run id, a run folder, a checkpoint, or a record (JSON); equal settings are one agent",
    )
    add_published(compare, "published curves as JSON")
    add_steps(compare, "to compare at", "where the shortest run ends")
    outputs.add_figure(compare, "compare.png")


def _compare(args: argparse.Namespace) -> None:
    from ezm_pl.tracking.results.compare import compare_runs

    compare_runs(args.runs, published=args.published, at=args.at, out=args.out, console=new_console())
