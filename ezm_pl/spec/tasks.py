"""The task table: names, order, sizes and published scores. Pure data, so that specs can check names.

Sources: HumanoidBench (Sferrazza et al., arXiv 2403.10506) for random and success scores; EZ-M
(Liu et al., arXiv 2603.01452) and BRC (Nauman et al. 2025) for final returns.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

from ezm_pl.spec.errors import SpecError, nearest


@dataclass(frozen=True)
class TaskFacts:
    """What is known of a HumanoidBench task without building it.

    Attributes:
        name: `<robot>-<task>`.
        obs_size: length of the observation vector.
        action_size: number of actuators.
        nq: number of generalised positions.
        nv: number of degrees of freedom.
        episode_steps: control steps (20 ms) of a full episode.
        random_score: return of a uniform-random policy, published, or measured (`RANDOM_ERRORS`).
        success_score: the benchmark's success bar, a return.
        ezm_return: EZ-M's published final return (mean, std over 3 seeds), `ezm` protocol, or None.
        ezm_million_steps: environment steps per task (millions) behind `ezm_return`, or None.
        brc_return: BRC's published final return (mean, std over 5 seeds), `humanoidbench` protocol, or None.
    """

    name: str
    obs_size: int
    action_size: int
    nq: int
    nv: int
    episode_steps: int
    random_score: float
    success_score: float
    ezm_return: tuple[float, float] | None = None
    ezm_million_steps: float | None = None
    brc_return: tuple[float, float] | None = None


ACTUATORS = {"h1": 19, "h1hand": 61, "h1strong": 61}
"""Actuators of each robot. `h1` has no hands, `h1hand` two Shadow Hands, `h1strong` stronger ones."""
EZM_MILLION_STEPS = {"h1": 0.84, "h1hand": 1.28}
"""Environment steps per task (millions) behind EZ-M's returns."""

_TABLE: tuple[tuple, ...] = (
    # task, observation, nq, nv, steps, random, success, EZ-M, BRC
    ("h1hand-stand", 151, 76, 75, 1000, 12.0, 800, (888, 3), (917, 33)),
    ("h1hand-walk", 151, 76, 75, 1000, 2.5, 700, (890, 40), (943, 1)),
    ("h1hand-run", 151, 76, 75, 1000, 1.9, 700, (818, 83), (782, 78)),
    ("h1hand-pole", 151, 76, 75, 1000, 19.7, 700, (874, 42), (792, 42)),
    ("h1hand-slide", 151, 76, 75, 1000, 3.1, 700, (626, 90), (804, 63)),
    ("h1hand-hurdle", 151, 76, 75, 1000, 2.4, 700, (430, 64), (171, 10)),
    ("h1hand-sit_simple", 151, 76, 75, 1000, 10.8, 750, (828, 41), (824, 72)),
    ("h1hand-reach", 157, 76, 75, 1000, -50.0, 12000, (4685, 152), (4975, 652)),
    ("h1hand-crawl", 151, 76, 75, 1000, 278.9, 800, (663, 102), (935, 35)),
    ("h1hand-stair", 151, 76, 75, 1000, 3.2, 700, (423, 60), (111, 36)),
    ("h1hand-maze", 151, 76, 75, 1000, 106.2, 1200, (377, 4), (326, 28)),
    ("h1hand-sit_hard", 164, 83, 81, 1000, 2.5, 750, (356, 28), (668, 154)),
    ("h1hand-balance_simple", 164, 83, 81, 1000, 10.2, 800, (212, 19), (136, 17)),
    ("h1hand-balance_hard", 177, 90, 87, 1000, 10.0, 800, (156, 25), (81, 7)),
    ("h1hand-window", 171, 87, 84, 1000, 2.7, 650, None, (151, 57)),
    ("h1hand-spoon", 167, 83, 81, 1000, 4.7, 650, None, (344, 27)),
    ("h1hand-insert_normal", 190, 97, 93, 500, 1.7, 350, None, (192, 10)),
    ("h1hand-insert_small", 190, 97, 93, 500, 1.7, 350, None, (175, 23)),
    ("h1hand-bookshelf_simple", 308, 160, 147, 1000, 16.8, 2000, None, (828, 12)),
    ("h1hand-bookshelf_hard", 308, 160, 147, 1000, 14.8, 2000, None, (639, 81)),
    ("h1-stand", 51, 26, 25, 1000, 10.5, 800, (772, 4), (799, 25)),
    ("h1-walk", 51, 26, 25, 1000, 2.4, 700, (801, 3), (840, 6)),
    ("h1-run", 51, 26, 25, 1000, 2.0, 700, (771, 7), (745, 32)),
    ("h1-stair", 51, 26, 25, 1000, 3.1, 700, (430, 31), (399, 121)),
    ("h1-crawl", 51, 26, 25, 1000, 272.7, 700, (821, 124), (938, 14)),
    ("h1-pole", 51, 26, 25, 1000, 20.1, 700, (864, 13), (871, 47)),
    ("h1-slide", 51, 26, 25, 1000, 3.2, 700, (541, 110), (815, 16)),
    ("h1-hurdle", 51, 26, 25, 1000, 2.2, 700, (474, 47), (212, 34)),
    ("h1-maze", 51, 26, 25, 1000, 106.4, 1200, (377, 3), (335, 16)),
    ("h1-reach", 57, 26, 25, 1000, 260.3, 12000, None, None),
    ("h1-sit_simple", 51, 26, 25, 1000, 9.4, 750, None, None),
    ("h1-sit_hard", 64, 33, 31, 1000, 2.4, 750, None, None),
    ("h1-balance_simple", 64, 33, 31, 1000, 9.4, 800, None, None),
    ("h1-balance_hard", 77, 40, 37, 1000, 9.0, 800, None, None),
    ("h1hand-push", 163, 83, 81, 500, -278.0, 700, None, None),
    ("h1hand-cabinet", 213, 109, 104, 1000, 29.4, 2500, None, None),
    ("h1hand-door", 155, 78, 77, 1000, 5.6, 600, None, None),
    ("h1hand-truck", 216, 111, 105, 1000, 550.0, 3000, None, None),
    ("h1hand-cube", 181, 90, 87, 500, 5.4, 370, None, None),
    ("h1hand-basketball", 164, 83, 81, 500, 10.6, 1200, None, None),
    ("h1hand-package", 173, 83, 81, 1000, -8576.0, 1500, None, None),
    ("h1hand-powerlift", 164, 83, 81, 1000, 22.4, 800, None, None),
    ("h1hand-room", 229, 118, 111, 1000, 4.91, 400, None, None),
    ("h1hand-kitchen", 97, 97, 95, 500, 0.0, 4, None, None),
    ("h1-highbar_simple", 51, 26, 25, 1000, 6.84, 750, None, None),
    ("h1strong-highbar_hard", 151, 76, 75, 1000, 0.0588, 750, None, None),
)


