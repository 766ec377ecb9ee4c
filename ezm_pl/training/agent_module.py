"""What the LightningModules of all agents share: skipped updates, random streams, evaluations."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from ezm_pl.envs import TaskSizes
from ezm_pl.search import ActFn
from ezm_pl.selfplay import Actor
from ezm_pl.spec import Experiment
from ezm_pl.spec.seeds import stream_int
from ezm_pl.training.batch import Batch, Targets
from ezm_pl.training.data import SelfPlayDataModule
from ezm_pl.training.evaluation import Evaluation, Evaluator
from ezm_pl.training.fault_tolerance.skipped import NonFiniteUpdates, diagnosis
from ezm_pl.training.losses import Losses
from ezm_pl.training.ranks import Ranks, per_rank


class Observer(NamedTuple):
    """Is shown an update's losses and its batch, before the backward pass.

    Attributes:
        every: updates from one to the next. look: what it does with them.
    """

    every: int
    look: Callable[[Losses, Batch], None]


class AgentModule(L.LightningModule):
    """An agent under Lightning's manual optimisation; a subclass is one algorithm.

    A subclass gives `learner`, `act`, `act_in_evaluation`, `new_actor`, `trained_actor`, its optimiser, and
    `training_step`, an update from its batch to the weights that act.

    Args:
        experiment: the run's spec.
        sizes: padded sizes and masks of its tasks.
        ranks: this one among the others.

    Attributes:
        act, act_in_evaluation: how an actor decides in self-play and in evaluations.
        evaluations: of this session, in order.
        observers: shown the losses of some updates.
        nonfinite_updates: how many updates have been skipped, `[]`.
    """

    act: ActFn
    act_in_evaluation: ActFn
    nonfinite_updates: Tensor
    _skipped_in_a_row: Tensor
    _statistics: list[Tensor]
    """The running statistics that a forward pass moves; a subclass lists them in `on_fit_start`."""

    def __init__(self, experiment: Experiment, sizes: TaskSizes, ranks: Ranks | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.experiment, self.sizes = experiment, sizes
        self.ranks = ranks or Ranks()
        self.per_rank = per_rank(experiment, self.ranks)
        self.register_buffer("nonfinite_updates", torch.zeros(()))
        self.register_buffer("_skipped_in_a_row", torch.zeros(()), persistent=False)
        self._generators: dict[str, torch.Generator] = {}
        self._generator_states: dict[str, Tensor] = {}
        self.evaluator = Evaluator(experiment, self.ranks)
        self.evaluations: list[Evaluation] = []
        self.observers: list[Observer] = []
        self._has_logged = False

    def due(self) -> list[Callable[[Losses, Batch], None]]:
        """The observers of the update at hand."""
        return [each.look for each in self.observers if self.global_step % each.every == 0]

    @property
    @abstractmethod
    def learner(self) -> nn.Module:
        """The network that learns."""

    @abstractmethod
    def new_actor(self) -> Actor:
        """A network on this device that acts, with weights yet to be loaded."""

    @abstractmethod
    def trained_actor(self) -> Actor:
        """The same with the present weights, for an evaluation."""

    @property
    def data(self) -> SelfPlayDataModule:
        """The data module that training runs with."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def with_decay(self, optimizer: torch.optim.Optimizer) -> Any:
        """What `configure_optimizers` returns: the learning rate falls at the end (`optim.decay_share`)."""
        if not self.experiment.optim.decay_share:
            return optimizer
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, self._learning_rate_share)]

    def _learning_rate_share(self, update: int) -> float:
        """1, then linearly down over the last `optim.decay_share` of the updates, to 0.1 at the last."""
        left = 1 - update / self.experiment.max_steps
        return min(1.0, 0.1 + 0.9 * max(0.0, left) / self.experiment.optim.decay_share)

    def _own_precision(self) -> torch.autocast:
        """Inside, operations run in the precision of their inputs: Lightning's autocast is for the losses."""
        return torch.autocast(self.device.type, enabled=False)

    def _step_if_finite(
        self, loss: Tensor, norm: Tensor, before: Tensor, grad_scale: Tensor | None = None
    ) -> Tensor:
        """An optimiser step, or none where loss or gradients are not finite on any rank.

        `found_inf` tells a fused optimiser to skip its step, so nothing is read back from the device.

        Args:
            loss, norm: `[]`, of the update and of its gradients.
            before: `_statistics` before its forward pass, put back if it is skipped.
            grad_scale: `[]`, what gradients are divided by; None for 1.

        Returns:
            `[]` bool, whether the update was skipped.
        """
        # Gradients are those of all ranks already.
        found = self.trainer.strategy.reduce(loss.detach() + norm, reduce_op="sum")
        skip = found * 0 != 0  # infinite or NaN
        skipped = skip.float()
        optimizer = self.optimizers()
        assert isinstance(optimizer, L.pytorch.core.optimizer.LightningOptimizer)
        optimizer.optimizer.found_inf = skipped  # type: ignore[attr-defined]
        optimizer.optimizer.grad_scale = grad_scale  # type: ignore[attr-defined]
        optimizer.step()
        optimizer.zero_grad()
        if (schedule := self.lr_schedulers()) is not None:
            schedule.step()  # type: ignore[union-attr]
        self.nonfinite_updates += skipped
        torch.addcmul(skipped, skipped, self._skipped_in_a_row, out=self._skipped_in_a_row)
        moved = self._statistics
        kept = torch.where(skip, before, torch.cat([x.flatten() for x in moved]))
        parts = kept.split([x.numel() for x in moved])
        torch._foreach_copy_(moved, [part.view_as(x) for part, x in zip(parts, moved, strict=True)])
        return skip

    def logs(self, update: int) -> bool:
        """Whether an update, counted from 0, is one whose metrics Lightning writes.

        It writes every so many, and at once when the run is asked to stop: so the first one has some, too.
        """
        due = (update + 1) % self.experiment.trainer.log_every == 0
        return due or not self._has_logged or bool(self.trainer.should_stop)

    def _log_update(self, found: Losses, norm: Tensor) -> None:
        """Every term and diagnostic of an update, under `train/`."""
        named = {f"loss/{name}": each for name, each in found.terms.items()} | found.diagnostics
        named |= {"loss/total": found.total.detach(), "skipped_updates": self.nonfinite_updates}
        self.log_dict({f"train/{name}": each for name, each in named.items()}, sync_dist=True)
        self.log("train/gradient_norm", norm)
        self._has_logged = True

    def _give_up_if_stuck(self, found: Losses, batch: Batch, targets: Targets | None) -> None:
        skipped = int(self._skipped_in_a_row)
        if skipped >= self.experiment.optim.max_skipped_updates:
            self.data.sync.ranks_in_sync = True
            raise NonFiniteUpdates(
                diagnosis(found, batch, targets, self.learner, self.experiment.tasks, skipped)
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
        if self.data.pipeline is not None:
            self.data.pipeline.drain()
        checkpoint["generators"] = {name: g.get_state() for name, g in self._generators.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes them up."""
        self._generator_states = checkpoint["generators"]

    def validation_step(self, batch: int, batch_idx: int) -> None:
        """An evaluation of all tasks with the present weights, each rank its tasks."""
        sync = self.data.sync
        parts = self.ranks.gather_objects(
            self.evaluator.play(self.trained_actor(), self.act_in_evaluation, sync.asked_to_stop.is_set)
        )
        sync.all_gather_counts()
        played = [part for part in parts if part is not None]
        if len(played) < len(parts):
            sync.interrupt()
            return
        order = np.argsort(np.concatenate([np.asarray(tasks, np.int64) for tasks, _, _ in played]))
        returns = [np.concatenate([part[i] for part in played])[order] for i in (1, 2)]
        env_steps = int(sync.control_steps.mean())
        evaluation = Evaluation.of(self.experiment, self.global_step, env_steps, returns)
        self.evaluations.append(evaluation)
        self.log_dict(evaluation.metrics(), batch_size=1)

    def teardown(self, stage: str) -> None:
        """Closes the environments of evaluations."""
        self.evaluator.close()
