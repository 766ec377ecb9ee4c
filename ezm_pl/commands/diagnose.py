"""`ezm diagnose`: what a checkpoint's model, values and policy are worth, with the simulator as the judge."""

from __future__ import annotations

import argparse

from ezm_pl.commands import outputs
from ezm_pl.commands.arguments import Group, add_run, add_seed, command, new_console, number

_COUNTS = (
    ("--states", 2, 10_000, 32, "judged per task"),
    ("--actions", 2, 1_000, 8, "per state"),
    ("--rollouts", 2, 1_000, 4, "per action"),
)


def add(group: Group) -> None:
    """Adds the command."""
    diagnose = command(group, "diagnose", _diagnose, "say what holds a checkpoint's learning back")
    add_run(diagnose)
    for name, least, most, default, text in _COUNTS:
        diagnose.add_argument(
            name, type=number(least, most), default=default, help=f"{text} (default: {default})"
        )
    add_seed(diagnose)
    diagnose.add_argument(
        "--figure",
        type=outputs.file_in(outputs.FIGURES),
        metavar="FILE",
        help="draw errors, values, embeddings",
    )
    diagnose.add_argument(
        "--json", type=outputs.file_in((".json",)), metavar="FILE", help="write all numbers to FILE"
    )


def _diagnose(args: argparse.Namespace) -> None:
    from ezm_pl.tracking.results.diagnose import diagnose_run

    diagnose_run(
        args.run,
        states=args.states,
        actions=args.actions,
        rollouts=args.rollouts,
        seed=args.seed,
        output=args.json,
        figure=args.figure,
        console=new_console(),
    )
