"""Processes that start at once: each is forked from one that has imported everything.

`start` and `run` are `subprocess.Popen` and `subprocess.run` of `python -m ezm_pl ARGUMENTS`; `-c CODE` and
`FILE.py` in place of a command run these. As a script, this file is the server: `fork_server.py SOCKET`.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
SUBPACKAGES = (
    "ezm_pl.cli", "ezm_pl.agent", "ezm_pl.sweeps.worker", "ezm_pl.sweeps.report",
    "ezm_pl.tracking.runs.train", "ezm_pl.tracking.runs.evaluate", "ezm_pl.tracking.distill.distill_run",
    "ezm_pl.tracking.results.tables", "ezm_pl.tracking.results.draw", "mlflow.store.db.utils",
    "mlflow.tracking._tracking_service.utils",
)  # fmt: skip


def start(
    arguments: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    stdout: IO[Any] | int | None = None,
    stderr: IO[Any] | int | None = None,
    start_new_session: bool = False,
) -> Forked:
    """Starts `ezm ARGUMENTS`, or what else they name, in `cwd`; standard input is empty."""
    ours: list[IO[str] | None] = []
    theirs: list[int] = []
    for target in (stdout, stderr):
        if target == subprocess.PIPE:
            read, write = os.pipe()
            ours.append(os.fdopen(read, encoding="utf-8"))
            theirs.append(write)
        else:
            ours.append(None)
            if target == subprocess.STDOUT:
                theirs.append(os.dup(theirs[0]))
            else:
                number = len(theirs) + 1 if target is None else target
                theirs.append(os.dup(number if isinstance(number, int) else number.fileno()))
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(_server())
    request = {
        "arguments": list(arguments), "cwd": str(cwd.absolute()),
        "env": dict(os.environ if env is None else env), "session": start_new_session,
    }  # fmt: skip
    socket.send_fds(connection, [b"."], theirs)
    connection.sendall(json.dumps(request).encode())
    connection.shutdown(socket.SHUT_WR)
    for descriptor in theirs:
        os.close(descriptor)
    return Forked(connection, list(arguments), *ours)


def run(
    arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """Runs `ezm ARGUMENTS` in `cwd` to its end; both its outputs are captured."""
    process = start(arguments, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout)
    return subprocess.CompletedProcess(process.args, process.wait(), out, err)


class Forked:
    """A process that runs `ezm`: as much of `subprocess.Popen` as tests need."""

    def __init__(
        self, connection: socket.socket, args: list[str], stdout: IO[str] | None, stderr: IO[str] | None
    ) -> None:
        self.args, self.stdout, self.stderr = args, stdout, stderr
        self.returncode: int | None = None
        self._answers = connection.makefile("r")
        self._connection = connection
        self.pid = int(self._answers.readline())

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self.returncode = int(self._answers.readline())
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; raises `TimeoutExpired`."""
        if self.returncode is None and not select.select([self._connection], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        code = self.poll()
        assert code is not None
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """All it writes to its pipes, when it has ended; killed where that takes longer than `timeout`."""
        found = ["", ""]

        def read(index: int, pipe: IO[str]) -> None:
            with pipe:
                found[index] = pipe.read()

        pipes = [pipe for pipe in (self.stdout, self.stderr) if pipe is not None]
        readers = [threading.Thread(target=read, args=pair) for pair in enumerate(pipes)]
        for reader in readers:
            reader.start()
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        finally:
            for reader in readers:
                reader.join()
        return found[0], found[1]

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it at once, unless it has ended."""
        self.send_signal(signal.SIGKILL)


@functools.cache
def _server() -> str:
    """The socket of this process's server, which ends when this process does."""
    address = f"{tempfile.mkdtemp(prefix='ezm-fork-')}/socket"
    process = subprocess.Popen(
        [sys.executable, __file__, address],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    _KEPT.append(process)
    return address


_KEPT: list[subprocess.Popen[str]] = []


def serve(address: str) -> None:
    """Starts a process per connection, until standard input ends. Returns in those that it starts."""
    for subpackage in SUBPACKAGES:
        importlib.import_module(subpackage)
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    print("ready", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while sys.stdin not in (found := select.select([listener, sys.stdin], [], [])[0]):
        assert found == [listener]
        connection, _ = listener.accept()
        if _fork() == 0:
            listener.close()
            _attend(connection)
            return
        connection.close()
    os.unlink(address)
    os.rmdir(Path(address).parent)
    os._exit(0)


def _attend(connection: socket.socket) -> None:
    """Returns in a new process, set up as asked; tells its id and its exit code, and ends, in this one."""
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 2)
    request = json.loads(connection.makefile("r").read())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = _fork()
    if pid:
        for descriptor in descriptors:
            os.close(descriptor)
        connection.sendall(f"{pid}\n".encode())
        connection.sendall(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n".encode())
        os._exit(0)
    connection.close()
    if request["session"]:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(os.devnull) as nothing:
        for new, old in zip((nothing.fileno(), *descriptors), range(3), strict=True):
            os.dup2(new, old)
    for descriptor in descriptors:
        os.close(descriptor)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    known = request["env"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [request["cwd"], *filter(None, known)]
    sys.argv[1:] = request["arguments"]
    random.seed()


def _fork() -> int:
    with warnings.catch_warnings():  # Python 3.12 warns of a library's idle thread
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _run_as_asked() -> int:
    """Runs what `sys.argv[1:]` names, as the interpreter would, and returns the exit code."""
    try:
        match sys.argv[1:]:
            case ["-c", code, *_]:
                sys.argv[:3] = ["-c"]
                exec(code, {"__name__": "__main__"})
            case [script, *_] if script.endswith(".py"):
                del sys.argv[0]
                sys.path.insert(0, str(Path(script).parent))
                runpy.run_path(script, run_name="__main__")
            case _:
                sys.argv[0] = str(ROOT / "ezm_pl" / "__main__.py")
                return importlib.import_module("ezm_pl.cli").main()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 (as the interpreter does)
        traceback.print_exc()
        return 1
    return 0


def _end(code: int) -> NoReturn:
    """As the interpreter ends, but leaves memory to the system: taking apart what is shared costs seconds."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
    _end(_run_as_asked())
