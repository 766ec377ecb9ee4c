"""`ezm results`: the record of runs, and the pages of results that are written from records."""

from __future__ import annotations

import argparse
from pathlib import Path

from ezm_pl.commands import outputs
from ezm_pl.commands.arguments import (
    Group,
    add_published,
    add_search_settings,
    add_seed,
    add_steps,
    command,
    new_console,
    number,
    wrote,
)
from ezm_pl.spec import RunFailed, SpecError, writing
from ezm_pl.spec.fields import MOST_EPISODES

RECORDS = Path("docs/results")
TEMPLATE_SUFFIX = ".md.j2"


def add(group: Group) -> None:
    """Adds the commands."""
    results = group.add_parser("results", help="records of runs, and the pages that are written from them")
    kinds = results.add_subparsers(required=True, metavar="WHAT")
    collect = command(
        kinds, "collect", _collect, "write the record of finished runs, or of a sweep's, as JSON"
    )
    collect.add_argument(
        "runs", nargs="*", metavar="RUN", help="last, a run id, a run folder, a checkpoint, a record (JSON)"
    )
    collect.add_argument("--sweep", metavar="SWEEP", help="in place of runs: last, a run id, a sweep's name")
    add_published(collect, "published curves to record beside them")
    add_steps(collect, "to record published returns at", "where the shortest run ends, in tens of thousands")
    collect.add_argument(
        "--episodes", type=number(1, MOST_EPISODES), help="per task, played with each last checkpoint"
    )
    add_seed(collect, "of these episodes (default: 0)")
    add_search_settings(collect)
    collect.add_argument("--out", type=outputs.file_in((".json",)), required=True, metavar="FILE")
    render = command(kinds, "render", _render, "write pages from their templates and the records")
    render.add_argument(
        "templates",
        nargs="*",
        type=Path,
        metavar="TEMPLATE",
        help=f"its name ends in {TEMPLATE_SUFFIX}, and the page is written beside it; default: "
        f"{RECORDS}{TEMPLATE_SUFFIX} and those in {RECORDS}",
    )
    render.add_argument("--records", type=Path, default=RECORDS, metavar="DIR", help=f"default: {RECORDS}")
    render.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 where a page is not up to date"
    )


def _collect(args: argparse.Namespace) -> None:
    if bool(args.runs) == bool(args.sweep):
        raise SpecError("RUN or --sweep: one of them is required, and only one")
    if args.at and not args.published:
        raise SpecError("--at needs --published")
    if args.set and args.episodes is None:
        raise SpecError("--set needs --episodes")
    from ezm_pl.tracking.results.record import collect_runs

    collect_runs(
        args.runs,
        sweep=args.sweep,
        published=args.published,
        at=args.at,
        episodes=args.episodes,
        seed=args.seed,
        settings=args.set,
        out=args.out,
        console=new_console(),
    )


def _render(args: argparse.Namespace) -> None:
    from ezm_pl.tracking.results.results_page import render, stale

    own = RECORDS.with_name(RECORDS.name + TEMPLATE_SUFFIX)
    found = [path for path in (own, *sorted(RECORDS.glob(f"*{TEMPLATE_SUFFIX}"))) if path.is_file()]
    old = []
    for template in args.templates or found or [own]:
        if not template.name.endswith(TEMPLATE_SUFFIX):
            raise SpecError(f"TEMPLATE {template}: its name must end in {TEMPLATE_SUFFIX}")
        page = template.with_suffix("")
        text = render(template, args.records)
        if not args.check:
            with writing(page):
                page.write_text(text, encoding="utf-8")
            wrote(page)
        elif line := stale(page, text):
            old.append(f"{page}: not up to date, run `ezm results render`: {line}")
    if old:
        raise RunFailed("\n".join(old))
