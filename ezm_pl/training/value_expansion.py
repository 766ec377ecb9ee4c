"""Value targets of the present policy, imagined by the model: `docs/algorithm.md`, "Value expansion".

Source: model-based value expansion (Feinberg et al. 2018), here without the rewards that were observed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ezm_pl.world_model import InferenceModel


def expanded_values(
    model: InferenceModel,
    observation: Tensor,
    task: Tensor,
    steps: int,
    discount: float,
    generator: torch.Generator,
) -> Tensor:
    """`sum_i discount^i r_i + discount^steps V(s_steps)` `[B]`, from observations `[B, O]` of tasks `[B]`.

    Rewards, latents and value are the model's, actions are drawn from its policy.

    Args:
        steps: imagined decisions.
        discount: of one decision.
        generator: of the policy's noise, on the model's device.
    """
    state, value = model.root(observation, task)
    total, factor = torch.zeros_like(value), 1.0
    for _ in range(steps):
        policy = model.policy(state, task)
        noise = torch.randn(policy.mean.shape, generator=generator, device=policy.mean.device)
        state, reward, value = model.step(state, policy.action(noise), task)
        total, factor = total.add(reward, alpha=factor), factor * discount
    return total.add(value, alpha=factor)
