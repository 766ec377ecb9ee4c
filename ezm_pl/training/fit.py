"""Runs an experiment under Lightning's Trainer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, DeviceStatsMonitor
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import AdvancedProfiler, Profiler, SimpleProfiler
from numpy.typing import NDArray

from ezm_pl.envs import sizes
from ezm_pl.spec import Experiment, SpecError
from ezm_pl.training.agents import new_module
from ezm_pl.training.callbacks import SelfPlayMetrics, TrainingBar
from ezm_pl.training.data import SelfPlayDataModule
from ezm_pl.training.evaluation import Evaluation
from ezm_pl.training.fault_tolerance.checkpoint import (
    check_same_experiment,
)
from ezm_pl.training.fault_tolerance.checkpoint_io import CheckpointFiles
from ezm_pl.training.fault_tolerance.connection import OwnSignals, connected
from ezm_pl.training.fault_tolerance.launch import own_rank
from ezm_pl.training.fault_tolerance.saving import BestCheckpoint, LastCheckpoint
from ezm_pl.training.fault_tolerance.stopping import stops_in_order
from ezm_pl.training.gradient_conflict import GradientConflict
from ezm_pl.training.hardware import precision, shared_cores
from ezm_pl.training.lightning_internals import no_advice
from ezm_pl.training.memory import check_memory
from ezm_pl.training.module import EZMModule
from ezm_pl.training.ranks import Ranks, per_rank
from ezm_pl.training.sentences import description_vectors

PROFILE = "profile"
"""Part of the name of the profiler's reports."""


@dataclass(frozen=True)
class FitResult:
    """How a run ended.

    Attributes:
        status: `interrupted` after a first Ctrl-C, which is answered at the next batch's end.
        updates: done in all.
        env_steps: `[T]` control steps collected per task.
        seconds: of this call.
        evaluations: in order; the last is the final one.
    """

    status: Literal["finished", "interrupted"]
    updates: int
    env_steps: NDArray[np.int64]
    seconds: float
    evaluations: list[Evaluation]


def fit(
    experiment: Experiment,
    run_dir: Path,
    *,
    logger: Logger | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: Path | None = None,
    progress: bool = True,
) -> FitResult:
    """Trains and evaluates an experiment to the end of its budget.

    Args:
        experiment: what to run.
        run_dir: checkpoints and replay go to `run_dir/checkpoints`; rank 0's holds for all ranks.
        logger: where metrics go.
        callbacks: further Lightning callbacks.
        checkpoint: a `last.ckpt` of the same experiment to resume; rank 0's holds for all ranks.
        progress: whether to show a bar.

    Raises:
        CheckpointError: the checkpoint is damaged or of another experiment.
        MemoryRefused: the replay buffers cannot fit.
        SpecError: Lightning refuses the trainer's settings.
        CollectorError: self-play failed; its own exception is the cause.
        RankError: another rank has failed.
    """
    if checkpoint is not None:
        check_same_experiment(checkpoint, experiment)
    bar = [TrainingBar()] if progress else []
    trainer = _trainer(experiment, run_dir, logger, [*bar, *callbacks])
    own_rank(trainer)
    with connected(trainer) as ranks:
        return _fit(experiment, trainer, ranks, *ranks.gather_objects((run_dir, checkpoint))[0])


def this_rank(experiment: Experiment) -> int:
    """The rank that this process will have in the experiment's training (see `own_rank`).

    Raises:
        SpecError: Lightning refuses the trainer's settings, or the launcher contradicts them.
    """
    return own_rank(_trainer(experiment, Path(), None, []))


def check_settings(experiment: Experiment) -> str:
    """Raises what `fit` would raise about the trainer's settings, the batch and the memory, at once.

    Returns:
        A line on what the replay buffers will take.

    Raises:
        MemoryRefused, SpecError: as `fit`.
    """
    trainer = _trainer(experiment, Path(), None, [])
    local = getattr(trainer.strategy, "num_processes", 1)
    own = per_rank(experiment, Ranks(0, trainer.world_size, local))
    return check_memory(own, sizes(experiment.tasks), local)


