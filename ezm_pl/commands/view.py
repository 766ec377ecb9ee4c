"""`ezm figure`, `ezm report` and `ezm ui`: look at runs and sweeps."""

from __future__ import annotations

import argparse
from pathlib import Path

from ezm_pl.commands import outputs
from ezm_pl.commands.arguments import Group, add_published, add_run, command, new_console, number

PORT = 5000


def add(group: Group) -> None:
    """Adds the commands."""
    figure = command(group, "figure", _figure, "draw a run's returns against environment steps")
    add_run(figure)
    figure.add_argument("--published", type=Path, metavar="JSON", help="published curves to draw beside them")
    outputs.add_figure(figure, "returns.png")
    report = command(group, "report", _report, "a sweep's findings as an HTML page and figures, from MLflow")
    report.add_argument(
        "sweep", nargs="?", default="last", metavar="SWEEP", help="last (default), a run id, a sweep's name"
    )
    add_published(report, "published curves to draw beside its own")
    report.add_argument("--out", type=outputs.folder, metavar="DIR", help="default: mlruns/reports/SWEEP-RUN")
    ui = command(group, "ui", _ui, "serve MLflow's UI on this machine")
    ui.add_argument("--port", type=number(1, 65535), default=PORT, help=f"default: {PORT}")


def _figure(args: argparse.Namespace) -> None:
    from ezm_pl.tracking.results.draw import draw_returns

    draw_returns(args.run, args.out, published=args.published, console=new_console())


def _report(args: argparse.Namespace) -> None:
    from ezm_pl.sweeps.report import make_report

    make_report(args.sweep, out=args.out, published=args.published, console=new_console())


def _ui(args: argparse.Namespace) -> None:
    from ezm_pl.tracking.ui import serve_ui

    serve_ui(args.port)
