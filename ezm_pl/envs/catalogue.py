"""The built-in tasks: name -> (robot, task)."""

from __future__ import annotations

from ezm_pl.envs.humanoid import Task
from ezm_pl.envs.locomotion import Crawl, Hurdle, Run, Slide, Stair, Stand, Walk
from ezm_pl.envs.maze import Maze
from ezm_pl.envs.pole import Pole

LOCOMOTION: dict[str, type[Task]] = {
    "stand": Stand,
    "walk": Walk,
    "run": Run,
    "stair": Stair,
    "crawl": Crawl,
    "pole": Pole,
    "slide": Slide,
    "hurdle": Hurdle,
    "maze": Maze,
}

CATALOGUE: dict[str, tuple[str, type[Task]]] = {
    f"h1-{name}": ("h1", task) for name, task in LOCOMOTION.items()
}
