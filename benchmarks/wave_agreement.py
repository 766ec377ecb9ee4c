"""How far the wave search is from the sequential one on a trained model.

    python benchmarks/wave_agreement.py CHECKPOINT [--roots 256]

Positions come from episodes that the checkpoint's own planner plays. Both searches get the same
candidates and the same noise, so every difference comes from the order of expansion.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ezm_pl.envs import sizes
from ezm_pl.search import Planner, search
from ezm_pl.training.evaluation import evaluation_envs
from ezm_pl.training.from_checkpoint import load_actor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--roots", type=int, default=256, help="positions to compare")
    args = parser.parse_args()

    experiment, model, _, _ = load_actor(args.checkpoint)
    planner = Planner(experiment.search, experiment.targets.discount, sizes(experiment.tasks).action_size)
    envs = evaluation_envs(experiment, episodes=2)
    generator = torch.Generator().manual_seed(0)
    task = torch.as_tensor(envs.task_ids)
    observation, _ = envs.reset(seed=0)
    found = []
    while len(found) * len(task) < args.roots:
        for _ in range(10):
            action = planner(model, torch.as_tensor(observation), task, generator).action
            observation = envs.step(action.numpy())[0]
        found.append(observation.copy())
    envs.close()
    positions = torch.as_tensor(np.concatenate(found))
    tasks = task.repeat(len(found))

    results = {
        wave: search(
            model,
            planner.proposal,
            positions,
            tasks,
            replace(planner.settings, wave=wave),
            torch.Generator().manual_seed(1),
        )
        for wave in (None, 1)
    }
    waves, sequential = results[None], results[1]
    gap = (waves.value - sequential.value).abs()
    print(f"positions                      {len(positions)}")
    print(f"equal choices                  {(waves.best == sequential.best).float().mean():.1%}")
    print(f"equal visit counts             {(waves.visits == sequential.visits).all(1).float().mean():.1%}")
    print(f"mean |value difference|        {gap.mean():.4f} (largest {gap.max():.4f})")
    print(f"mean |value|                   {sequential.value.abs().mean():.2f}")
    print(f"mean |Q difference|            {(waves.q - sequential.q).abs().mean():.4f}")


if __name__ == "__main__":
    main()
