"""`ezm sweep`: many experiments over tasks and settings, by one worker or many."""

from __future__ import annotations

import argparse

from ezm_pl.commands.arguments import Group, check_tasks, command, new_console, number
from ezm_pl.spec.sweep import MOST_TRIALS

DEFAULT = "sweeps/task_scaling.yaml"


def add(group: Group) -> None:
    """Adds the commands."""
    sweep = group.add_parser("sweep", help="many experiments over tasks and settings")
    sweeps = sweep.add_subparsers(required=True, metavar="WHAT")
    run = command(sweeps, "run", _run, "begin a sweep, or go on with one, until every trial has ended")
    run.add_argument("spec", nargs="?", default=DEFAULT, metavar="SPEC", help=f"default: {DEFAULT}")
    run.add_argument("--tasks", metavar="8,16,29", help="numbers of tasks, or suites; default: the spec's")
    run.add_argument("--trials", type=number(1, MOST_TRIALS), help="per grid point; default: the spec's")
    run.add_argument("--seeds", type=number(1, MOST_TRIALS), help="per trial; default: the spec's")
    run.add_argument("--preset", help="paper, laptop, smoke or auto; default: the base experiment's")
    run.add_argument("--base", metavar="SPEC", help="the experiment to start from; default: the sweep's")
    run.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", help="lay a setting over the base; repeatable"
    )
    run.add_argument("--name", help="of the sweep; default: the spec's")
    run.add_argument(
        "--only", type=_labels, metavar="A,B", default=(), help="variants of an ablation; default: all"
    )
    run.add_argument("--report", action="store_true", help="write the report (see ezm report) at the end")
    _add_storage(run)
    worker = command(sweeps, "worker", _worker, "work on a sweep that was begun, beside other workers")
    worker.add_argument("sweep", metavar="SWEEP", help="its name")
    _add_storage(worker)


def _add_storage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--storage",
        metavar="URL",
        help="sqlite:///FILE or postgresql://...; default: sqlite:///mlruns/optuna.db",
    )


def _labels(text: str) -> list[str]:
    """An argument type: names separated by commas."""
    return [label.strip() for label in text.split(",") if label.strip()]


def _run(args: argparse.Namespace) -> int:
    from ezm_pl.spec.sweep_plan import load_sweep
    from ezm_pl.tracking.fault_tolerance.output import install_safe_output
    from ezm_pl.tracking.host import has_usable_gpu

    install_safe_output()
    plan = load_sweep(
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
    for point in plan.points:
        check_tasks(point.experiment.tasks, point.experiment.env.backend)
        point.experiment.check_packages()
    from ezm_pl.sweeps.worker import run_sweep

    return run_sweep(plan, storage_url=args.storage, report=args.report, console=new_console())


def _worker(args: argparse.Namespace) -> int:
    from ezm_pl.sweeps.worker import join_sweep
    from ezm_pl.tracking.fault_tolerance.output import install_safe_output

    install_safe_output()
    return join_sweep(args.sweep, storage_url=args.storage, console=new_console())
