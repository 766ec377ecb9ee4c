"""The `ezm` command: arguments in, one call into a room, an exit code out.

Exit codes: 0 done; 1 failed; 2 the spec or the command line is wrong (one line a problem); 75 ended by
SIGTERM or SIGUSR1 with a checkpoint to go on from; 130 interrupted.
Rooms are imported by the command that needs them, so that bad input is answered at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ezm_pl.commands import compare, envs, look, sweep, train
from ezm_pl.commands.arguments import Parser
from ezm_pl.spec import RunFailed, SpecError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command (of this process, by default) and returns its exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        return parsed.command(parsed) or 0
    except SpecError as error:
        for line in str(error).splitlines():
            print(f"ezm: {line}", file=sys.stderr)
        return 2
    except RunFailed as error:
        print(f"ezm: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ezm: interrupted", file=sys.stderr)
        return 130


def _parser() -> Parser:
    parser = Parser(prog="ezm", description="EfficientZero-Multitask experiments on HumanoidBench.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for group in (train, sweep, look, compare, envs):
        group.add(commands)
    return parser
