"""The process that makes a program: a `ProgramSpec` is its input, and it ends when its input is closed."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ezm_pl.programs.library import Library
from ezm_pl.programs.program import ProgramSpec

S = TypeVar("S", bound=ProgramSpec)

Check = Callable[[Library], None]
"""Raises RuntimeError where a program finds something else than what it replaces."""


UNUSED = 30 * 24 * 3600.0
"""Seconds after which a program that nobody has loaded is deleted."""


def _add(x: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    product = a @ b if alpha == 1 else a @ b * alpha
    return product + (x if beta == 1 else x * beta)


def _add_relu(bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return _add(bias, a, b).relu()


_APART = {
    torch.ops.aten._addmm_activation.default: _add_relu,
    torch.ops.aten.addmm.default: _add,
    torch.ops.aten.baddbmm.default: _add,
}
"""Sums apart from their products: the compiler puts them together with what comes next."""


def compile_into(spec: ProgramSpec, exported: torch.export.ExportedProgram, check: Check) -> None:
    """Compiles, checks, and puts the program into the cache folder.

    Raises:
        whatever torch's compiler raises; RuntimeError: it has no program for all operations, or `check`.
    """
    import torch._inductor as inductor

    with tempfile.TemporaryDirectory(prefix="making-", dir=spec.path.parent) as folder:
        package = inductor.aoti_compile_and_package(
            exported.run_decompositions(_APART),
            package_path=str(Path(folder) / "program.pt2"),
            inductor_configs={
                "cpp.threads": 1,
                "aot_inductor.compile_wrapper_opt_level": "O0",
                "pattern_matcher": False,  # it would make one operation of product and sum again
            },
        )
        library = Path(folder) / spec.path.name
        with zipfile.ZipFile(package) as archive:
            names = archive.namelist()
            if any(name.endswith(".json") and not name.endswith("_metadata.json") for name in names):
                raise RuntimeError("some operations need torch's own loader")
            (code,) = (name for name in names if name.endswith(".so"))
            library.write_bytes(archive.read(code))
        check(Library(library))
        os.chmod(library, 0o600)
        with library.open("rb+") as file:
            os.fsync(file.fileno())  # a truncated one would kill the process that loads it
        os.replace(library, spec.path)


def _end_with_input() -> None:
    while os.read(0, 1):  # sys.stdin would be locked at the end
        pass
    os.killpg(0, signal.SIGKILL)


def main(kind: type[S], make: Callable[[S], None]) -> None:
    """Reads the spec, makes the program unless somebody else has; says why where it cannot."""
    spec = kind.model_validate_json(sys.stdin.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    os.nice(5)
    torch.set_num_threads(1)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    try:
        spec.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        spec.path.parent.chmod(0o700)
        with (spec.path.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one at a time
            for left in spec.path.parent.glob("making-*"):  # by a run that ended meanwhile
                shutil.rmtree(left, ignore_errors=True)
            for old in spec.path.parent.glob("*-*.*"):
                if time.time() - old.stat().st_mtime > UNUSED:
                    old.unlink(missing_ok=True)
            if not spec.made():
                make(spec)
    except Exception as error:  # whatever the compiler raises: the parent logs it in one line
        print(f"{type(error).__name__}: {error}".partition("\n")[0])
        raise SystemExit(1) from error
