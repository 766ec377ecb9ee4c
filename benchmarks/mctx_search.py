"""The same search with DeepMind's mctx: our network written again in JAX, with our weights.

mctx expands one node per root at a time, and its actions are indices. So a root's candidates are given
beforehand, every other node draws two actions from its own policy when it is expanded, and the prior
logits of the indices that do not exist there are -1e9.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mctx
import numpy as np
import torch

from ezm_pl.search import GaussianProposal
from ezm_pl.spec import Experiment
from ezm_pl.world_model import MAX_ACTION, InferenceModel

Weights = dict[str, Any]


class JaxModel:
    """`InferenceModel`'s forward passes as pure functions of its weights (all float32)."""

    def __init__(self, model: InferenceModel) -> None:
        self.spec, self.heads, self.bounds = model.model.spec, model.heads, model.model.bounds
        self.weights: Weights = {
            n: jnp.asarray(t.float().cpu().numpy()) for n, t in model.model.state_dict().items()
        }
        self.weights["task_embedding"] = jnp.asarray(model.model.capped_embedding().float().cpu().numpy())
        self.weights["atoms"] = jnp.asarray(model.model.scalar.atoms.float().cpu().numpy())
        self.weights["mask"] = jnp.asarray(model.model.action_mask.float().cpu().numpy())

    def root(self, w: Weights, observation: Any, task: Any) -> tuple[Any, Any, Any]:
        """Latents, features and values of observations `[B, O]`."""
        scale = jax.lax.rsqrt(w["normalizer.variance"] + 1e-4)
        x = jnp.clip((observation - w["normalizer.mean"]) * scale, -10, 10)
        x = self._dense(w, "encoder.0", self._with_task(w, "representation", task, x))
        x = self._blocks(w, "encoder", jnp.tanh(self._norm(w, "encoder.1", x)), 3)
        features = self._features(w, x, task)
        return x, features, self._value(w, features)

    def step(self, w: Weights, latent: Any, action: Any, task: Any) -> tuple[Any, Any, Any, Any]:
        """Next latents, their features, rewards and values."""
        x = jnp.concatenate([action, *self._task(w, "reward", task)], -1)
        x = jnp.tanh(self._norm(w, "action_encoder.1", self._dense(w, "action_encoder.0", x)))
        x = self._transition(w, "reward_trunk", latent, [x, *self._task(w, "reward", task)])
        reward = self._decode(w, self._head(w, "reward_head", x, 0))
        latent = self._transition(w, "dynamics", latent, [action, *self._task(w, "dynamics", task)])
        features = self._features(w, latent, task)
        return latent, features, reward, self._value(w, features)

    def policy(self, w: Weights, features: Any, task: Any) -> tuple[Any, Any]:
        """Mean and log-std `[B, A]` before tanh."""
        mean, log_std = jnp.split(self._head(w, "policy_head", features, 0), 2, -1)
        bounds = self.bounds
        if bounds.max_mean is not None:
            mean = bounds.max_mean * jnp.tanh(mean / bounds.max_mean)
        half = (bounds.max_log_std - bounds.min_log_std) / 2
        log_std = bounds.min_log_std + half * (jnp.tanh(log_std + bounds.shift) + 1)
        return mean, log_std

    def actions(self, w: Weights, features: Any, task: Any, noise: Any, scales: Any) -> Any:
        """Actions `[B, C, A]` for noise `[B, C, A]` and std scales `[C]`."""
        mean, log_std = self.policy(w, features, task)
        u = mean[:, None] + noise * jnp.exp(log_std)[:, None] * scales[None, :, None]
        return jnp.clip(jnp.tanh(u), -MAX_ACTION, MAX_ACTION) * w["mask"][task][:, None]

    def _task(self, w: Weights, part: str, task: Any) -> list[Any]:
        return [w["task_embedding"][task]] if part in self.spec.task_embedding_in else []

    def _with_task(self, w: Weights, part: str, task: Any, x: Any) -> Any:
        return jnp.concatenate([x, *self._task(w, part, task)], -1)

    def _dense(self, w: Weights, name: str, x: Any) -> Any:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def _norm(self, w: Weights, name: str, x: Any) -> Any:
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def _blocks(self, w: Weights, name: str, x: Any, first: int) -> Any:
        for index in range(first, first + self.spec.blocks):
            block = f"{name}.{index}"
            inner = jax.nn.relu(self._dense(w, f"{block}.inner", self._norm(w, f"{block}.norm", x)))
            x = x + self._dense(w, f"{block}.outer", inner)
        return x

    def _transition(self, w: Weights, name: str, latent: Any, extras: list[Any]) -> Any:
        x = self._norm(w, f"{name}.norm", jnp.concatenate([latent, *extras], -1))
        x = latent + self._dense(w, f"{name}.outer", jax.nn.relu(self._dense(w, f"{name}.inner", x)))
        return self._blocks(w, f"{name}.blocks", x, 0)

    def _features(self, w: Weights, latent: Any, task: Any) -> Any:
        x = self._blocks(w, "trunk", self._with_task(w, "value_policy", task, latent), 0)
        return self._norm(w, f"trunk.{self.spec.blocks}", x)

    def _head(self, w: Weights, name: str, x: Any, head: int) -> Any:
        for layer in range(3):
            x = x @ w[f"{name}.weights.{layer}"][head].T + w[f"{name}.biases.{layer}"][head]
            x = jax.nn.relu(x) if layer < 2 else x
        return x

    def _value(self, w: Weights, features: Any) -> Any:
        each = jnp.stack([self._decode(w, self._head(w, "value_heads", features, h)) for h in self.heads])
        floor = self.spec.value_floor
        return each.min(0) if floor is None else jnp.maximum(each.min(0), floor)

    def _decode(self, w: Weights, logits: Any) -> Any:
        y = (jax.nn.softmax(logits) * w["atoms"]).sum(-1)
        slope, epsilon = 1 + 2e-3, 1e-3
        x = 2 * jnp.abs(y) / (slope + jnp.sqrt(slope**2 + 4 * epsilon * jnp.abs(y)))
        return jnp.sign(y) * x * (x + 2)


