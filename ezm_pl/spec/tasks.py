"""The task table: names, order, sizes and published scores. Pure data, so that specs can check names.

Sources: HumanoidBench (Sferrazza et al., arXiv 2403.10506) for random and success scores; EZ-M
(Liu et al., arXiv 2603.01452) and BRC (Nauman et al. 2025) for final returns.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from dataclasses import dataclass


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
        random_score: published return of a uniform-random policy.
        success_score: the benchmark's success bar, a return.
        ezm_return: EZ-M's published final return (mean, std over 3 seeds), `ezm` protocol, or None.
        ezm_million_steps: environment steps a task (millions) behind `ezm_return`, or None.
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

    def normalized(self, episode_return: float) -> float:
        """(return - random) / (success - random): 0 is a random policy, 1 the success bar."""
        return (episode_return - self.random_score) / (self.success_score - self.random_score)


_HAND = ("h1hand", 61)
_BARE = ("h1", 19)


def _rows() -> Iterable[TaskFacts]:
    hand: list[tuple] = [
        ("stand", 151, 76, 75, 1000, 12.0, 800, (888, 3), (917, 33)),
        ("walk", 151, 76, 75, 1000, 2.5, 700, (890, 40), (943, 1)),
        ("run", 151, 76, 75, 1000, 1.9, 700, (818, 83), (782, 78)),
        ("pole", 151, 76, 75, 1000, 19.7, 700, (874, 42), (792, 42)),
        ("slide", 151, 76, 75, 1000, 3.1, 700, (626, 90), (804, 63)),
        ("hurdle", 151, 76, 75, 1000, 2.4, 700, (430, 64), (171, 10)),
        ("sit_simple", 151, 76, 75, 1000, 10.8, 750, (828, 41), (824, 72)),
        ("reach", 157, 76, 75, 1000, -50.0, 12000, (4685, 152), (4975, 652)),
        ("crawl", 151, 76, 75, 1000, 278.9, 800, (663, 102), (935, 35)),
        ("stair", 151, 76, 75, 1000, 3.2, 700, (423, 60), (111, 36)),
        ("maze", 151, 76, 75, 1000, 106.2, 1200, (377, 4), (326, 28)),
        ("sit_hard", 164, 83, 81, 1000, 2.5, 750, (356, 28), (668, 154)),
        ("balance_simple", 164, 83, 81, 1000, 10.2, 800, (212, 19), (136, 17)),
        ("balance_hard", 177, 90, 87, 1000, 10.0, 800, (156, 25), (81, 7)),
        ("window", 171, 87, 84, 1000, 2.7, 650, None, (151, 57)),
        ("spoon", 167, 83, 81, 1000, 4.7, 650, None, (344, 27)),
        ("insert_normal", 190, 97, 93, 500, 1.7, 350, None, (192, 10)),
        ("insert_small", 190, 97, 93, 500, 1.7, 350, None, (175, 23)),
        ("bookshelf_simple", 308, 160, 147, 1000, 16.8, 2000, None, (828, 12)),
        ("bookshelf_hard", 308, 160, 147, 1000, 14.8, 2000, None, (639, 81)),
    ]
    bare: list[tuple] = [
        ("stand", 10.5, 800, (772, 4), (799, 25)),
        ("walk", 2.4, 700, (801, 3), (840, 6)),
        ("run", 2.0, 700, (771, 7), (745, 32)),
        ("stair", 3.1, 700, (430, 31), (399, 121)),
        ("crawl", 272.7, 700, (821, 124), (938, 14)),
        ("pole", 20.1, 700, (864, 13), (871, 47)),
        ("slide", 3.2, 700, (541, 110), (815, 16)),
        ("hurdle", 2.2, 700, (474, 47), (212, 34)),
        ("maze", 106.4, 1200, (377, 3), (335, 16)),
    ]
    objects: list[tuple] = [
        ("push", 163, 83, 81, 500, -278, 700),
        ("door", 155, 78, 77, 1000, 5.6, 600),
    ]
    for task, obs, nq, nv, steps, random, success, ezm, brc in hand:
        yield TaskFacts(f"h1hand-{task}", obs, 61, nq, nv, steps, random, success, ezm, ezm and 1.28, brc)
    for task, random, success, ezm, brc in bare:
        yield TaskFacts(f"h1-{task}", 51, 19, 26, 25, 1000, random, success, ezm, 0.84, brc)
    for task, obs, nq, nv, steps, random, success in objects:
        yield TaskFacts(f"h1hand-{task}", obs, 61, nq, nv, steps, random, success)


HUMANOID_BENCH: dict[str, TaskFacts] = {facts.name: facts for facts in _rows()}
"""The 29 tasks in canonical order: `hb-N` is the first N."""

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
"""dm_control suite tasks that the `dmc-<domain>-<task>` door opens (`suite.BENCHMARKING` and kin)."""

_names = tuple(HUMANOID_BENCH)
BUILTIN: tuple[str, ...] = (*_names, *DMC)
"""Names that the built-in backend can make today."""

SUITES: dict[str, tuple[str, ...]] = {
    "hb-medium": _names[20:],
    "hb-hard": _names[:14],
    "hb-hard-20": _names[:20],
    **{f"hb-{n}": _names[:n] for n in range(1, len(_names) + 1)},
}
"""Suite name to task names, in canonical order."""


def task_facts(task: str) -> TaskFacts | None:
    """What is known of a humanoid task, built in or registered; None for any other.

    A name `<module>:<name>` imports the module, which is to register it (as in gymnasium).

    Raises:
        ValueError: the module cannot be imported, or registers no such task; in one line.
    """
    module, colon, _ = task.rpartition(":")
    if colon and task not in REGISTERED:
        try:
            importlib.import_module(module)
        except Exception as error:  # somebody else's module: anything may be wrong with it
            raise ValueError(f"task {task!r}: module {module!r} does not import: {error!r}") from error
        if task not in REGISTERED:
            raise ValueError(f"{module!r} registers no task {task!r}{nearest(task, REGISTERED)}")
    return HUMANOID_BENCH.get(task) or REGISTERED.get(task)


def normalized_score(task: str, episode_return: float) -> float:
    """Normalised score of a task's return; dm_control tasks score `return / 1000` (their maximum)."""
    facts = task_facts(task)
    return episode_return / DMC_EPISODE_STEPS if facts is None else facts.normalized(episode_return)


def nearest(name: str, choices: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the choice nearest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def resolve_tasks(tasks: str | Iterable[str]) -> tuple[str, ...]:
    """Task names behind a suite name or a list of names.

    Args:
        tasks: a suite (`hb-medium`), a task, or names of either, in the order wanted. A task of one's
            own is `<module>:<name>`.

    Returns:
        Task names, without repeats.

    Raises:
        ValueError: an unknown name (with the nearest one), an empty list, or a task named twice.
    """
    names: list[str] = []
    for name in [tasks] if isinstance(tasks, str) else tasks:
        if name in SUITES:
            names.extend(SUITES[name])
        elif name in DMC or task_facts(name) is not None:
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
