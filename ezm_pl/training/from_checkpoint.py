"""What a checkpoint can do once trained: decide, play evaluation episodes, be filmed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ezm_pl.envs import sizes
from ezm_pl.selfplay import Actor
from ezm_pl.spec import Experiment
from ezm_pl.training.agents import how_to_act, new_module
from ezm_pl.training.evaluation import Evaluation, evaluation_envs, play_episodes, rollout
from ezm_pl.training.fault_tolerance.checkpoint import checkpoint_experiment, read_checkpoint

FILM_SECONDS = 8
"""Of simulated time: drawing without a GPU is slower than planning."""


def load_actor(
    checkpoint: Path, *, dtype: Literal["float32"] | None = None
) -> tuple[Experiment, Actor, int, int]:
    """The network of a checkpoint that acts.

    Args:
        checkpoint: to load.
        dtype: of its weights and of its search; None: as its spec says.

    Returns:
        Its spec, its network on the best device, its updates and its control steps per task.

    Raises:
        CheckpointError: see `checkpoint_experiment`.
    """
    experiment = checkpoint_experiment(checkpoint)
    if dtype is not None:
        search = experiment.search.model_copy(update={"dtype": dtype})
        experiment = experiment.model_copy(update={"search": search})
    contents = read_checkpoint(checkpoint)
    module = new_module(experiment, sizes(experiment.tasks))
    module.load_state_dict(contents["state_dict"])
    module.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    steps = contents["SelfPlayDataModule"]["control_steps"]
    return experiment, module.trained_actor(), int(contents["global_step"]), int(steps.float().mean())


def evaluate(
    checkpoint: Path,
    *,
    episodes: int,
    seed: int,
    choice: Literal["best", "random"] | None = None,
    search: bool = True,
) -> Evaluation:
    """Plays evaluation episodes with a checkpoint.

    Args:
        checkpoint: to load.
        episodes: per task.
        seed: of the episodes.
        choice: overrides what EZ-M's search does with its candidates; None as trained.
        search: plan, where the agent can; otherwise the policy decides alone.
    """
    experiment, actor, updates, env_steps = load_actor(checkpoint)
    if choice is not None:
        experiment = experiment.model_copy(
            update={"search": experiment.search.model_copy(update={"choice": choice})}
        )
    envs = evaluation_envs(experiment, episodes)
    try:
        ezm, humanoidbench = play_episodes(
            envs,
            actor,
            how_to_act(experiment, search=search),
            seed=seed,
            heads=torch.Generator().manual_seed(seed),
        )
    finally:
        envs.close()
    protocol = experiment.env.protocol
    bounds = experiment.score_bounds
    return Evaluation(experiment.tasks, updates, env_steps, ezm, humanoidbench, protocol, search, bounds)


def film(
    checkpoint: Path, task: str, seed: int, *, search: bool = True
) -> tuple[list[NDArray[np.uint8]], float]:
    """Films the first `FILM_SECONDS` of an evaluation episode of a task.

    Args:
        checkpoint: to load.
        task: one that it was trained on.
        seed: of the episode.
        search: plan, where the agent can; otherwise the policy decides alone.

    Returns:
        RGB frames `[H, W, 3]`, one per decision, and their rate in frames per second of simulated time.

    Raises:
        RenderingUnavailable: this system cannot render.
        ValueError: the checkpoint was not trained on `task`.
    """
    experiment, actor, _, _ = load_actor(checkpoint)
    if task not in experiment.tasks:
        raise ValueError(f"{checkpoint}: was not trained on {task!r}, but on {', '.join(experiment.tasks)}")
    index = experiment.tasks.index(task)
    envs = evaluation_envs(experiment, 1, tasks=[index], render_mode="rgb_array")
    act = how_to_act(experiment, search=search)
    frames: list[NDArray[np.uint8]] = []
    try:
        rate = envs.metadata["render_fps"] / experiment.env.action_repeat
        heads = torch.Generator().manual_seed(seed)
        for step in rollout(envs, actor, act, seed=seed, heads=heads, tasks=[index]):
            frames += envs.render()
            if step.ended.all() or len(frames) >= FILM_SECONDS * rate:
                break
        return frames, rate
    finally:
        envs.close()
