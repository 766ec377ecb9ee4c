"""The network and the planner that `search.py` and `decide.py` measure, with random weights."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from ezm_pl.envs import sizes
from ezm_pl.search import Planner
from ezm_pl.spec import Experiment, build_experiment
from ezm_pl.spec.presets import PRESETS
from ezm_pl.world_model import InferenceModel, WorldModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--tasks`, `--preset` and `--device`."""
    parser.add_argument("--tasks", nargs="+", default=["hb-medium"], metavar="TASK", help="give the sizes")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="paper")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=torch.device, default=torch.device(default), help=f"({default})")


def experiment(args: argparse.Namespace) -> Experiment:
    """The spec that the arguments ask for."""
    return build_experiment({"name": "benchmark", "tasks": args.tasks, "preset": args.preset})


def network(spec: Experiment, dtype: torch.dtype, device: torch.device, seed: int) -> InferenceModel:
    """An inference network with random weights, also in the layers that start at zero."""
    task_sizes = sizes(spec.tasks)
    mask = torch.as_tensor(task_sizes.action_mask)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        source = WorldModel(spec.model, task_sizes.obs_size, mask).eval()
        for head in (source.reward_head, source.policy_head):
            nn.init.normal_(head.weights[2], std=0.05)
    model = InferenceModel(spec.model, task_sizes.obs_size, mask, dtype)
    model.load(source)
    return model.to(device)


def planner(spec: Experiment) -> Planner:
    """The spec's planner."""
    return Planner(spec.search, spec.targets.discount, sizes(spec.tasks).action_size)


def positions(spec: Experiment, roots: int, device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    """Random observations `[B, O]` and tasks `[B]`, every task as often as any."""
    generator = torch.Generator().manual_seed(seed)
    observation = torch.randn(roots, sizes(spec.tasks).obs_size, generator=generator)
    return observation.to(device), (torch.arange(roots) % len(spec.tasks)).to(device)