def check(model: InferenceModel, observation: torch.Tensor, task: torch.Tensor) -> float:
    """Largest difference between the two networks' outputs, relative to each output's spread.

    Args:
        model: in float32 on the CPU.
        observation: `[B, O]`. task: `[B]`.
    """
    ours, theirs = model, JaxModel(model)
    generator = torch.Generator().manual_seed(0)
    action = torch.rand(len(task), model.model.action_mask.shape[1], generator=generator) * 2 - 1
    state, value = ours.root(observation, task)
    following, reward, next_value = ours.step(state, action, task)
    policy = ours.policy(state, task)
    w, tasks = theirs.weights, task.numpy()
    latent, features, jax_value = jax.jit(theirs.root)(w, observation.numpy(), tasks)
    jax_step = jax.jit(theirs.step)(w, latent, action.numpy(), tasks)
    mean, log_std = jax.jit(theirs.policy)(w, features, tasks)
    pairs = [
        (state[:, : latent.shape[1]], latent), (value, jax_value),
        (following[:, : latent.shape[1]], jax_step[0]), (reward, jax_step[2]), (next_value, jax_step[3]),
        (policy.mean, mean), (policy.log_std, log_std),
    ]  # fmt: skip
    return max(
        float(np.abs(mine.numpy() - np.asarray(other)).max() / (mine.std() + 1e-6)) for mine, other in pairs
    )


def mctx_search(
    model: InferenceModel, experiment: Experiment, proposal: GaussianProposal
) -> Callable[[torch.Tensor, torch.Tensor], Any]:
    """`gumbel_muzero_policy`, compiled, as a function of observations `[B, O]` and tasks `[B]`.

    It returns the chosen actions `[B, A]`, ready.
    """
    ours, settings, discount = JaxModel(model), experiment.search, experiment.targets.discount
    root_scales, scales = jnp.array(proposal.root_scales), jnp.array(proposal.interior_scales)
    width, interior, size = len(root_scales), len(scales), proposal.action_size
    absent = jnp.where(jnp.arange(width) < interior, 0.0, -1e9)

    def run(w: Weights, key: Any, observation: Any, task: Any) -> Any:
        batch = len(task)
        latent, features, value = ours.root(w, observation, task)
        key, own = jax.random.split(key)
        noise = jax.random.normal(own, (batch, width, size))
        candidates = ours.actions(w, features, task, noise, root_scales)

        def recurrent(w: Weights, key: Any, index: Any, node: Any) -> tuple[Any, Any]:
            rows = jnp.arange(batch)
            below = node["own"][rows, index % interior]
            action = jnp.where(node["is_root"][:, None], candidates[rows, index], below)
            latent, features, reward, value = ours.step(w, node["latent"], action, task)
            noise = jax.random.normal(key, (batch, interior, size))
            own = ours.actions(w, features, task, noise, scales)
            output = mctx.RecurrentFnOutput(
                reward=reward,
                discount=jnp.full(batch, discount),
                prior_logits=jnp.broadcast_to(absent, (batch, width)),
                value=value,
            )
            return output, {"latent": latent, "own": own, "is_root": jnp.zeros(batch, bool)}

        root = mctx.RootFnOutput(
            prior_logits=jnp.zeros((batch, width)),
            value=value,
            embedding={
                "latent": latent,
                "own": jnp.zeros((batch, interior, size)),
                "is_root": jnp.ones(batch, bool),
            },
        )
        output = mctx.gumbel_muzero_policy(
            params=w,
            rng_key=key,
            root=root,
            recurrent_fn=recurrent,
            num_simulations=settings.num_simulations,
            max_num_considered_actions=settings.num_root_actions,
            gumbel_scale=settings.gumbel_scale,
        )
        return candidates[jnp.arange(batch), output.action]

    compiled, key = jax.jit(run), jax.random.PRNGKey(0)

    def call(observation: torch.Tensor, task: torch.Tensor) -> Any:
        return jax.block_until_ready(compiled(ours.weights, key, observation.numpy(), task.numpy()))

    return call