def _fit(
    experiment: Experiment, trainer: L.Trainer, ranks: Ranks, run_dir: Path, checkpoint: Path | None
) -> FitResult:
    started = time.perf_counter()
    task_sizes = sizes(experiment.tasks)
    data = SelfPlayDataModule(experiment, task_sizes, ranks)
    module = new_module(experiment, task_sizes, ranks)
    last = LastCheckpoint(
        run_dir / "checkpoints",
        max(1, experiment.trainer.checkpoint_every // 2),
        replay=experiment.replay.save,
    )
    trainer.callbacks.append(last)  # type: ignore[attr-defined]
    if checkpoint is None and experiment.descriptions:
        assert isinstance(module, EZMModule)
        module.describe(*description_vectors(experiment))
    if checkpoint is not None:
        last.load_replay(checkpoint, data, ranks.rank, ranks.size)
    sync = data.sync
    in_order = stops_in_order(data, module, asked=sync.asked_to_stop.is_set, ask=sync.ask_to_stop)
    with shared_cores(ranks.local), in_order, no_advice():
        if experiment.eval.at_start and checkpoint is None:
            trainer.validate(module, data, verbose=False)
        if not data.sync.interrupted.is_set():
            trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
            if data.sync.interrupted.is_set():
                last.save(trainer)  # in warm-up Lightning has not begun to train, and ends no training
                last.finish()
        done = [e.updates for e in module.evaluations]
        if not data.sync.interrupted.is_set() and trainer.global_step not in done:
            trainer.validate(module, data, verbose=False)
        data.sync.all_gather_counts()
    return FitResult(
        status="interrupted" if data.sync.interrupted.is_set() else "finished",
        updates=trainer.global_step,
        env_steps=data.sync.control_steps,
        seconds=time.perf_counter() - started,
        evaluations=module.evaluations,
    )


def _trainer(
    experiment: Experiment,
    run_dir: Path,
    logger: Logger | None,
    callbacks: Sequence[Callback],
) -> L.Trainer:
    spec = experiment.trainer
    best = BestCheckpoint(run_dir / "checkpoints")
    extra: list[Callback] = [SelfPlayMetrics(spec.log_every), best]
    if spec.gradient_conflict_every is not None and len(experiment.tasks) > 1:
        extra.append(GradientConflict(experiment.tasks, spec.gradient_conflict_every, run_dir))
    if torch.cuda.is_available() and logger is not None:
        extra.append(DeviceStatsMonitor(cpu_stats=False))
    if spec.strategy != "auto" or spec.devices != 1 or spec.num_nodes != 1:
        extra.append(OwnSignals())
    try:
        return L.Trainer(
            accelerator=spec.accelerator,
            devices=spec.devices,
            num_nodes=spec.num_nodes,
            strategy=spec.strategy,
            precision=precision(spec.precision),
            deterministic=spec.deterministic or None,
            max_steps=experiment.max_steps,
            max_epochs=-1,
            val_check_interval=experiment.eval.every,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            log_every_n_steps=spec.log_every,
            profiler=_profiler(spec.profiler, run_dir) if logger is not None else None,
            logger=logger if logger is not None else False,
            enable_progress_bar=any(isinstance(callback, TrainingBar) for callback in callbacks),
            plugins=[CheckpointFiles()],
            callbacks=[*extra, *callbacks],
            default_root_dir=run_dir,
            enable_model_summary=False,
        )
    except Exception as error:  # noqa: BLE001 - Lightning refuses settings with exceptions of many types
        raise SpecError(f"trainer: {' '.join(str(error).split())}") from None


def _profiler(kind: str | None, run_dir: Path) -> Profiler | None:
    """Lightning's profiler, its report `run_dir/<stage>-profile-0.txt`."""
    if kind is None:
        return None
    profilers = {"simple": SimpleProfiler, "advanced": AdvancedProfiler}
    return profilers[kind](dirpath=run_dir, filename=PROFILE)