def _rows() -> Iterable[TaskFacts]:
    for name, obs, nq, nv, steps, random, success, ezm, brc in _TABLE:
        robot = name.split("-")[0]
        budget = EZM_MILLION_STEPS[robot] if ezm else None
        yield TaskFacts(name, obs, ACTUATORS[robot], nq, nv, steps, random, success, ezm, budget, brc)


HUMANOID_BENCH: dict[str, TaskFacts] = {facts.name: facts for facts in _rows()}
"""HumanoidBench's tasks in canonical order.

A new one takes a row in `_TABLE` and a class with that name in `ezm_pl/envs/tasks/`.
"""

RANDOM_ERRORS: dict[str, float] = {
    "h1hand-push": 25.5,
    "h1hand-cabinet": 7.06,
    "h1hand-door": 0.868,
    "h1hand-truck": 9.08,
    "h1hand-cube": 0.107,
    "h1hand-basketball": 0.565,
    "h1hand-package": 648,
    "h1hand-powerlift": 2.26,
    "h1hand-room": 0.545,
    "h1hand-kitchen": 0.0,
    "h1-highbar_simple": 0.37,
    "h1strong-highbar_hard": 0.0103,
}
"""Standard error of `random_score`, where that was measured on the original package (20 to 100 episodes)."""

REGISTERED: dict[str, TaskFacts] = {}
"""Tasks of one's own, `<module>:<name>`, entered by `ezm_pl.envs.register` when the module is imported."""

DMC_EPISODE_STEPS = 1000
"""Control steps of a dm_control suite episode; a perfect return is 1000."""

_DMC_NAMES = """
    acrobot-swingup acrobot-swingup_sparse ball_in_cup-catch cartpole-balance cartpole-balance_sparse
    cartpole-swingup cartpole-swingup_sparse cheetah-run finger-spin finger-turn_easy finger-turn_hard
    fish-swim fish-upright hopper-hop hopper-stand humanoid-run humanoid-stand humanoid-walk
    pendulum-swingup point_mass-easy quadruped-run quadruped-walk reacher-easy reacher-hard
    swimmer-swimmer15 swimmer-swimmer6 walker-run walker-stand walker-walk
"""

DMC: tuple[str, ...] = tuple(f"dmc-{name}" for name in _DMC_NAMES.split())
"""Tasks of dm_control's suite, as `dmc-<domain>-<task>`: most of `suite.BENCHMARKING` and a few more."""

