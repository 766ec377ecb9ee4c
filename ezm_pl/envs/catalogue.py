"""The built-in tasks: name -> (robot, task), and what can be said of them in words."""

from __future__ import annotations

from ezm_pl.envs.robots.humanoid import Task
from ezm_pl.envs.tasks.balance import Balance, BalanceHard
from ezm_pl.envs.tasks.bookshelf import Bookshelf, BookshelfHard
from ezm_pl.envs.tasks.door import Door
from ezm_pl.envs.tasks.insert import Insert, InsertSmall
from ezm_pl.envs.tasks.locomotion import Crawl, Hurdle, Run, Slide, Stair, Stand, Walk
from ezm_pl.envs.tasks.maze import Maze
from ezm_pl.envs.tasks.pole import Pole
from ezm_pl.envs.tasks.push import Push
from ezm_pl.envs.tasks.reach import Reach
from ezm_pl.envs.tasks.sit import Sit, SitHard
from ezm_pl.envs.tasks.spoon import Spoon
from ezm_pl.envs.tasks.window import Window

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

HANDS_ONLY: dict[str, type[Task]] = {
    "sit_simple": Sit,
    "reach": Reach,
    "sit_hard": SitHard,
    "balance_simple": Balance,
    "balance_hard": BalanceHard,
    "window": Window,
    "spoon": Spoon,
    "insert_normal": Insert,
    "insert_small": InsertSmall,
    "bookshelf_simple": Bookshelf,
    "bookshelf_hard": BookshelfHard,
    "push": Push,
    "door": Door,
}

CATALOGUE: dict[str, tuple[str, type[Task]]] = {
    f"{robot}-{name}": (robot, task) for robot in ("h1", "h1hand") for name, task in LOCOMOTION.items()
} | {f"h1hand-{name}": ("h1hand", task) for name, task in HANDS_ONLY.items()}


def description(task: str) -> str:
    """One sentence on what a humanoid task asks: the first line of its class's docstring."""
    return (CATALOGUE[task][1].__doc__ or "").strip().split("\n")[0]


def family(task: str) -> str:
    """The family of a humanoid task: the name of the file that holds it."""
    return CATALOGUE[task][1].__module__.rsplit(".", 1)[-1]
