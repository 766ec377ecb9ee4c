"""The LightningModule of EZ-M: one world model, the copies that act and bootstrap, and the update."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ezm_pl.envs import TaskSizes
from ezm_pl.search import Planner, policy_draw
from ezm_pl.spec import Experiment
from ezm_pl.spec.seeds import stream_int
from ezm_pl.training.agent_module import AgentModule
from ezm_pl.training.batch import Batch, Targets
from ezm_pl.training.compiled_losses import Compiled, CompiledLosses
from ezm_pl.training.hardware import search_dtype
from ezm_pl.training.health import batch_health, humanoid_tasks
from ezm_pl.training.losses import Losses, losses, unroll
from ezm_pl.training.pathwise import QSpread
from ezm_pl.training.pipeline import Prepared
from ezm_pl.training.priorities import PriorityWriter
from ezm_pl.training.ranks import Ranks
from ezm_pl.training.reanalysis import reanalyse
from ezm_pl.training.working_copy import WorkingCopy
from ezm_pl.world_model import InferenceModel, WorldModel
from ezm_pl.world_model.layers import RunningNorm
from ezm_pl.world_model.synchronised import BatchNorm


class EZMModule(AgentModule):
    """EfficientZero-Multitask (docs/algorithm.md).

    Three copies of the world model live here: `model` learns, `actor_weights` is 0 to `refresh_every`
    updates old and goes to the actors, `target` is one refresh older and reanalyses batches. `average`,
    where the spec asks for one, is the moving average that the other two copy instead of `model`.
    Arguments as for `AgentModule`.
    """

    _humanoid: Tensor | None

    def __init__(self, experiment: Experiment, sizes: TaskSizes, ranks: Ranks | None = None) -> None:
        super().__init__(experiment, sizes, ranks)
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
        self.act = policy_draw if self.planner.without_search else self.planner.act
        self.act_in_evaluation = Planner(
            experiment.search, experiment.targets.discount, sizes.action_size, evaluation=True
        ).act
        self.register_buffer("_humanoid", humanoid_tasks(experiment.tasks), persistent=False)
        self._working_copy: WorkingCopy | None = None
        self.compiled_losses: CompiledLosses | None = None

    def describe(self, training: Sequence[Tensor], held_out: Sequence[Tensor]) -> None:
        """Gives all copies the vectors of the tasks' descriptions (`description_vectors`), for a new run."""
        for model in (self.model, self.average):
            if model is not None:
                assert model.described is not None
                model.described.describe(training, held_out)
        self.actor_weights.load(self.model)
        self.target.load(self.model)

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

    def trained_actor(self, embedding: Tensor | None = None) -> InferenceModel:
        """An inference copy of what acts and is evaluated, by other task embeddings `[T, E]` if given."""
        actor = self.new_actor()
        actor.load(self.smoothed, embedding)
        return actor

    def train(self, mode: bool = True) -> EZMModule:
        """As any module's, but the inference copies stay in eval mode."""
        super().train(mode)
        self.actor_weights.eval()
        self.target.eval()
        return self

    def configure_optimizers(self) -> Any:
        """Adam on the learning copy."""
        spec = self.experiment.optim
        optimizer = torch.optim.Adam(
            self.model.parameters(), lr=spec.learning_rate, weight_decay=spec.weight_decay, fused=True
        )
        return self.with_decay(optimizer)

    def on_fit_start(self) -> None:
        """Hands the first weights to the actor; starts the collector and the pipeline."""
        self.data.store.publish(self.data.pacing.updates, self.actor_weights.state_dict())
        self.data.start(self.new_actor(), self.act, self.device, self.reanalyse)
        self._priorities = PriorityWriter(self.data.buffer)
        # Listed once: to walk over the modules takes a fiftieth of an update.
        self._learning = list(self.model.parameters())
        norms = [x for x in self.model.modules() if isinstance(x, (BatchNorm, RunningNorm))]
        moved = [*norms, *([] if self.spread is None else [self.spread])]
        self._statistics = [x for module in moved for x in module.buffers()]
        if self.trainer.precision == "bf16-mixed":
            self._working_copy = WorkingCopy(self.model, torch.bfloat16)
        if CompiledLosses.possible(self.experiment, self.device, self.ranks.size):
            bfloat16 = self._working_copy is not None
            self.compiled_losses = CompiledLosses(self.experiment, self.model, self.spread, bfloat16)

    def training_step(self, prepared: Prepared[Targets], batch_idx: int) -> None:
        """One update, from its batch to the weights that act.

        Raises:
            NonFiniteUpdates: `optim.max_skipped_updates` updates in a row had to be skipped.
        """
        update, timer = self.global_step, self.data.timer
        with timer("search"), self._own_precision():
            batch, targets = prepared.result()
        with timer("losses"):
            before = torch.cat([x.flatten() for x in self._statistics])
            logs = self.logs(update)
            found = self._gradients(batch, targets, whole=logs or bool(self.due()))
        with timer("optimizer"), self._own_precision():
            gradients = [x.grad for x in self._learning if x.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
            # Clipped as the optimiser reads them, which divides them by this.
            scale = (norm / self.experiment.optim.max_grad_norm).clamp(min=1)
            skip = self._step_if_finite(found.total, norm, before, scale)
        with timer("refresh"):
            # The buffer leaves the priorities of errors that are not finite as they are.
            self._priorities.write(prepared.windows, found.value_error.masked_fill(skip, torch.nan))
            if self.global_step % self.experiment.optim.refresh_every == 0:
                self.refresh()
        self.data.pacing.updated(self.global_step)
        if isinstance(found, Losses) and logs:
            self._log_update(found, norm)
            self.log_dict(batch_health(batch, found, self.experiment, self._humanoid), sync_dist=True)
            if self.spread is not None:
                self.log("train/policy/q_spread", self.spread.spread().mean(), sync_dist=True)
            self._give_up_if_stuck(found, batch, targets)

    def _gradients(self, batch: Batch, targets: Targets, *, whole: bool) -> Losses | Compiled:
        """Losses, and gradients put into the parameters: by a program, if there is one, unless `whole`."""
        compiled = self.compiled_losses
        if compiled is not None and not whole:
            found = compiled(batch, targets, self.generator("entropy"))
            if found is not None:
                return found
        with nullcontext() if compiled is None or whole else compiled.watched(batch, targets):
            plain = self.losses(batch, targets)
            with self._own_precision():
                for observe in self.due():
                    observe(plain, batch)
                self.manual_backward(plain.total)
        return plain

    def losses(self, batch: Batch, targets: Targets) -> Losses:
        """The losses of a batch that the normaliser has taken in."""
        self.model.normalizer.update(batch.observation[:, 0])
        model = self.model if self._working_copy is None else self._working_copy()
        spec, noise = self.experiment.targets, self.generator("entropy")
        return losses(unroll(model, batch, targets, spec, noise, self.spread), self.experiment.loss)

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
