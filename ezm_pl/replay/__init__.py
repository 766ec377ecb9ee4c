"""Per-task prioritised replay."""

from ezm_pl.replay.buffer import ReplayBuffer, ReplayError
from ezm_pl.replay.returns import return_scale
from ezm_pl.replay.segment_tree import SegmentTree
from ezm_pl.replay.storage import ReplayStore
from ezm_pl.replay.windows import Windows

__all__ = ["ReplayBuffer", "ReplayError", "ReplayStore", "SegmentTree", "Windows", "return_scale"]