GYM = "gym:"
"""Prefix of a Gymnasium environment's id, as in `gym:Humanoid-v5`, checked when the environment is made."""

_names = tuple(HUMANOID_BENCH)
LOCOMOTION = {
    *("stand", "walk", "run", "reach", "hurdle", "crawl", "maze", "stair", "slide", "pole"),
    *("sit_simple", "sit_hard", "balance_simple", "balance_hard"),
}
"""What HumanoidBench counts as locomotion; the rest is manipulation."""

_locomotion = tuple(name for name in _names if name.split("-")[1] in LOCOMOTION)

SUITES: dict[str, tuple[str, ...]] = {
    "hb-medium": _names[20:29],
    "hb-hard": _names[:14],
    "hb-hard-20": _names[:20],
    **{f"hb-{n}": _names[:n] for n in range(1, len(_names) + 1)},
    "hb-14": _names[20:34],
    "hb-all": _names,
    "hb-locomotion": _locomotion,
    "hb-manipulation": tuple(name for name in _names if name not in _locomotion),
}
"""Suite name to task names, in canonical order.

`hb-N` is the first N tasks, except `hb-14`: the field's suite of 14 H1 tasks without hands. The first 14
are `hb-hard`.
"""


def first_tasks(count: int) -> tuple[str, ...]:
    """The first `count` tasks of HumanoidBench in canonical order.

    Raises:
        ValueError: there are not so many.
    """
    if not 1 <= count <= len(_names):
        raise ValueError(f"a number of tasks from 1 to {len(_names)} expected, got {count}")
    return _names[:count]


def task_facts(task: str) -> TaskFacts | None:
    """What is known of a humanoid task, built in or registered; None for any other.

    A name `<module>:<name>` imports the module, which is to register it (as in gymnasium).

    Raises:
        SpecError: the module cannot be imported, or registers no such task.
    """
    module, colon, _ = task.rpartition(":")
    if task.startswith(GYM):
        return None
    if colon and task not in REGISTERED:
        try:
            importlib.import_module(module)
        except Exception as error:  # somebody else's module: anything may be wrong with it
            raise SpecError(f"task {task!r}: module {module!r} does not import: {error!r}") from error
        if task not in REGISTERED:
            raise SpecError(f"{module!r} registers no task {task!r}{nearest(task, REGISTERED)}")
    return HUMANOID_BENCH.get(task) or REGISTERED.get(task)


def doubtful_tasks(tasks: Iterable[str], backend: str) -> tuple[str, ...]:
    """The tasks of which only an attempt (`ezm_pl.envs.check_tasks`) can tell whether they work here."""
    return tuple(task for task in tasks if backend == "humanoid_bench" or task not in (*_names, *DMC))


def score_bounds(task: str) -> tuple[float, float] | None:
    """The returns that count as a normalised score of 0 and of 1.

    For dm_control's tasks these are 0 and 1000, their maximum. None for a Gymnasium environment, whose
    bounds only a spec can say (`tasks_meta`).
    """
    facts = task_facts(task)
    if facts is not None:
        return facts.random_score, facts.success_score
    return None if task.startswith(GYM) else (0.0, float(DMC_EPISODE_STEPS))


def normalized_score(task: str, episode_return: float, bounds: tuple[float, float] | None = None) -> float:
    """Normalised score of a task's return; NaN for a task without bounds.

    Args:
        task: its name. episode_return: the return.
        bounds: what counts as 0 and 1 in place of `score_bounds`.
    """
    low, high = bounds or score_bounds(task) or (math.nan, math.nan)
    return (episode_return - low) / (high - low)


def resolve_tasks(tasks: str | Iterable[str]) -> tuple[str, ...]:
    """Task names behind a suite name or a list of names.

    Args:
        tasks: a suite (`hb-medium`), a task, or names of either, in the order wanted. A task of one's
            own is `<module>:<name>`, a Gymnasium environment `gym:<id>`.

    Returns:
        Task names, without repeats.

    Raises:
        ValueError: an unknown name (with the nearest one), an empty list, or a task named twice.
    """
    names: list[str] = []
    for name in [tasks] if isinstance(tasks, str) else tasks:
        if name in SUITES:
            names.extend(SUITES[name])
        elif name in DMC or name.startswith(GYM) or task_facts(name) is not None:
            names.append(name)
        else:
            hint = "; write several as [a, b]" if "," in name else ""
            hint = hint or nearest(name, (*HUMANOID_BENCH, *DMC, *SUITES))
            raise ValueError(f"unknown task {name!r}{hint}")
    if not names:
        raise ValueError("no tasks given; name a suite such as 'hb-medium' or a list of tasks")
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ValueError(f"listed twice: {', '.join(twice)}")
    return tuple(names)
