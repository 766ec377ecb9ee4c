"""`CompiledSearch`: on a CPU, a search as one C++ program, which torch's compiler (AOTInductor) writes.

At few roots a search is hundreds of small operations, each of which costs Python and the dispatcher more than
its arithmetic. A program serves any number of roots and any weights of a network. Another process makes it
(`make_program.py`), and the user's cache folder keeps it. Until it is there, searches run uncompiled.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ezm_pl.search.tree import SearchResult
from ezm_pl.spec.experiment import ModelSpec, SearchSpec
from ezm_pl.spec.fields import Strict
from ezm_pl.world_model import InferenceModel

log = logging.getLogger(__name__)

Search = Callable[[Any, Tensor, Tensor, torch.Generator, int], SearchResult]

EARNED = 240.0
"""Seconds of processor time that searches must have taken before a program is made: what making two programs
costs, over what they save of each second."""


class ProgramSpec(Strict):
    """All that a program depends on, but for this machine and this package."""

    model: ModelSpec
    search: SearchSpec
    discount: float
    evaluation: bool
    observation_size: int
    tasks: int
    action_size: int
    dtype: Literal["float32", "bfloat16"]

    @property
    def path(self) -> Path:
        """Where it is kept: another file for other sources, another torch or another processor."""
        digest = hashlib.sha256(f"{_surroundings()}{self.model_dump_json()}".encode()).hexdigest()
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(caches) / "ezm_pl" / f"search-{digest[:32]}.pt2"

    def made(self) -> bool:
        """Whether it is there, written by this user and by nobody else: it is native code."""
        try:
            found = [self.path.stat(), self.path.parent.stat()]
        except (OSError, RuntimeError):  # not there; or there is no home folder
            return False
        return all(each.st_uid in (os.getuid(), 0) and not each.st_mode & 0o022 for each in found)


@cache
def _surroundings() -> str:
    """The sources that a search is made of, torch's version, and what the processor can do."""
    rooms = Path(__file__).parent, Path(__file__).parents[1] / "world_model"
    sources = [path.read_text(encoding="utf-8") for room in rooms for path in sorted(room.glob("*.py"))]
    processor = Path("/proc/cpuinfo")
    lines = processor.read_text(encoding="utf-8").splitlines() if processor.exists() else []
    features = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return "\n".join([*sources, torch.__version__, sys.platform, features])


class Draws(TorchFunctionMode):
    """Notes the random draws made inside, or answers them with tensors `given`."""

    def __init__(self, given: Iterable[Tensor] | None = None) -> None:
        super().__init__()
        self._noted: list[tuple[Callable[..., Tensor], tuple[Any, ...], dict[str, Any]]] = []
        self._given = None if given is None else iter(given)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(kwargs.get("generator"), torch.Generator):
            return func(*args, **kwargs)
        self._noted.append((func, args, {k: v for k, v in kwargs.items() if k != "generator"}))
        return func(*args, **kwargs) if self._given is None else next(self._given)

    def again(self, generator: torch.Generator) -> list[Tensor]:
        """The noted draws, from a generator."""
        return [draw(*args, **named, generator=generator) for draw, args, named in self._noted]


