"""`Program`: what it is a program of, where it is kept, and when it is made."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ezm_pl.programs.library import Library
from ezm_pl.spec.fields import Strict

log = logging.getLogger(__name__)

NARROW = 256
"""The largest latent size of networks that are worth a program."""

EARNED = 120.0
"""Seconds of processor time that what a program replaces must have taken before it is made: what making it
costs, over what it saves of each second."""


class ProgramSpec(Strict):
    """All that a program depends on, but for this machine and this package; a subclass is a kind of program.

    Attributes:
        of: what it replaces, as in "searches are not compiled".
        subpackages: those whose sources it is made from.
        maker: the module that makes it (`making.py`).
    """

    of: ClassVar[str]
    subpackages: ClassVar[tuple[str, ...]]
    maker: ClassVar[str]

    @property
    def path(self) -> Path:
        """Where it is kept: another file for other sources, another torch or another processor."""
        made_from = f"{surroundings(*self.subpackages)}{self.model_dump_json()}"
        digest = hashlib.sha256(made_from.encode()).hexdigest()
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(caches) / "ezm_pl" / f"{self.of}-{digest[:32]}.so"

    def made(self) -> bool:
        """Whether it is there, written by this user and by nobody else: it is native code."""
        try:
            found = [self.path.stat(), self.path.parent.stat()]
        except (OSError, RuntimeError):  # not there; or there is no home folder
            return False
        return all(each.st_uid in (os.getuid(), 0) and not each.st_mode & 0o022 for each in found)


@cache
def surroundings(*subpackages: str) -> str:
    """The sources that a program is made from, torch's version, and what the processor can do."""
    package = Path(__file__).parents[1]
    folders = [package / name for name in ("programs", *subpackages)]
    paths = [path for folder in folders for path in sorted(folder.glob("*.py"))]
    paths.append(package / "spec" / "experiment.py")  # its properties decide too
    sources = [path.read_text(encoding="utf-8") for path in paths]
    processor = Path("/proc/cpuinfo")
    lines = processor.read_text(encoding="utf-8").splitlines() if processor.exists() else []
    features = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return "\n".join([*sources, torch.__version__, sys.platform, features])


class Program:
    """One program and what is needed to get it.

    One in the cache folder is loaded soon; otherwise it is made once what it replaces has taken `EARNED`
    seconds. A thread does both, and work goes on without it meanwhile. If that fails, one line says so.

    Attributes:
        run: inputs to outputs; None until it is loaded.
    """

    def __init__(self, spec: ProgramSpec) -> None:
        self.spec = spec
        self.run: Callable[[Sequence[Tensor]], list[Tensor]] | None = None
        self._earned = EARNED if spec.made() else 0.0
        self._lock = threading.Lock()
        self._getting: threading.Thread | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        return type(self)(self.spec)  # native code cannot be copied; it is loaded once more

    def earn(self, seconds: float) -> None:
        """Counts processor time spent without it; has it loaded or made when that is enough."""
        self._earned += seconds
        if self._getting is None and self._earned >= EARNED:
            self.get()

    def get(self) -> threading.Thread:
        """The thread that loads or makes it, at work or at its end."""
        with self._lock:
            if self._getting is None:
                self._getting = threading.Thread(target=self._get, name="ezm-compile", daemon=True)
                self._getting.start()
            return self._getting

    def wait(self) -> bool:
        """Gets it now (minutes); whether there is one."""
        self.get().join()
        return self.run is not None

    def _get(self) -> None:
        try:
            if not self.spec.made():
                make(self.spec)
                if not self.spec.made():
                    raise RuntimeError(f"others can write to {self.spec.path.parent}")
            try:
                self.run = Library(self.spec.path)
            except (OSError, RuntimeError):
                self.spec.path.unlink(missing_ok=True)  # damaged: the next run makes it again
                raise
            os.utime(self.spec.path)  # the makers delete what is long unused
        except Exception as error:  # noqa: BLE001 - work goes on without it
            reason = str(error).strip().partition("\n")[0]
            log.warning("%s are not compiled: %s", self.spec.of, reason)


def make(spec: ProgramSpec) -> None:
    """Makes a program in another process, which ends when this one does.

    Raises:
        RuntimeError: that failed; with the reason in one line.
    """
    if shutil.which(os.environ.get("CXX", "g++" if sys.platform == "linux" else "clang++")) is None:
        raise RuntimeError("no C++ compiler was found")
    command = [sys.executable, "-P", "-m", spec.maker]  # not what lies in this folder
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
        start_new_session=True,  # Ctrl-C is for us
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(spec.model_dump_json() + "\n")
        process.stdin.flush()  # and stays open: its end is ours
        said = process.stdout.read()
    if process.returncode:
        raise RuntimeError(said.strip() or f"the compiling process ended with {process.returncode}")
