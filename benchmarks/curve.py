"""Losses of the laptop network's first updates on random batches, with searches as CUDA graphs or without.

    .venv/bin/python benchmarks/curve.py --out graph.json
    .venv/bin/python benchmarks/curve.py --eager --out eager.json
    .venv/bin/python benchmarks/curve.py --compare eager.json graph.json

Each update is reanalysis, losses, gradients, clipping and Adam, on the same batches in both. Differences
begin at rounding and grow, as those of two runs do whose weights differ in the last digit.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from ezm_pl.envs import TaskSizes, sizes
from ezm_pl.spec import Experiment, build_experiment
from ezm_pl.training.batch import Batch
from ezm_pl.training.module import EZMModule


def random_batch(experiment: Experiment, of: TaskSizes, seed: int, device: torch.device) -> Batch:
    """Windows of noise, none of which ends."""
    generator = torch.Generator().manual_seed(seed)
    size, steps = 32, experiment.targets.unroll_steps + experiment.targets.td_steps
    task = torch.arange(size) % len(experiment.tasks)
    observation = torch.randn(size, steps + 1, of.obs_size, generator=generator)
    shape = (size, experiment.targets.unroll_steps, of.action_size)
    whole = torch.zeros(size, dtype=torch.long)
    batch = Batch(
        task=task,
        observation=observation
        * (torch.arange(of.obs_size) < torch.as_tensor(of.obs_sizes)[task].view(-1, 1, 1)),
        action=(torch.rand(shape, generator=generator) * 2 - 1)
        * torch.as_tensor(of.action_mask)[task].unsqueeze(1),
        reward=torch.rand(size, steps, generator=generator),
        length=whole + steps,
        terminated=whole.bool(),
        return_scale=torch.ones(size),
        weight=torch.ones(size),
        age=whole,
        replay_index=whole,
        transition_id=whole,
    )
    return Batch(*(x.to(device) for x in batch))


def losses(updates: int, seconds: float, eager: bool) -> list[float]:
    """The total loss of each update, as many as fit into `seconds`."""
    document = {"name": "curve", "preset": "laptop", "tasks": ["h1-stand", "h1-walk"]}
    experiment = build_experiment(document | {"search": {"compiled": False, "dtype": "float32"}})
    of, device = sizes(experiment.tasks), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = EZMModule(experiment, of).to(device).train()
    if eager:
        module.planner._graphed._fails = True
    parameters = list(module.model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=experiment.optim.learning_rate, fused=True)
    found, end = [], time.perf_counter() + seconds
    for update in range(updates):
        batch = random_batch(experiment, of, update, device)
        total = module.losses(batch, module.reanalyse(batch, update)).total
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, experiment.optim.max_grad_norm)
        optimizer.step()
        if update % experiment.optim.refresh_every == 0:
            module.target.load(module.model)
        found.append(float(total.detach()))
        if time.perf_counter() > end:
            break
    return found


def compare(one: list[float], other: list[float]) -> None:
    """Prints how far apart two curves are, relative to the first."""
    count = min(len(one), len(other))
    apart = np.abs(np.array(one[:count]) - other[:count]) / np.abs(one[:count])
    for update in sorted({*range(0, min(count, 5)), *range(9, count, 10), count - 1}):
        print(f"update {update + 1}: {one[update]:.6f} {other[update]:.6f}, apart by {apart[update]:.1e}")


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    arguments.add_argument("--updates", type=int, default=200)
    arguments.add_argument(
        "--seconds", type=float, default=60.0, help="ends sooner after so long (default: 60)"
    )
    arguments.add_argument("--eager", action="store_true", help="no CUDA graphs")
    arguments.add_argument("--out", type=Path, metavar="FILE", help="write the losses here")
    arguments.add_argument("--compare", type=Path, nargs=2, metavar="FILE", help="of two curves instead")
    args = arguments.parse_args()
    if args.compare:
        compare(*(json.loads(path.read_text(encoding="utf-8")) for path in args.compare))
        return
    found = losses(args.updates, args.seconds, args.eager)
    print(f"{len(found)} updates, loss {found[0]:.6f} to {found[-1]:.6f}")
    if args.out:
        args.out.write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
