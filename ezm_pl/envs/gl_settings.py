"""What MUJOCO_GL and PYOPENGL_PLATFORM ask for, and imports that do not fail over it.

MuJoCo and dm_control load a GL library as they are imported. One that does not work is to be reported where
something is rendered (`rendering.py`), and to stop nothing else.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType

GL_VARIABLES = ("MUJOCO_GL", "PYOPENGL_PLATFORM")


def import_despite_gl(name: str) -> ModuleType:
    """Imports a module; where that fails, once more without the variables that choose a GL library."""
    try:
        return importlib.import_module(name)
    except Exception:
        kept = {variable: os.environ.pop(variable) for variable in GL_VARIABLES if variable in os.environ}
        if not kept:
            raise
        try:
            return importlib.import_module(name)
        finally:
            os.environ.update(kept)


import_despite_gl("mujoco")
