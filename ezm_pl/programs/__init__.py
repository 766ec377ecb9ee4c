"""C++ programs in the place of many small tensor operations, which torch's compiler (AOTInductor) writes.

On a CPU an operation of a narrow network costs Python and the dispatcher more than its arithmetic does.
"""

from ezm_pl.programs.draws import Draws
from ezm_pl.programs.program import NARROW, Program, ProgramSpec, surroundings

__all__ = ["NARROW", "Draws", "Program", "ProgramSpec", "surroundings"]
