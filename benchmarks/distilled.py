"""A distilled policy beside the planner and the policy head: latency on one core, share of the return kept.

    .venv/bin/python benchmarks/distilled.py [STUDENT] [--seconds 20] [--episodes 8] [--json FILE]

STUDENT is a distilled run (`ezm distill`); its teacher's checkpoint must lie where it was. Every way to
decide gets the same observations, which the student visits, turn about: from an array in memory to an
action in memory. The student is timed as a file in ONNX Runtime, as it is deployed, and in torch.
Returns are those of the same evaluation episodes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from timing import machine, parser, show, write_json
from torch import Tensor

from ezm_pl.distillation import Student, Teacher, load_student
from ezm_pl.distillation.module import Distilled
from ezm_pl.export.onnx_file import metadata, visited, write_onnx
from ezm_pl.search import ActFn, act_greedy
from ezm_pl.tracking.distill.student_lookup import find_student
from ezm_pl.training import Evaluation
from ezm_pl.training.evaluation import evaluation_envs, play_episodes

AT_LEAST = 500
COLUMNS = ("p50, ms", "p99, ms", "CPU p50", "CPU p99")

Decide = Callable[[NDArray[np.float32], NDArray[np.int64]], Any]


def evaluation(teacher: Teacher, act: ActFn, episodes: int, seed: int, *, searched: bool) -> Evaluation:
    """Returns of all tasks when `act` decides."""
    experiment = teacher.experiment
    envs = evaluation_envs(experiment, episodes)
    try:
        returns = play_episodes(
            envs,
            teacher.judged,
            act,
            seed=seed,
            heads=torch.Generator().manual_seed(seed),
        )
    finally:
        envs.close()
    return Evaluation.of(experiment, 0, 0, returns, searched=searched)


def ways(teacher: Teacher, student: Student, file: Path) -> dict[str, Decide]:
    """The ways to decide, by name."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    generator = torch.Generator(teacher.device).manual_seed(0)

    def by_file(observation: NDArray[np.float32], task: NDArray[np.int64]) -> Any:
        return session.run(["action"], {"observation": observation, "task": task})[0]

    def by_torch(observation: NDArray[np.float32], task: NDArray[np.int64]) -> Any:
        with torch.inference_mode():
            return student(torch.from_numpy(observation), torch.from_numpy(task)).numpy()

    def by_head(observation: NDArray[np.float32], task: NDArray[np.int64]) -> Any:
        given = torch.from_numpy(observation).to(teacher.device), torch.from_numpy(task).to(teacher.device)
        return act_greedy(teacher.model, *given, generator).cpu().numpy()

    return {
        "student, ONNX Runtime": by_file,
        "student, torch": by_torch,
        "policy head": by_head,
        "planner": teacher.label,
    }


def timed(
    decide: dict[str, Decide], rows: list[tuple[NDArray[np.float32], NDArray[np.int64]]], seconds: float
) -> dict[str, NDArray[np.float64]]:
    """Seconds `[n, 2]` of single decisions, wall-clock and of the thread's CPU, all ways turn about.

    The second leaves out what other processes take of the core meanwhile.
    """
    for each in decide.values():
        for row in rows[:20]:
            each(*row)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in decide}
    end = time.perf_counter() + seconds
    turn = 0
    while turn < AT_LEAST or time.perf_counter() < end:
        for name, each in decide.items():
            wall, cpu = time.perf_counter(), time.thread_time()
            each(*rows[turn % len(rows)])
            times[name].append((time.perf_counter() - wall, time.thread_time() - cpu))
        turn += 1
    return {name: np.array(both) for name, both in times.items()}


def main() -> None:
    arguments = parser(__doc__, 20.0, "of deciding, all ways together")
    arguments.add_argument("student", nargs="?", default="last", metavar="STUDENT")
    arguments.add_argument("--episodes", type=int, default=8, help="per task and way (default: 8)")
    args = arguments.parse_args()
    torch.set_num_threads(1)
    saved = load_student(find_student(args.student, option="STUDENT").checkpoint)
    teacher, student = Teacher(saved.teacher, args.seed), saved.student
    experiment = teacher.experiment

    def imitate(model: Any, observation: Tensor, task: Tensor, generator: torch.Generator) -> Tensor:
        with torch.inference_mode():
            action: Tensor = student(observation.cpu(), task.cpu())
        return action

    planner = evaluation(teacher, teacher.act, args.episodes, args.seed, searched=True)
    by_student = Distilled(evaluation(teacher, imitate, args.episodes, args.seed, searched=False), planner)
    head = Distilled(evaluation(teacher, act_greedy, args.episodes, args.seed, searched=False), planner)

    rows = [
        (observation[row : row + 1], task[row : row + 1])
        for observation, task in visited(student, experiment)
        for row in range(len(task))
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "student.onnx"
        write_onnx(student, teacher.sizes, metadata(experiment, teacher.sizes), file)
        decide = ways(teacher, student, file)
        times = timed(decide, rows, args.seconds)

    kept = {"student, ONNX Runtime": by_student, "policy head": head}
    shown, numbers = [], []
    for name, both in times.items():
        figures = 1e3 * np.percentile(both, [50, 99], axis=0).T.ravel()
        found = kept.get(name)
        shares = [f"{found.kept_of(task):.1%}" if found else "" for task in experiment.tasks]
        shown.append([name, *(f"{figure:.3f}" for figure in figures), *shares])
        numbers.append({"by": name, "decisions": len(both), **dict(zip(COLUMNS, figures, strict=True))})
    returns = {
        task: {"planner": planner.return_of(task), "student": by_student.student.return_of(task),
               "policy head": head.student.return_of(task)}
        for task in experiment.tasks
    }  # fmt: skip
    listed = "; ".join(
        f"{task} {', '.join(f'{value:.0f}' for value in by.values())}" for task, by in returns.items()
    )
    facts = machine(teacher.device) | {"onnxruntime": onnxruntime.__version__}
    show(
        f"One decision on one core, and the share of the planner's score kept ({args.episodes} episodes)",
        ["by", *COLUMNS, *(f"kept, {task}" for task in experiment.tasks)],
        shown,
        facts,
        f"{student.parameter_count:,} parameters; returns of planner, student, policy head: {listed}",
    )
    write_json(args.json, facts, rows=numbers, returns=returns)


if __name__ == "__main__":
    main()
