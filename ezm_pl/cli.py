"""The `ezm` command: arguments in, one call into a subpackage, an exit code out.

Exit codes: 0 done; 1 failed; 2 the spec or the command line is wrong (one line per problem); 75 ended by
SIGTERM or SIGUSR1 with a checkpoint to go on from; 130 interrupted.
Subpackages are imported by the command that needs them, so that bad input is answered at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from ezm_pl.commands import compare, diagnose, distill, envs, play, results, sweep, train, view
from ezm_pl.commands.arguments import Parser, complain, prepare_process
from ezm_pl.spec import RunFailed, SpecError
from ezm_pl.spec.launcher import check_launcher_variables


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command (of this process, by default) and returns its exit code.

    A reader that closes the pipe (`ezm validate SPEC | head -1`) ends a command without a word; output that
    cannot be written for another reason, such as a full disk, is one line.
    """
    code = None
    try:
        code = _run(arguments)
        print(end="", flush=True)
        return code
    except OSError as error:
        if not _output_fails():
            raise
        if isinstance(error, BrokenPipeError):
            return 1 if code is None else code
        complain(f"the output cannot be written: {error.strerror}")
        return code or 1


def _run(arguments: Sequence[str] | None) -> int:
    try:
        prepare_process()
        parsed = _parser().parse_args(arguments)
        check_launcher_variables()
        return parsed.command(parsed) or 0
    except SpecError as error:
        complain(str(error))
        return 2
    except RunFailed as error:
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    except SystemExit as error:  # of argparse, and of rich at a closed pipe
        return error.code if isinstance(error.code, int) else 1


def _output_fails() -> bool:
    """Whether standard output takes nothing; then drops what it holds, which the exit would try to write."""
    try:
        print(flush=True)  # unbuffered, a file forgets what it could not write
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _parser() -> Parser:
    parser = Parser(prog="ezm", description="EfficientZero-Multitask experiments on HumanoidBench.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for group in (train, play, distill, sweep, view, compare, diagnose, results, envs):
        group.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
