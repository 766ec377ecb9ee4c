"""`ezm sweep`: many experiments over tasks and settings, by one worker or many."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ezm_pl.commands.arguments import Group, add_settings, command, new_console, number
from ezm_pl.spec.sweep import MOST_TRIALS

if TYPE_CHECKING:
    from ezm_pl.spec.sweep_plan import Point, SweepPlan

DEFAULT = "sweeps/task_scaling.yaml"


def add(group: Group) -> None:
    """Adds the commands."""
    sweep = group.add_parser("sweep", help="many experiments over tasks and settings")
    sweeps = sweep.add_subparsers(required=True, metavar="WHAT")
    run = command(sweeps, "run", _run, "begin a sweep, or go on with one, until every trial has ended")
    _add_plan(run)
    run.add_argument("--report", action="store_true", help="write the report (see ezm report) at the end")
    _add_storage(run)
    _add_plan(command(sweeps, "validate", _validate, "check a sweep and print its grid points and runs"))
    worker = command(sweeps, "worker", _worker, "work on a sweep that was begun, beside other workers")
    worker.add_argument("sweep", metavar="SWEEP", help="its name")
    _add_storage(worker)


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", nargs="?", default=DEFAULT, metavar="SPEC", help=f"default: {DEFAULT}")
    parser.add_argument("--tasks", metavar="8,16,29", help="numbers of tasks, or suites; default: the spec's")
    parser.add_argument(
        "--trials", type=number(1, MOST_TRIALS), help="trials per grid point (default: the spec's)"
    )
    parser.add_argument("--seeds", type=number(1, MOST_TRIALS), help="seeds per trial (default: the spec's)")
    parser.add_argument("--preset", help="paper, laptop, smoke or auto; default: the base experiment's")
    parser.add_argument("--base", metavar="SPEC", help="the experiment to start from; default: the sweep's")
    add_settings(parser, "override a field of the base experiment")
    parser.add_argument("--name", help="name of the sweep (default: the spec's)")
    parser.add_argument(
        "--only", type=_labels, metavar="A,B", default=(), help="variants of an ablation; default: all"
    )


def _add_storage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--storage",
        metavar="URL",
        help="sqlite:///FILE or postgresql://...; default: sqlite:///mlruns/optuna.db",
    )


def _labels(text: str) -> list[str]:
    """An argument type: names separated by commas."""
    return [label.strip() for label in text.split(",") if label.strip()]


def _plan(args: argparse.Namespace) -> SweepPlan:
    """The sweep that the arguments name."""
    from ezm_pl.spec.sweep_plan import load_sweep
    from ezm_pl.tracking.host import has_usable_gpu

    return load_sweep(
        args.spec,
        tasks=args.tasks,
        trials=args.trials,
        seeds=args.seeds,
        preset=args.preset,
        base=args.base,
        name=args.name,
        only=args.only,
        settings=args.set,
        gpu=has_usable_gpu(),
    )


def _notes(point: Point) -> list[str]:
    """The notes on a grid point's spec, with its label."""
    from ezm_pl.spec.facts import spec_notes

    return [f"{point.label}: {note}" for note in spec_notes(point.experiment)]


def _validate(args: argparse.Namespace) -> None:
    from ezm_pl.spec.facts import spec_facts
    from ezm_pl.tracking.tasks import check_tasks

    plan = _plan(args)
    for point in plan.points:
        check_tasks(point.experiment.tasks, point.experiment.env.backend)
        point.experiment.check_packages()
    trials, seeds, points = plan.spec.trials_per_point, plan.spec.seeds, len(plan.points)
    print(f"# {args.spec}: valid")
    print(f"# grid points: {points}, trials: {trials} per grid point, seeds: {seeds} per trial")
    print(f"# runs: {points * trials * seeds}")
    for point in plan.points:
        tasks, budget, *_ = spec_facts(point.experiment)
        print(f"# {point.label}: {tasks}; {budget}")
        for note in _notes(point):
            print(f"# {note}")
    for line in plan.left_out:
        print(f"# left out: {line}")
    print(plan.text(), end="")


def _run(args: argparse.Namespace) -> int:
    from ezm_pl.tracking.fault_tolerance.output import install_safe_output

    install_safe_output()
    from ezm_pl.tracking.console import say

    plan, console = _plan(args), new_console()
    for point in plan.points:
        for note in _notes(point):
            say(console, note, "yellow")
    from ezm_pl.sweeps.worker import run_sweep

    return run_sweep(plan, storage_url=args.storage, report=args.report, console=console)


def _worker(args: argparse.Namespace) -> int:
    from ezm_pl.sweeps.worker import join_sweep
    from ezm_pl.tracking.fault_tolerance.output import install_safe_output

    install_safe_output()
    return join_sweep(args.sweep, storage_url=args.storage, console=new_console())
