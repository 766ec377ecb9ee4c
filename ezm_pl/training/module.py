"""The LightningModule: one world model, the copies that act and bootstrap, and the update."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from ezm_pl.envs import TaskSizes
from ezm_pl.search import Planner
from ezm_pl.spec import Experiment
from ezm_pl.spec.seeds import stream_int
from ezm_pl.training.batch import Batch, Targets
from ezm_pl.training.data import SelfPlayDataModule
from ezm_pl.training.evaluation import Evaluation, Evaluator
from ezm_pl.training.fault_tolerance.skipped import NonFiniteUpdates, diagnosis
from ezm_pl.training.hardware import search_dtype
from ezm_pl.training.health import batch_health, humanoid_tasks
from ezm_pl.training.losses import Losses, losses, unroll
from ezm_pl.training.pathwise import QSpread
from ezm_pl.training.pipeline import Prepared
from ezm_pl.training.priorities import PriorityWriter
from ezm_pl.training.ranks import Ranks, per_rank
from ezm_pl.training.reanalysis import reanalyse
from ezm_pl.training.working_copy import WorkingCopy
from ezm_pl.world_model import InferenceModel, WorldModel
from ezm_pl.world_model.layers import RunningNorm
from ezm_pl.world_model.synchronised import BatchNorm


class EZMModule(L.LightningModule):
    """EfficientZero-Multitask under Lightning's manual optimisation.

    Three copies of the world model live here: `model` learns, `actor_weights` is 0 to `refresh_every`
    updates old and goes to the actors, `target` is one refresh older and reanalyses batches. `average`,
    where the spec asks for one, is the moving average that the other two copy instead of `model`.

    Args:
        experiment: the run's spec.
        sizes: padded sizes and masks of its tasks.
        ranks: this one among the others.

    Attributes:
        evaluations: of this session, in order.
        observers: shown the losses of every update, and its batch, before the backward pass.
        nonfinite_updates: how many updates have been skipped, `[]`.
    """

    nonfinite_updates: Tensor
    _humanoid: Tensor | None
    _skipped_in_a_row: Tensor

    def __init__(self, experiment: Experiment, sizes: TaskSizes, ranks: Ranks | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.experiment, self.sizes = experiment, sizes
        self.ranks = ranks or Ranks()
        self.per_rank = per_rank(experiment, self.ranks)
        real = torch.arange(sizes.obs_size) < torch.as_tensor(sizes.obs_sizes).unsqueeze(1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_int(experiment.seed, "weights"))
            self.model = WorldModel(
                experiment.model,
                sizes.obs_size,
                torch.as_tensor(sizes.action_mask),
                decoded=real if experiment.loss.observation else None,
            )
        self.average = copy.deepcopy(self.model) if experiment.optim.averaging else None
        if self.average is not None:
            self.average.requires_grad_(False)
        self.spread = QSpread(len(experiment.tasks)) if experiment.loss.pathwise else None
        self.actor_weights, self.target = self.new_actor(), self.new_actor()
        self.actor_weights.load(self.model)
        self.target.load(self.model)
        self.planner = Planner(experiment.search, experiment.targets.discount, sizes.action_size)
        self.register_buffer("_humanoid", humanoid_tasks(experiment.tasks), persistent=False)
        self.register_buffer("nonfinite_updates", torch.zeros(()))
        self.register_buffer("_skipped_in_a_row", torch.zeros(()), persistent=False)
        self._generators: dict[str, torch.Generator] = {}
        self._generator_states: dict[str, Tensor] = {}
        self.evaluator = Evaluator(experiment, self.ranks)
        self.evaluations: list[Evaluation] = []
        self.observers: list[Callable[[Losses, Batch], None]] = []
        self._working_copy: WorkingCopy | None = None

    @property
    def learner(self) -> WorldModel:
        """The network that learns."""
        return self.model

    def new_actor(self) -> InferenceModel:
        """An inference copy with weights yet to be loaded, for a collector or an evaluation."""
        return InferenceModel(
            self.experiment.model,
            self.sizes.obs_size,
            torch.as_tensor(self.sizes.action_mask),
            search_dtype(self.experiment.search.dtype),
        ).to(self.device)

    @property
    def smoothed(self) -> WorldModel:
        """What acts and is evaluated: the average of the weights, or the weights where none is kept."""
        return self.model if self.average is None else self.average

    @property
    def data(self) -> SelfPlayDataModule:
        """The data module that training runs with."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def train(self, mode: bool = True) -> EZMModule:
        """As any module's, but the inference copies stay in eval mode."""
        super().train(mode)
        self.actor_weights.eval()
        self.target.eval()
        return self

    def configure_optimizers(self) -> Any:
        """Adam on the learning copy; its learning rate falls towards the end (`optim.decay_share`)."""
        spec = self.experiment.optim
        optimizer = torch.optim.Adam(
            self.model.parameters(), lr=spec.learning_rate, weight_decay=spec.weight_decay, fused=True
        )
        if not spec.decay_share:
            return optimizer
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, self._learning_rate_share)]

    def _learning_rate_share(self, update: int) -> float:
        """1, then linearly down over the last `optim.decay_share` of the updates, to 0.1 at the last."""
        left = 1 - update / self.experiment.max_steps
        return min(1.0, 0.1 + 0.9 * max(0.0, left) / self.experiment.optim.decay_share)

    def on_fit_start(self) -> None:
        """Hands the first weights to the actor; starts the collector and the pipeline."""
        self.data.store.publish(self.data.pacing.updates, self.actor_weights.state_dict())
        self.data.start(self.new_actor(), self.device, self.reanalyse)
        self._priorities = PriorityWriter(self.data.buffer)
        # Listed once: to walk over the modules takes a fiftieth of an update.
        self._learning = list(self.model.parameters())
        norms = [x for x in self.model.modules() if isinstance(x, (BatchNorm, RunningNorm))]
        moved = [*norms, *([] if self.spread is None else [self.spread])]
        self._statistics = [x for module in moved for x in module.buffers()]
        if self.trainer.precision == "bf16-mixed":
            self._working_copy = WorkingCopy(self.model, torch.bfloat16)

    def training_step(self, prepared: Prepared, batch_idx: int) -> None:
        """One update, from its batch to the weights that act.

        Raises:
            NonFiniteUpdates: `optim.max_skipped_updates` updates in a row had to be skipped.
        """
        update, timer = self.global_step, self.data.timer
        with timer("search"), self._own_precision():
            batch, targets = prepared.result()
        with timer("losses"):
            before = torch.cat([x.flatten() for x in self._statistics])
            found = self.losses(batch, targets)
            with self._own_precision():
                for observe in self.observers:
                    observe(found, batch)
                self.manual_backward(found.total)
        with timer("optimizer"), self._own_precision():
            norm = torch.nn.utils.clip_grad_norm_(
                self._learning, self.experiment.optim.max_grad_norm, foreach=True
            )
            skipped = self._step_if_finite(found.total, norm, before)
        with timer("refresh"):
            # The buffer leaves the priorities of errors that are not finite as they are.
            self._priorities.write(
                prepared.windows, torch.where(skipped.bool(), torch.nan, found.value_error)
            )
            if self.global_step % self.experiment.optim.refresh_every == 0:
                self.refresh()
        self.data.pacing.updated(self.global_step)
        if update % self.experiment.trainer.log_every == 0:
            self._log(found, norm, batch)
            self._give_up_if_stuck(found, batch, targets)

    def losses(self, batch: Batch, targets: Targets) -> Losses:
        """The losses of a batch that the normaliser has taken in."""
        self.model.normalizer.update(batch.observation[:, 0])
        model = self.model if self._working_copy is None else self._working_copy()
        spec, noise = self.experiment.targets, self.generator("entropy")
        return losses(unroll(model, batch, targets, spec, noise, self.spread), self.experiment.loss)

    def _own_precision(self) -> torch.autocast:
        """Inside, operations run in the precision of their inputs: Lightning's autocast is for the losses."""
        return torch.autocast(self.device.type, enabled=False)

    def _step_if_finite(self, loss: Tensor, norm: Tensor, before: Tensor) -> Tensor:
        """An optimiser step, or none where loss or gradients are not finite on any rank.

        `found_inf` tells a fused optimiser to skip its step, so nothing is read back from the device.

        Args:
            loss, norm: `[]`, of the update and of its gradients.
            before: the running statistics before its forward pass, put back if it is skipped.

        Returns:
            `[]`, 1 where the update was skipped.
        """
        # Gradients are those of all ranks already.
        loss = self.trainer.strategy.reduce(loss.detach().clone(), reduce_op="sum")
        skipped = (~torch.isfinite(norm + loss)).float()
        optimizer = self.optimizers()
        assert isinstance(optimizer, L.pytorch.core.optimizer.LightningOptimizer)
        optimizer.optimizer.found_inf = skipped  # type: ignore[attr-defined]
        optimizer.step()
        optimizer.zero_grad()
        if (schedule := self.lr_schedulers()) is not None:
            schedule.step()  # type: ignore[union-attr]
        self.nonfinite_updates += skipped
        self._skipped_in_a_row.add_(1).mul_(skipped)
        moved = self._statistics
        kept = torch.where(skipped.bool(), before, torch.cat([x.flatten() for x in moved]))
        parts = kept.split([x.numel() for x in moved])
        torch._foreach_copy_(moved, [part.view_as(x) for part, x in zip(parts, moved, strict=True)])
        return skipped

    def _log(self, found: Losses, norm: Tensor, batch: Batch) -> None:
        named = {f"loss/{name}": each for name, each in found.terms.items()} | found.diagnostics
        named |= {"loss/total": found.total.detach(), "skipped_updates": self.nonfinite_updates}
        if self.spread is not None:
            named["policy/q_spread"] = self.spread.spread().mean()
        self.log_dict({f"train/{name}": each for name, each in named.items()}, sync_dist=True)
        self.log_dict(batch_health(batch, found, self.experiment, self._humanoid), sync_dist=True)
        self.log("train/gradient_norm", norm)

    def _give_up_if_stuck(self, found: Losses, batch: Batch, targets: Targets) -> None:
        skipped = int(self._skipped_in_a_row)
        if skipped >= self.experiment.optim.max_skipped_updates:
            self.data.sync.ranks_in_sync = True
            raise NonFiniteUpdates(
                diagnosis(found, batch, targets, self.model, self.experiment.tasks, skipped)
            )

    def reanalyse(self, batch: Batch, updates: int) -> Targets:
        """Fresh targets from the target network, at a number of updates done."""
        self.target.draw_heads(self.generator("heads"))
        return reanalyse(batch, self.target, self.planner, self.per_rank, updates, self.generator("search"))

    @torch.no_grad()
    def refresh(self) -> None:
        """Target takes the actor's weights, the actor the model's (or their average); the collector too."""
        assert self.data.pipeline is not None
        self.data.pipeline.drain()
        if self.average is not None:
            spec = self.experiment.optim
            pairs = zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True)
            mine, theirs = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
            torch._foreach_lerp_(mine, theirs, 1 - spec.averaging**spec.refresh_every)
        self.target.load(self.actor_weights)
        self.actor_weights.load(self.smoothed)
        self.data.store.publish(self.global_step, self.actor_weights.state_dict())

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
        if self.data.pipeline is not None:
            self.data.pipeline.drain()
        checkpoint["generators"] = {name: g.get_state() for name, g in self._generators.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes them up."""
        self._generator_states = checkpoint["generators"]

    def validation_step(self, batch: int, batch_idx: int) -> None:
        """An evaluation of all tasks: episodes that plan with the present weights, each rank its tasks."""
        sync = self.data.sync
        actor = self.new_actor()
        actor.load(self.smoothed)
        parts = self.ranks.gather_objects(
            self.evaluator.play(actor, self.planner.act, sync.asked_to_stop.is_set)
        )
        sync.all_gather_counts()
        played = [part for part in parts if part is not None]
        if len(played) < len(parts):
            sync.interrupt()
            return
        order = np.argsort(np.concatenate([np.asarray(tasks, np.int64) for tasks, _, _ in played]))
        ezm, humanoidbench = (np.concatenate([part[i] for part in played])[order] for i in (1, 2))
        evaluation = Evaluation(
            self.experiment.tasks,
            self.global_step,
            int(sync.control_steps.mean()),
            ezm,
            humanoidbench,
            self.experiment.env.protocol,
            bounds=self.experiment.score_bounds,
        )
        self.evaluations.append(evaluation)
        self.log_dict(evaluation.metrics(), batch_size=1)

    def teardown(self, stage: str) -> None:
        """Closes the environments of evaluations."""
        self.evaluator.close()
