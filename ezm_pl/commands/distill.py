"""`ezm distill` and `ezm export`: from a trained agent to a policy that others can run."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from ezm_pl.commands import outputs
from ezm_pl.commands.arguments import Group, add_run, add_settings, command, new_console
from ezm_pl.spec import SpecError


def add(group: Group) -> None:
    """Adds the commands."""
    distill = command(group, "distill", _distill, "distil a run's planner into a light policy")
    distill.add_argument(
        "run", nargs="?", metavar="RUN", help="last (default), a run id, a run folder, a checkpoint"
    )
    distill.add_argument("--spec", metavar="FILE", help="YAML with other sizes and budgets than the defaults")
    add_settings(distill, "override a field of the spec")
    distill.add_argument(
        "--resume", metavar="RUN", help="go on with a distilled run: last, a run id, a run folder"
    )
    export = command(group, "export", _export, "register a run in MLflow, or write its policy as ONNX")
    add_run(export)
    how = export.add_mutually_exclusive_group(required=True)
    how.add_argument(
        "--register", type=_model_name, metavar="NAME", help="name of the model in MLflow's registry"
    )
    how.add_argument("--to", choices=("onnx",), help="format of a file that runs without this package")
    export.add_argument(
        "--out",
        type=outputs.file_in((".onnx",)),
        metavar="FILE",
        help="file to write with --to (default: policy.onnx)",
    )


def _distill(args: argparse.Namespace) -> int:
    if args.resume and args.run:
        raise SpecError("--resume goes on with the run's own teacher: leave RUN out")
    from ezm_pl.tracking.fault_tolerance.output import install_safe_output

    install_safe_output()
    from ezm_pl.tracking.distill.distill_run import distill_run

    return distill_run(args.run or "last", args.spec, args.set, resume=args.resume, console=new_console())


def _export(args: argparse.Namespace) -> int | None:
    if args.register:
        if args.out:
            raise SpecError("--out goes with --to; a registered model lies in MLflow")
        from ezm_pl.export.registry import register_agent

        register_agent(args.run, args.register, console=new_console())
        return None
    from ezm_pl.export.onnx_file import export_onnx

    return export_onnx(args.run, args.out or Path("policy.onnx"), console=new_console())


def _model_name(text: str) -> str:
    """An argument type: a name that MLflow's registry takes."""
    if not re.fullmatch(r"[\w.\- ]{1,200}", text):
        raise argparse.ArgumentTypeError(f"letters, digits, spaces, '.', '-' and '_' expected, got {text!r}")
    return text
