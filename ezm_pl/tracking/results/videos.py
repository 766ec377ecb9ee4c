"""Evaluation videos: an episode of each task as MP4, where the machine can render."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import imageio.v3 as imageio
import numpy as np
from numpy.typing import NDArray

from ezm_pl.spec import as_spec_error, writing
from ezm_pl.tracking.console import say

if TYPE_CHECKING:
    from rich.console import Console

    from ezm_pl.training.from_checkpoint import Descriptions


def write_video(frames: Sequence[NDArray[np.uint8]], path: Path, *, fps: float) -> None:
    """Writes frames [H, W, 3] (even H and W) as H.264, in the format of the name; the folder is made."""
    # Not by ffmpeg itself: a disk that is full it tells at length, or, near the film's end, not at all.
    film = imageio.imwrite(
        "<bytes>",
        np.stack(frames),
        extension=path.suffix,
        plugin="FFMPEG",
        fps=fps,
        codec="libx264",
        macro_block_size=2,
    )
    assert film is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(film)


def film_random(task: str, path: Path, *, seed: int) -> None:
    """Films one episode of a uniform-random policy, `humanoidbench` protocol.

    Raises:
        SpecError: the task cannot be made, nothing can be rendered here, or `path` cannot be written.
    """
    from ezm_pl.envs import HumanoidBenchUnavailable, RenderingUnavailable, make

    with as_spec_error(HumanoidBenchUnavailable, RenderingUnavailable, ValueError):
        env = make(task, seed=seed, render_mode="rgb_array")
        try:
            env.action_space.seed(seed)
            env.reset()
            frames, over = [np.asarray(env.render())], False
            while not over:
                _, _, terminated, truncated, _ = env.step(env.action_space.sample())
                frames.append(np.asarray(env.render()))
                over = terminated or truncated
        finally:
            env.close()
    with writing(path):
        write_video(frames, path, fps=env.metadata["render_fps"])


def film_tasks(
    checkpoint: Path,
    tasks: Sequence[str],
    directory: Path,
    *,
    seed: int,
    console: Console,
    search: bool = True,
    settings: Sequence[str] = (),
    descriptions: Descriptions = None,
) -> list[Path]:
    """Films an episode of each task as `directory/<task>.mp4`. Prints a line where rendering does not work.

    Args:
        checkpoint: to load.
        tasks: of those it was trained on.
        directory: where to write.
        seed: of the episodes.
        console: where to say that rendering does not work.
        search: plan; otherwise the policy decides alone.
        settings: `search.a=b`, laid over the checkpoint's spec.
        descriptions: the first of these tells the agent its task; None: as trained.

    Returns:
        The files written.
    """
    from ezm_pl.envs import RenderingUnavailable
    from ezm_pl.envs.rendering import require
    from ezm_pl.training import film
    from ezm_pl.training.from_checkpoint import load_actor

    written: list[Path] = []
    try:
        require()
    except RenderingUnavailable as error:
        say(console, f"no videos: {error}", "yellow")
        return written
    experiment, actor, _, _ = load_actor(checkpoint, settings=settings, descriptions=descriptions)
    for task in tasks:
        try:
            frames, fps = film(experiment, actor, task, seed, search=search)
        except RenderingUnavailable as error:
            say(console, f"no video: {error}", "yellow")
            continue
        if frames:
            written.append(directory / f"{task}.mp4")
            write_video(frames, written[-1], fps=fps)
    return written
