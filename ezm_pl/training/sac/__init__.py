"""Multi-task soft actor-critic, the model-free baseline (docs/baseline.md)."""

from ezm_pl.training.sac.module import SACModule
from ezm_pl.training.sac.networks import SACActor, SACNetwork

__all__ = ["SACActor", "SACModule", "SACNetwork"]
