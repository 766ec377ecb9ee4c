"""Self-play: the collector thread (and what any background thread is), the weight store, pacing."""

from ezm_pl.selfplay.actor import Actor
from ezm_pl.selfplay.background import BackgroundError, BackgroundThread
from ezm_pl.selfplay.collector import Collector, CollectorError, Episode
from ezm_pl.selfplay.pacing import Lockstep, Pacing
from ezm_pl.selfplay.phase_timer import PHASE, PhaseTimer, shares
from ezm_pl.selfplay.weights import WeightStore

__all__ = [
    "PHASE",
    "Actor",
    "BackgroundError",
    "BackgroundThread",
    "Collector",
    "CollectorError",
    "Episode",
    "Lockstep",
    "Pacing",
    "PhaseTimer",
    "WeightStore",
    "shares",
]
