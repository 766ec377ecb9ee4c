"""`ezm play`: watch an agent, and tell it in words what to do."""

from __future__ import annotations

import argparse
from pathlib import Path

from ezm_pl.commands import outputs
from ezm_pl.commands.arguments import Group, add_run, add_seed, command, new_console, number
from ezm_pl.spec import SpecError

SECONDS, PORT = 8, 8000
FILM = "play.mp4"
LONGEST = 600
"""Characters of a sentence."""


def add(group: Group) -> None:
    """Adds the command."""
    play = command(
        group, "play", _play, "film an episode with what the search considers, or show it on a page"
    )
    add_run(play)
    play.add_argument(
        "--task",
        metavar="TASK",
        help="default: the nearest to --say; else the first, or with --live all in turn",
    )
    play.add_argument(
        "--say", type=_sentence, metavar="TEXT", help="tell the agent what to do (docs/language.md)"
    )
    play.add_argument(
        "--seconds",
        type=number(1, 1000),
        help=f"length of the film in simulated seconds (default: {SECONDS})",
    )
    add_seed(play)
    where = play.add_mutually_exclusive_group()
    where.add_argument("--out", type=outputs.file_in(outputs.FILMS), metavar="FILE", help=f"default: {FILM}")
    where.add_argument("--live", action="store_true", help="on a page of this machine, until Ctrl-C")
    play.add_argument("--port", type=number(1, 65535), help=f"of --live (default: {PORT})")


def _play(args: argparse.Namespace) -> None:
    from ezm_pl.tracking.runs.play import film_run, show_run

    if args.live and args.seconds is not None:
        raise SpecError("--seconds is of a film; --live shows episode after episode")
    if args.port is not None and not args.live:
        raise SpecError("--port is of the page that --live shows")
    what = {"task": args.task, "sentence": args.say, "seed": args.seed, "console": new_console()}
    if args.live:
        show_run(args.run, args.port or PORT, **what)
    else:
        film_run(args.run, args.out or Path(FILM), seconds=args.seconds or SECONDS, **what)


def _sentence(text: str) -> str:
    """An argument type: a sentence, its spaces put right."""
    words = " ".join(text.split())
    if not words or len(words) > LONGEST:
        raise argparse.ArgumentTypeError(f"a sentence of at most {LONGEST} characters expected, got {text!r}")
    return words
