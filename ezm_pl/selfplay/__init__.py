"""Self-play: the collector thread, the weight store, pacing."""

from ezm_pl.selfplay.clock import Clock, shares
from ezm_pl.selfplay.collector import Collector, CollectorError, Episode
from ezm_pl.selfplay.pacing import Lockstep, Pacing
from ezm_pl.selfplay.weights import WeightStore

__all__ = ["Clock", "Collector", "CollectorError", "Episode", "Lockstep", "Pacing", "WeightStore", "shares"]
