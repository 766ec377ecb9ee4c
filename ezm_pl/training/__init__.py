"""Training under Lightning: modules, data module, losses, reanalysis, evaluation."""

from ezm_pl.training.agent_module import AgentModule
from ezm_pl.training.data import SelfPlayDataModule
from ezm_pl.training.evaluation import Evaluation
from ezm_pl.training.fault_tolerance.checkpoint import (
    CheckpointError,
    check_same_experiment,
    checkpoint_experiment,
    checkpoint_run_id,
    newest_valid,
)
from ezm_pl.training.fit import FitResult, check_settings, fit, this_rank
from ezm_pl.training.from_checkpoint import evaluate, film
from ezm_pl.training.memory import MemoryRefused, out_of_memory
from ezm_pl.training.module import EZMModule
from ezm_pl.training.ranks import RankError

__all__ = [
    "AgentModule",
    "CheckpointError",
    "EZMModule",
    "Evaluation",
    "FitResult",
    "MemoryRefused",
    "RankError",
    "SelfPlayDataModule",
    "check_same_experiment",
    "check_settings",
    "checkpoint_experiment",
    "checkpoint_run_id",
    "evaluate",
    "film",
    "fit",
    "newest_valid",
    "out_of_memory",
    "this_rank",
]
