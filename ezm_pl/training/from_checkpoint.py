"""What a checkpoint can do once trained: decide, play evaluation episodes, be filmed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ezm_pl.envs import TaskSizes, sizes
from ezm_pl.replay import ReplayBuffer, ReplayError, ReplayStore
from ezm_pl.selfplay import Actor
from ezm_pl.spec import Experiment, SpecError
from ezm_pl.spec.io import with_settings
from ezm_pl.training.agent_module import AgentModule
from ezm_pl.training.agents import how_to_act, new_module
from ezm_pl.training.data import SelfPlayDataModule
from ezm_pl.training.evaluation import Evaluation, evaluation_envs, play_episodes
from ezm_pl.training.fault_tolerance.checkpoint import (
    CheckpointError,
    experiment_of,
    read_checkpoint,
    replay_beside,
    shard,
)
from ezm_pl.training.memory import MemoryRefused
from ezm_pl.training.module import EZMModule
from ezm_pl.training.playing import play
from ezm_pl.training.ranks import Ranks
from ezm_pl.world_model.language import DescribedTasks

log = logging.getLogger(__name__)

FILM_SECONDS = 8
"""Of simulated time: drawing without a GPU is slower than planning."""


def sizes_of(experiment: Experiment, checkpoint: Path) -> TaskSizes:
    """Sizes of the tasks of a checkpoint's experiment.

    Raises:
        CheckpointError: one of them cannot be made here.
    """
    try:
        return sizes(experiment.tasks)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint}: {error}") from None


def load_module(
    checkpoint: Path, *, settings: Sequence[str] = ()
) -> tuple[Experiment, AgentModule, int, int]:
    """The module of a checkpoint, with all copies of its network.

    Args:
        checkpoint: to load.
        settings: `search.a=b`, laid over its spec.

    Returns:
        Its spec, the module on the best device, its updates and its control steps per task.

    Raises:
        CheckpointError: see `checkpoint_experiment`; a task that cannot be made here.
        SpecError: a setting that is not valid, or not of the search.
    """
    contents = read_checkpoint(checkpoint)
    experiment = with_settings(experiment_of(contents, checkpoint), settings, section="search")
    module = new_module(experiment, sizes_of(experiment, checkpoint))
    module.load_state_dict(contents["state_dict"])
    module.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    steps = contents["SelfPlayDataModule"]["control_steps"]
    return experiment, module, int(contents["global_step"]), int(steps.float().mean())


Descriptions = Literal["training", "held-out"] | None
"""Sentences that tell an agent its tasks; None: as it was trained."""


def load_actor(
    checkpoint: Path, *, settings: Sequence[str] = (), descriptions: Descriptions = None
) -> tuple[Experiment, Actor, int, int]:
    """The network of a checkpoint that acts, told its tasks by the first of `descriptions`.

    Arguments, results and errors else as of `load_module`, with the network in place of the module.
    """
    experiment, module, updates, env_steps = load_module(checkpoint, settings=settings)
    return experiment, next(_actors(module, descriptions)), updates, env_steps


def _actors(module: AgentModule, descriptions: Descriptions) -> Iterator[Actor]:
    """What acts, once for each of the descriptions; `SpecError` where there are none."""
    if descriptions is None:
        yield module.trained_actor()
        return
    named, described = described_tasks(module, f"--descriptions {descriptions}")
    tables = list(described.tables(descriptions))
    if not tables:
        raise SpecError(f"--descriptions {descriptions}: not every task has some")
    yield from map(named.trained_actor, tables)


def described_tasks(module: AgentModule, option: str) -> tuple[EZMModule, DescribedTasks]:
    """The module and the descriptions of an agent that knows its tasks by words.

    Raises:
        SpecError: it knows them by their ids; `option` needs words.
    """
    if not isinstance(module, EZMModule) or (described := module.smoothed.described) is None:
        raise SpecError(f"{option} needs an agent that was trained with model.task_conditioning: text")
    return module, described


def evaluate(
    checkpoint: Path,
    *,
    episodes: int,
    seed: int,
    settings: Sequence[str] = (),
    search: bool = True,
    descriptions: Descriptions = None,
) -> Evaluation:
    """Plays evaluation episodes with a checkpoint.

    Args:
        checkpoint: to load.
        episodes: per task, and per description where `descriptions` names some.
        seed: of the episodes.
        settings: `search.a=b`, laid over its spec.
        search: plan, where the agent can; otherwise the policy decides alone.
        descriptions: the sentences that tell the agent its task, one after the other; None: as trained.

    Raises:
        SpecError: see `load_module`; the agent knows its tasks by their ids; a task has no such descriptions.
    """
    experiment, module, updates, env_steps = load_module(checkpoint, settings=settings)
    actors = list(_actors(module, descriptions))
    envs = evaluation_envs(experiment, episodes)
    act = how_to_act(experiment, search=search)
    try:
        played = [
            play_episodes(envs, actor, act, seed=seed, heads=torch.Generator().manual_seed(seed))
            for actor in actors
        ]
    finally:
        envs.close()
    returns = [np.concatenate(each, 1) for each in zip(*played, strict=True)]
    return Evaluation.of(experiment, updates, env_steps, returns, searched=search)


def film(
    experiment: Experiment, actor: Actor, task: str, seed: int, *, search: bool = True
) -> tuple[list[NDArray[np.uint8]], float]:
    """The first `FILM_SECONDS` of an evaluation episode of a task.

    Args:
        experiment, actor: from `load_actor`.
        task: one that it was trained on.
        seed: of the episode.
        search: plan, where the agent can; otherwise the policy decides alone.

    Returns:
        RGB frames `[H, W, 3]`, one per decision that did not end the episode, and their rate per second of
        simulated time.

    Raises:
        RenderingUnavailable: this system cannot render.
    """
    frames: list[NDArray[np.uint8]] = []
    rate = 1.0
    with closing(play(experiment, actor, task, seed=seed, search=search)) as episode:
        for moment in episode:
            frames.append(moment.frame)
            rate = len(frames) / moment.seconds
            if moment.seconds >= FILM_SECONDS:
                break
    return frames, rate


def load_replay(experiment: Experiment, checkpoint: Path) -> ReplayBuffer | None:
    """The replay beside a checkpoint (rank 0's part), saved with it or with the run's last checkpoint.

    None where there is none, or none that can be used: the log says why.
    """
    try:
        saved = replay_beside(checkpoint)
        if saved is None:
            return None
        name, ranks = saved
        data = SelfPlayDataModule(experiment, sizes(experiment.tasks), Ranks(0, ranks))
        ReplayStore(data.buffer, shard(checkpoint, 0)).load(name)
        if not data.buffer.ready:
            raise ReplayError(f"{checkpoint}: a task has no complete window in it")
        return data.buffer
    except (CheckpointError, ReplayError, MemoryRefused) as error:
        log.warning("the replay is left out: %s", error)
        return None
