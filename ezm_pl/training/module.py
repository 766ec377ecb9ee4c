"""The LightningModule: one world model, its lagged copies, reanalysis and losses."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ezm_pl.envs import TaskSizes
from ezm_pl.search import Planner
from ezm_pl.selfplay import Clock
from ezm_pl.spec import Experiment
from ezm_pl.spec.seeds import stream_int
from ezm_pl.training.batch import Batch, Targets
from ezm_pl.training.data import SelfPlayDataModule
from ezm_pl.training.evaluation import Evaluation, EvaluationInterrupted, play_episodes
from ezm_pl.training.hardware import search_dtype
from ezm_pl.training.losses import Losses, losses, unroll
from ezm_pl.training.pathwise import QSpread
from ezm_pl.training.ranks import Ranks, rank_share
from ezm_pl.training.reanalysis import reanalyse
from ezm_pl.training.skipped import NonFiniteUpdates, diagnosis
from ezm_pl.world_model import InferenceModel, WorldModel


class EZMModule(L.LightningModule):
    """EfficientZero-Multitask under Lightning.

    Three copies of the world model live here: `model` learns, `lagged` is 0 to `refresh_every`
    updates old and goes to the actors, `target` is one refresh older and reanalyses batches (on the
    CPU one batch ahead, in the background).

    Args:
        experiment: the run's spec.
        sizes: padded sizes and masks of its tasks.
        ranks: this one among the others.
    """

    def __init__(self, experiment: Experiment, sizes: TaskSizes, ranks: Ranks | None = None) -> None:
        super().__init__()
        self.experiment, self.sizes = experiment, sizes
        self.share = rank_share(experiment, ranks or Ranks())
        mask = torch.as_tensor(sizes.action_mask)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_int(experiment.seed, "weights"))
            real = torch.arange(sizes.obs_size) < torch.as_tensor(sizes.obs_sizes).unsqueeze(1)
            decoded = real if experiment.loss.observation else None
            self.model = WorldModel(experiment.model, sizes.obs_size, mask, decoded=decoded)
        self.average = copy.deepcopy(self.model) if experiment.optim.averaging else None
        if self.average is not None:
            self.average.requires_grad_(False)
        self.spread = QSpread(len(experiment.tasks)) if experiment.loss.pathwise else None
        self.lagged = self.new_actor()
        self.target = self.new_actor()
        self.refresh()
        self.refresh()
        self.planner = Planner(experiment.search, experiment.targets.discount, sizes.action_size)
        self.register_buffer("nonfinite_updates", torch.zeros(()))
        self.register_buffer("_skipped_in_a_row", torch.zeros(()), persistent=False)
        self._generators: dict[str, torch.Generator] = {}
        self._generator_states: dict[str, Tensor] = {}
        self._error: tuple[Batch, Tensor] | None = None
        self._drawn: Batch | None = None
        self._copying: tuple[Batch, Tensor, torch.cuda.Event] | None = None
        self._statistics: list[Tensor] = []
        self._latest: tuple[Losses, Batch, Targets] | None = None
        self.evaluations: list[Evaluation] = []
        self.updates = 0
        self.clock = Clock()

    nonfinite_updates: Tensor
    _skipped_in_a_row: Tensor

    def new_actor(self) -> InferenceModel:
        """An inference copy with weights yet to be loaded, for a collector or an evaluation."""
        return InferenceModel(
            self.experiment.model,
            self.sizes.obs_size,
            torch.as_tensor(self.sizes.action_mask),
            search_dtype(self.experiment.search.dtype),
        ).to(self.device)

    def train(self, mode: bool = True) -> EZMModule:
        """As any module's, but the lagged copies stay in eval mode."""
        super().train(mode)
        self.lagged.eval()
        self.target.eval()
        return self

    def refresh(self) -> None:
        """Moves the lagged copies on by one: target takes lagged's weights, lagged the model's average."""
        self.target.load(self.lagged)
        self.lagged.load(self.smoothed)

    @property
    def smoothed(self) -> WorldModel:
        """What acts and is evaluated: the average of the weights, or the weights where none is kept."""
        return self.model if self.average is None else self.average

    @torch.no_grad()
    def _average(self) -> None:
        """Takes the model's weights, and running statistics, into their average; once per refresh."""
        if self.average is None:
            return
        spec = self.experiment.optim
        mine, theirs = list(self.average.state_dict().values()), list(self.model.state_dict().values())
        floats = [(a, b) for a, b in zip(mine, theirs, strict=True) if a.is_floating_point()]
        torch._foreach_lerp_(
            [a for a, _ in floats], [b for _, b in floats], 1 - spec.averaging**spec.refresh_every
        )

    def generator(self, purpose: str) -> torch.Generator:
        """The random stream of a purpose, on the module's device.

        A resumed run takes up rank 0's where they were; other ranks, and other kinds of devices, draw
        from streams of their own that start at the checkpoint's update.
        """
        if purpose not in self._generators:
            device = self.device if purpose != "heads" else torch.device("cpu")
            resumed = f"{purpose} from update {self.global_step}"
            seed = stream_int(self.experiment.seed, resumed, self.global_rank)
            generator = torch.Generator(device).manual_seed(seed)
            state = self._generator_states.get(purpose)
            if state is not None and self.global_rank == 0 and state.shape == generator.get_state().shape:
                generator.set_state(state)
            self._generators[purpose] = generator
        return self._generators[purpose]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the random streams of the learner."""
        self._settle()
        checkpoint["generators"] = {name: g.get_state() for name, g in self._generators.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes them up."""
        self._generator_states = checkpoint["generators"]

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Keeps a training batch where it was drawn: its place in the buffer is asked for there."""
        if isinstance(batch, Batch):
            self._drawn = batch
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Adds a training batch's targets: `Batch` to `(Batch, Targets)`."""
        if not isinstance(batch, Batch):
            return batch
        self.clock.lap("other")
        if self.data.background is None:
            targets = self.reanalyse(batch, self.global_step)
        else:
            targets = self.data.background.take()
        self.clock.lap("search")
        return batch, targets

    def reanalyse(self, batch: Batch, updates: int) -> Targets:
        """Fresh targets from the target network, `updates` having been done."""
        self.target.draw_heads(self.generator("heads"))
        return reanalyse(batch, self.target, self.planner, self.share, updates, self.generator("search"))

    def _settle(self) -> None:
        """Waits for what is being reanalysed, before what it uses is changed or saved."""
        if self.data.background is not None:
            self.data.background.settle()

    def training_step(self, batch: tuple[Batch, Targets], batch_idx: int) -> Tensor:
        """One update's loss."""
        windows, targets = batch
        self._statistics = [buffer.clone() for buffer in self._running()]
        self.model.normalizer.update(windows.observation[:, 0])
        spec, noise = self.experiment.targets, self.generator("entropy")
        found = losses(unroll(self.model, windows, targets, spec, noise, self.spread), self.experiment.loss)
        assert self._drawn is not None
        self._error = self._drawn, found.value_error
        self._latest = dataclasses.replace(found, total=found.total.detach()), windows, targets
        self._log(found, targets)
        return found.total

    def on_after_backward(self) -> None:
        """What has passed since the search went into the losses and their gradients."""
        self.clock.lap("losses")

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """As any module's."""
        super().optimizer_step(*args, **kwargs)
        self.clock.lap("optimizer")

    def _log(self, found: Losses, targets: Targets) -> None:
        if self.global_step % self.experiment.trainer.log_every:
            return
        named = {f"loss/{name}": each for name, each in (found.terms | {"total": found.total}).items()}
        named |= found.diagnostics | {"skipped_updates": self.nonfinite_updates}
        if self.spread is not None:
            named["policy/q_spread"] = self.spread.spread().mean()
        self.log_dict({f"train/{name}": each for name, each in named.items()}, sync_dist=True)

    def _running(self) -> list[Tensor]:
        """The running statistics that the forward pass moves."""
        return [*self.model.buffers(), *(() if self.spread is None else self.spread.buffers())]

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips by norm, and has the optimiser skip an update whose loss or gradients are not finite.

        `found_inf` is how fused optimisers learn that a step is to be skipped: nothing is read back
        from the device, but for the count of skipped updates in a row, every `trainer.log_every` updates.

        Raises:
            NonFiniteUpdates: there are `optim.max_skipped_updates` of them.
        """
        norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), self.experiment.optim.max_grad_norm, foreach=True
        )
        assert self._latest is not None and self._error is not None
        # All ranks must agree; gradients they have in common already.
        loss = self.trainer.strategy.reduce(self._latest[0].total.detach().clone(), reduce_op="sum")
        found_inf = (~(torch.isfinite(norm) & torch.isfinite(loss))).float()
        optimizer.found_inf = found_inf  # type: ignore[attr-defined]
        self.nonfinite_updates += found_inf
        self._skipped_in_a_row.add_(1).mul_(found_inf)
        windows, error = self._error
        # The buffer leaves the priorities of errors that are not finite as they are.
        self._error = windows, torch.where(found_inf.bool(), torch.nan, error)
        # Running statistics moved in the forward pass: those of a skipped update would stay NaN for good.
        for buffer, before in zip(self._running(), self._statistics, strict=True):
            buffer.copy_(torch.where(found_inf.bool(), before, buffer))
        if self.global_step % self.experiment.trainer.log_every == 0:
            self.log("train/gradient_norm", norm)
            skipped = int(self._skipped_in_a_row)
            if skipped >= self.experiment.optim.max_skipped_updates:
                tasks = self.experiment.tasks
                self.data.in_step = True
                raise NonFiniteUpdates(diagnosis(*self._latest, self.model, tasks, skipped))

    @property
    def data(self) -> SelfPlayDataModule:
        """The data module that training runs with."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def on_fit_start(self) -> None:
        """Hands the first weights to the actor and starts the collector thread."""
        self.updates = self.data.updates
        self.clock = self.data.clock = Clock(self.device)
        self.data.store.publish(self.updates, self.lagged.state_dict())
        self.data.start_collecting(self.new_actor(), self.device, self.reanalyse)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Finishes the update."""
        self.finish_update()

    def finish_update(self) -> None:
        """New priorities to the buffer, new weights to the lagged copies and the actor, once an update.

        Callbacks run before the module's own hook: one that saves calls this first.
        """
        if self.updates == self.global_step:
            return
        self.clock.lap("other")
        self.updates = self.global_step
        if self._error is not None:
            (windows, error), self._error = self._error, None
            self._set_priorities(windows, error)
        if self.global_step % self.experiment.optim.refresh_every == 0:
            self.clock.lap("refresh")
            self._settle()
            self.clock.lap("search")
            self._average()
            self.refresh()
            self.data.store.publish(self.global_step, self.lagged.state_dict())
        self.data.updated(self.global_step)
        self.clock.lap("refresh")

    def _set_priorities(self, windows: Batch, error: Tensor) -> None:
        """From a GPU one update late: the host then waits for nothing but that update's errors.

        This is the only point of an update at which the host waits for the device, and what keeps it from
        running further ahead than one update.
        """
        if error.device.type == "cuda":
            there = torch.empty(error.shape, dtype=error.dtype, pin_memory=True)
            there.copy_(error, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(torch.cuda.current_stream(error.device))
            last, self._copying = self._copying, (windows, there, copied)
            if last is None:
                return
            windows, error, copied = last
            copied.synchronize()
        self.data.buffer.update_priorities(
            windows.task.numpy(), windows.leaf.numpy(), windows.born.numpy(), error.numpy()
        )

    def validation_step(self, batch: int, batch_idx: int) -> None:
        """An evaluation of all tasks: episodes that plan with the present weights, each rank its tasks."""
        parts = self.data.ranks.gather_objects(self._play_own_tasks())
        self.data.hear_counts()
        played = [part for part in parts if part is not None]
        if len(played) < len(parts):
            self.data.stop()
            return
        order = np.argsort(np.concatenate([np.asarray(tasks, np.int64) for tasks, _, _ in played]))
        ezm, humanoidbench = (np.concatenate([part[i] for part in played])[order] for i in (1, 2))
        evaluation = Evaluation(
            self.experiment.tasks,
            self.updates,
            int(self.data.control_steps.mean()),
            ezm,
            humanoidbench,
            self.experiment.env.protocol,
            bounds=self.experiment.score_bounds,
        )
        self.evaluations.append(evaluation)
        self.log_dict(evaluation.metrics(), batch_size=1)

    def _play_own_tasks(self) -> tuple[list[int], NDArray[np.float64], NDArray[np.float64]] | None:
        """This rank's tasks `[T']` and their returns `[T', episodes]` twice; None if interrupted."""
        tasks = self.data.evaluated_tasks
        none = np.zeros((0, self.experiment.eval.episodes))
        if not tasks:
            return tasks, none, none
        actor = self.new_actor()
        actor.load(self.smoothed)
        seed, rank = self.experiment.seed, self.data.ranks.rank
        try:
            return tasks, *play_episodes(
                self.data.evaluation_envs(),
                actor,
                self.planner.act,
                seed=stream_int(seed, "evaluation", rank),
                heads=torch.Generator().manual_seed(stream_int(seed, "evaluation heads", rank)),
                device=self.device,
                tasks=tasks,
                stopped=self.data.asked_to_stop.is_set,
            )
        except EvaluationInterrupted:
            return None

    def configure_optimizers(self) -> Any:
        """Adam on the learning copy; its learning rate falls towards the end (`optim.decay_share`)."""
        spec = self.experiment.optim
        optimizer = torch.optim.Adam(
            self.model.parameters(), lr=spec.learning_rate, weight_decay=spec.weight_decay, fused=True
        )
        if not spec.decay_share:
            return optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._learning_rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _learning_rate(self, update: int) -> float:
        """The share of the learning rate at an update: 1, then down in a line to 0.1 at the last."""
        left = 1 - update / self.experiment.max_steps
        return min(1.0, 0.1 + 0.9 * max(0.0, left) / self.experiment.optim.decay_share)
