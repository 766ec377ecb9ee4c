"""Ranks on one machine: updates and environment steps per second at the same global batch.

    .venv/bin/python benchmarks/ranks.py [SPEC] [--ranks 1 2] [--updates 300] [--rounds 2] [--json FILE]

Each side is the beginning of an ordinary `ezm train` with `trainer.devices` ranks; the sides take turns.
The first hundred updates are not counted. On a CPU all ranks share the same cores, so this shows what
talking to one another costs; on GPUs each rank has its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from timing import machine, show, spread, write_json

from ezm_pl.spec import load_experiment
from ezm_pl.tracking.store import open_store

SKIPPED = 100
"""Updates that are not counted."""
RATES = {"updates/s": "time/updates_per_second", "env steps/s": "time/env_steps_per_second"}


def rates(spec: Path, ranks: int, updates: int, folder: Path) -> dict[str, list[float]]:
    """One run of `updates` in `folder`: its rates every 20 updates after the first `SKIPPED`."""
    experiment = load_experiment(spec)
    collect, whole = experiment.collect, experiment.optim.total_updates
    settings = {
        "trainer.devices": ranks,
        "trainer.accelerator": "cuda" if torch.cuda.is_available() else "cpu",
        "trainer.log_every": 20,
        "trainer.checkpoint_every": 10 * updates,
        "optim.total_updates": updates,
        # As many steps per update as the whole run has.
        "collect.env_steps": collect.random_steps
        + (collect.env_steps - collect.random_steps) * updates // whole,
        "eval.every": 10 * updates,
        "eval.at_start": "false",
        "eval.episodes": 1,
        "eval.video": "false",
    }
    command = [sys.executable, "-m", "ezm_pl", "train", str(spec.resolve())]
    command += [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    package = str(Path(__file__).resolve().parents[1])
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": package}
    environment.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{ranks} rank(s): {done.stderr.strip()}")
    client = open_store(f"sqlite:///{folder.resolve()}/mlruns/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("ezm").experiment_id])
    return {
        name: [p.value for p in client.get_metric_history(run.info.run_id, metric) if p.step > SKIPPED]
        for name, metric in RATES.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = Path(__file__).resolve().parents[1] / "experiments" / "learn_check.yaml"
    parser.add_argument("spec", type=Path, nargs="?", default=default, help="default: the learning check's")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--updates", type=int, default=300, help="per run")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    args = parser.parse_args()
    if args.updates <= SKIPPED:
        parser.error(f"--updates must be more than {SKIPPED}")
    found: dict[int, dict[str, list[float]]] = {n: {name: [] for name in RATES} for n in args.ranks}
    with tempfile.TemporaryDirectory() as temporary:
        for turn in range(args.rounds):
            for ranks in args.ranks:
                measured = rates(args.spec, ranks, args.updates, Path(temporary) / f"{turn}-{ranks}")
                for name, values in measured.items():
                    found[ranks][name] += values
    facts = machine()
    show(
        f"{args.spec.name}: the same global batch on several ranks",
        ["ranks", *RATES],
        [[str(n), *(f"{spread(values):.1f}" for values in sides.values())] for n, sides in found.items()],
        facts,
        "medians (quartiles) over 20 updates each",
    )
    write_json(args.json, facts, rates={str(ranks): sides for ranks, sides in found.items()})


if __name__ == "__main__":
    main()
