"""The LightningModule of multi-task soft actor-critic."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from ezm_pl.envs import TaskSizes
from ezm_pl.search import act_greedy, policy_draw
from ezm_pl.spec import Experiment
from ezm_pl.spec.seeds import stream_int
from ezm_pl.training.agent_module import AgentModule
from ezm_pl.training.pipeline import Prepared
from ezm_pl.training.ranks import Ranks
from ezm_pl.training.sac.losses import sac_losses, track
from ezm_pl.training.sac.networks import SACActor, SACNetwork


class SACModule(AgentModule):
    """Multi-task soft actor-critic (docs/baseline.md), model-free.

    `network` learns; `target` follows it after every update and is bootstrapped from; the collector's
    weights are up to `optim.refresh_every` updates old. Arguments as for `AgentModule`.

    Attributes:
        log_temperature: `[T]`, learned.
    """

    def __init__(self, experiment: Experiment, sizes: TaskSizes, ranks: Ranks | None = None) -> None:
        super().__init__(experiment, sizes, ranks)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_int(experiment.seed, "weights"))
            self.network = SACNetwork(experiment.model, sizes.obs_size, torch.as_tensor(sizes.action_mask))
        self.target = copy.deepcopy(self.network).requires_grad_(False)
        first = math.log(experiment.sac.initial_temperature)
        self.log_temperature = nn.Parameter(torch.full((len(experiment.tasks),), first))
        self.act, self.act_in_evaluation = policy_draw, act_greedy

    @property
    def learner(self) -> SACNetwork:
        """The network that learns."""
        return self.network

    def new_actor(self) -> SACActor:
        """A copy of the policy with weights yet to be loaded, for a collector or an evaluation."""
        mask = torch.as_tensor(self.sizes.action_mask)
        actor = SACActor(self.experiment.model, self.sizes.obs_size, mask)
        return actor.requires_grad_(False).eval().to(self.device)

    def trained_actor(self) -> SACActor:
        """A copy of the policy with the present weights."""
        actor = self.new_actor()
        actor.load_state_dict(self.network.acting_state())
        return actor

    def configure_optimizers(self) -> Any:
        """Adam; the temperatures have no weight decay."""
        spec = self.experiment.optim
        groups = [
            {"params": [*self.network.parameters()], "weight_decay": spec.weight_decay},
            {"params": [self.log_temperature], "weight_decay": 0.0},
        ]
        return self.with_decay(torch.optim.Adam(groups, lr=spec.learning_rate, fused=True))

    def on_fit_start(self) -> None:
        """Hands the first weights to the actor; starts the collector and the pipeline."""
        self._statistics = [*self.network.normalizer.buffers()]
        self._clipped = self.network.critic_parameters(), [*self.network.policy_head.parameters()]
        self.data.store.publish(self.data.pacing.updates, self.network.acting_state())
        self.data.start(self.new_actor(), self.act, self.device, lambda batch, updates: None)

    def training_step(self, prepared: Prepared[None], batch_idx: int) -> None:
        """One update, from its batch to the weights that act.

        Raises:
            NonFiniteUpdates: `optim.max_skipped_updates` updates in a row had to be skipped.
        """
        update, timer = self.global_step, self.data.timer
        with timer("losses"), self._own_precision():
            batch, _ = prepared.result()
            before = torch.cat([x.flatten() for x in self._statistics])
            self.network.normalizer.update(batch.observation[:, 0])
            found = sac_losses(
                batch,
                self.network,
                self.target,
                self.log_temperature,
                self.experiment,
                self.generator("policy"),
            )
            for observe in self.due():
                observe(found, batch)
            self.manual_backward(found.total)
        with timer("optimizer"), self._own_precision():
            norm = self._clip_gradients()
            self._step_if_finite(found.total, norm, before)
            track(self.target, self.network, self.experiment.sac.target_rate)
        with timer("refresh"):
            if self.global_step % self.experiment.optim.refresh_every == 0:
                self.refresh()
        self.data.pacing.updated(self.global_step)
        if self.logs(update):
            self._log_update(found, norm)
            self._give_up_if_stuck(found, batch, None)

    def _clip_gradients(self) -> Tensor:
        """Critic and policy each to `optim.max_grad_norm`: Q's gradient is many times the policy's.

        Returns:
            `[]`, the norm of all gradients.
        """
        most = self.experiment.optim.max_grad_norm
        norms = [torch.nn.utils.clip_grad_norm_(part, most, foreach=True) for part in self._clipped]
        assert self.log_temperature.grad is not None
        return torch.stack([*norms, self.log_temperature.grad.norm()]).norm()

    def refresh(self) -> None:
        """The collector takes the policy's weights."""
        self.data.store.publish(self.global_step, self.network.acting_state())