class CompiledSearch:
    """Searches by programs, where there are any.

    There are programs for the built-in proposal and an `InferenceModel` on a CPU whose layers are narrow
    enough (`InferenceModel.compiled_dtype`). One in the cache folder is loaded at the first search; otherwise
    it is made once searches have taken `EARNED` seconds. A thread does both, and searches go on meanwhile. If
    that fails, one line says so. No program is used under torch's deterministic algorithms: the clock decides
    when it takes over, and it adds in another order.

    Args:
        search: of (model, observation `[B, O]`, task `[B]`, generator, roots), uncompiled.
        spec, discount, evaluation: of the `Planner`.
        width: most leaves per root that one network call expands.
    """

    def __init__(
        self, search: Search, spec: SearchSpec, discount: float, evaluation: bool, width: int
    ) -> None:
        self._search, self._spec, self._discount, self._width = search, spec, discount, width
        self._evaluation = evaluation
        self._programs: dict[ProgramSpec, _Program] = {}
        _surroundings()  # of the sources that this process has loaded
        self._of: WeakKeyDictionary[InferenceModel, dict[torch.dtype, _Program]] = WeakKeyDictionary()

    def __call__(
        self, model: Any, observation: Tensor, task: Tensor, generator: torch.Generator, roots: int
    ) -> SearchResult:
        dtype = self._dtype(model, roots) if observation.device.type == "cpu" else None
        if dtype is None:
            return self._search(model, observation, task, generator, roots)
        if roots < len(observation):  # a program searches from all
            found = self(model, observation[:roots], task[:roots], generator, roots)
            _, others = model.root(observation[roots:], task[roots:])
            return replace(found, root_value=torch.cat([found.root_value, others]))
        program = self._program(model, dtype)
        draws, start = program.draws.get(roots), time.thread_time()
        if draws is None:
            with Draws() as draws:
                found = self._search(model, observation, task, generator, roots)
            program.draws[roots] = draws
        elif program.run is not None:
            tensors = model.prepare(dtype)
            with torch.inference_mode(False), torch.no_grad():
                rows = observation.contiguous(), task.contiguous()  # a program reads no strides
                return SearchResult(*program.run(*rows, *draws.again(generator), *tensors))
        else:
            found = self._search(model, observation, task, generator, roots)
        program.earn(time.thread_time() - start)
        return found

    def wait(self, model: InferenceModel, roots: int) -> bool:
        """Gets the program for so many roots of a model now (minutes); whether there is one."""
        dtype = self._dtype(model, roots)
        if dtype is None:
            return False
        program = self._program(model, dtype)
        program.get().join()
        return program.run is not None

    def _dtype(self, model: Any, roots: int) -> torch.dtype | None:
        if torch.are_deterministic_algorithms_enabled() or self._spec.proposal:
            return None
        return model.compiled_dtype(roots * self._width) if isinstance(model, InferenceModel) else None

    def _program(self, model: InferenceModel, dtype: torch.dtype) -> _Program:
        programs = self._of.setdefault(model, {})
        if dtype not in programs:
            tasks, action_size = model.model.action_mask.shape
            spec = ProgramSpec(
                model=model.model.spec,
                search=self._spec,
                discount=self._discount,
                evaluation=self._evaluation,
                observation_size=model.observation_size,
                tasks=tasks,
                action_size=action_size,
                dtype="float32" if dtype == torch.float32 else "bfloat16",
            )
            programs[dtype] = self._programs.setdefault(spec, _Program(spec))
        return programs[dtype]


class _Program:
    """One program and what is needed to get it.

    Attributes:
        run: of (observation, task, draws, weights); None until it is loaded.
        draws: what a search of so many roots draws.
    """

    def __init__(self, spec: ProgramSpec) -> None:
        self.spec = spec
        self.run: Callable[..., tuple[Tensor, ...]] | None = None
        self.draws: dict[int, Draws] = {}
        self._earned = EARNED if spec.made() else 0.0
        self._lock = threading.Lock()
        self._getting: threading.Thread | None = None

    def earn(self, seconds: float) -> None:
        """Counts the time of a search without it; has it loaded or made when that is enough."""
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

    def _get(self) -> None:
        try:
            if not self.spec.made():
                _make(self.spec)
            from torch._inductor import aoti_load_package  # takes a second to import

            try:
                self.run = aoti_load_package(str(self.spec.path))
            except Exception:
                self.spec.path.unlink(missing_ok=True)  # damaged: the next run makes it again
                raise
        except Exception as error:  # noqa: BLE001 - what a damaged file makes torch raise is not to be foreseen
            log.warning("searches are not compiled: %s", str(error).strip().partition("\n")[0])


def _make(spec: ProgramSpec) -> None:
    """Makes a program in another process, which ends when this one does.

    Raises:
        RuntimeError: that failed; with the reason in one line.
    """
    if shutil.which(os.environ.get("CXX", "g++" if sys.platform == "linux" else "clang++")) is None:
        raise RuntimeError("no C++ compiler was found")
    command = [sys.executable, "-P", "-m", "ezm_pl.search.make_program"]  # not what lies in this folder
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
