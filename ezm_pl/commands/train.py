"""`ezm validate`, `train`, `eval`, `learn-check`: one experiment, from its spec to its returns."""

from __future__ import annotations

import argparse

from ezm_pl.commands import outputs
from ezm_pl.commands.arguments import (
    Group,
    add_run,
    add_search_settings,
    add_seed,
    add_spec,
    command,
    load_spec,
    new_console,
    number,
)
from ezm_pl.spec import SpecError
from ezm_pl.spec.fields import MOST_EPISODES


def add(group: Group) -> None:
    """Adds the commands."""
    add_spec(command(group, "validate", _validate, "check a spec and print it with everything resolved"))
    train = command(group, "train", _train, "train a spec as an MLflow run")
    add_spec(train)
    start = train.add_mutually_exclusive_group()
    start.add_argument(
        "--resume", metavar="RUN", help="go on from: last, a run id, a run folder, a checkpoint"
    )
    start.add_argument("--init", metavar="RUN", help="begin with this run's weights; its tasks may be others")
    evaluate = command(group, "eval", _eval, "evaluate a checkpoint")
    add_run(evaluate)
    evaluate.add_argument(
        "--episodes", type=number(1, MOST_EPISODES), default=4, help="per task (default: 4)"
    )
    add_seed(evaluate)
    evaluate.add_argument(
        "--no-search", action="store_true", help="act by the policy alone, without planning"
    )
    add_search_settings(evaluate)
    evaluate.add_argument(
        "--descriptions",
        choices=("training", "held-out"),
        help="tell the agent its tasks in each of these sentences (default: the first of training)",
    )
    evaluate.add_argument(
        "--video",
        type=outputs.folder,
        metavar="DIR",
        help="film the first 8 s of an episode per task into DIR",
    )
    add_run(
        command(group, "learn-check", _learn_check, "check that experiments/learn_check.yaml has learned")
    )


def _validate(args: argparse.Namespace) -> None:
    from ezm_pl.spec import dump_experiment
    from ezm_pl.spec.facts import spec_facts
    from ezm_pl.tracking.tasks import check_tasks

    experiment, preset, bases = load_spec(args)
    check_tasks(experiment.tasks, experiment.env.backend)
    experiment.check_packages()
    laid_over = [f"base: {path}" for path in bases]
    for line in (f"{args.spec}: valid", *laid_over, f"preset: {preset}", *spec_facts(experiment)):
        print(f"# {line}")
    print(dump_experiment(experiment), end="")


def _train(args: argparse.Namespace) -> int:
    from ezm_pl.spec.facts import spec_notes
    from ezm_pl.tracking.console import say
    from ezm_pl.tracking.fault_tolerance.output import install_safe_output

    install_safe_output()
    experiment, preset, _ = load_spec(args)
    console = new_console()
    say(console, f"{args.spec}, preset {preset}")
    for note in spec_notes(experiment):
        say(console, note, "yellow")
    from ezm_pl.tracking.runs.train import train

    return train(experiment, resume=args.resume, init=args.init, console=console)


def _eval(args: argparse.Namespace) -> None:
    if args.no_search and args.set:
        raise SpecError("--set is of the search, which --no-search turns off")
    from ezm_pl.tracking.runs.evaluate import evaluate_run

    evaluate_run(
        args.run,
        episodes=args.episodes,
        seed=args.seed,
        search=not args.no_search,
        settings=args.set,
        video=args.video,
        console=new_console(),
        descriptions=args.descriptions,
    )


def _learn_check(args: argparse.Namespace) -> int:
    from ezm_pl.tracking.results.tables import learn_check_table
    from ezm_pl.tracking.runs.run_lookup import usable_checkpoint
    from ezm_pl.training.learn_check import learn_check

    console = new_console()
    rows = learn_check(usable_checkpoint(args.run, console))
    console.print(learn_check_table(rows))
    return 0 if all(row.passed for row in rows) else 1
