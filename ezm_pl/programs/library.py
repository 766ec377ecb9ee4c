"""A shared library of AOTInductor's, run without Python's lock.

torch's own loader holds the lock while a program runs, so that no other thread of this process does; a call
through ctypes does not.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

AT_ONCE = 2
"""Threads that may run a program at the same time; one more waits."""

_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)


class Library:
    """A program that is a function of contiguous CPU tensors, some of which it may write to.

    Args:
        path: of the shared library (torch/csrc/inductor/aoti_runtime/interface.h in torch's headers). It
            stays loaded as long as the process lives.

    Raises:
        OSError: it is no shared library. RuntimeError: it is no program.
    """

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._container = ctypes.c_void_p()
        runners = ctypes.c_size_t(AT_ONCE)
        self._call("CreateWithDevice", ctypes.byref(self._container), runners, b"cpu", None)
        self._inputs, self._outputs = self._count("Inputs"), self._count("Outputs")

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The outputs; without gradients.

        Raises:
            RuntimeError: the program failed, which says why on stderr; ValueError: other inputs than its.
        """
        if len(inputs) != self._inputs:
            raise ValueError(f"a program of {self._inputs} inputs was given {len(inputs)}")
        given = (ctypes.c_void_p * self._inputs)()
        found = (ctypes.c_void_p * self._outputs)()
        handles: Any = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(list(inputs))
        given[:] = [_pointer(each, None) for each in handles]
        sizes = ctypes.c_size_t(self._inputs), ctypes.c_size_t(self._outputs)
        with torch.inference_mode(False), torch.no_grad():
            self._call("Run", self._container, given, sizes[0], found, sizes[1], None, None)
        outputs = [_capsule(each, None, None) for each in found]
        return torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs(outputs)

    def _count(self, what: str) -> int:
        count = ctypes.c_size_t()
        self._call(f"GetNum{what}", self._container, ctypes.byref(count))
        return count.value

    def _call(self, name: str, *args: Any) -> None:
        try:
            function = getattr(self._library, f"AOTInductorModelContainer{name}")
        except AttributeError as error:
            raise RuntimeError(f"{self._library._name} is no program") from error
        if function(*args):
            raise RuntimeError(f"{name} of {self._library._name} failed")
