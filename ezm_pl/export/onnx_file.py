"""`ezm export --to onnx`: a policy as one file that ONNX Runtime runs, without torch and this package.

Normalisation, task embedding and action masks are part of the graph; what its numbers mean stands in the
file's metadata (docs/distillation.md, "The file").
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from ezm_pl.distillation import load_student
from ezm_pl.envs import MultiTaskVectorEnv, TaskSizes, sizes
from ezm_pl.envs.signals import task_signals
from ezm_pl.spec import Experiment, SpecError, writing
from ezm_pl.tracking.console import say
from ezm_pl.tracking.distill.student_lookup import find_policy
from ezm_pl.tracking.runs.run_lookup import checkpoint_errors, newest_usable
from ezm_pl.training.from_checkpoint import load_actor
from ezm_pl.training.sac import SACActor
from ezm_pl.world_model import InferenceModel, WorldModel

FORMAT = "1"
"""Of the metadata."""
OPSET = 20
NEEDED = ("onnx", "onnxscript", "onnxruntime")
CHECKED = 1_000
"""Observations on which the file is compared with its source."""
TOLERANCE = 1e-5
"""Largest difference of an action, of a range of 2, that float32 arithmetic may make."""


class PolicyHead(nn.Module):
    """The policy of an ordinary run without its search: encoder, trunk, policy head; the mode.

    Args:
        actor: of either agent, in float32.
    """

    def __init__(self, actor: InferenceModel | SACActor) -> None:
        super().__init__()
        self.model = actor.model if isinstance(actor, InferenceModel) else actor

    def forward(self, observation: Tensor, task: Tensor) -> Tensor:
        """Actions `[B, A]` for observations `[B, O]` of tasks `[B]`."""
        features = self.model.encode(observation, task)
        if isinstance(self.model, WorldModel):
            features = self.model.features(features, task)
        return self.model.policy(features, task).mode


def export_onnx(reference: str, out: Path, *, console: Console) -> int:
    """Writes a run's policy to `out` and compares the file with its source.

    Args:
        reference: `last`, a run id, a run folder or a checkpoint; a distilled run's student, or an
            ordinary run's policy head.
        out: the file; its folder exists.
        console: where to print.

    Returns:
        The exit code: 1 where file and source differ by more than `TOLERANCE`; the file is removed then.

    Raises:
        SpecError: packages are missing, no such run, or a folder that does not exist.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SpecError(f"--to onnx needs {', '.join(missing)}: pip install 'ezm_pl[onnx]'")
    if not out.absolute().parent.is_dir():
        raise SpecError(f"--out {out}: its folder does not exist")
    saved, distilled = find_policy(reference, option="RUN")
    checkpoint = saved.checkpoint
    with checkpoint_errors(f"RUN {reference}"):
        if not distilled:
            checkpoint = newest_usable(checkpoint, console)
        policy, experiment, facts = _load(checkpoint, distilled=distilled)
    task_sizes = sizes(experiment.tasks)
    write_onnx(policy, task_sizes, metadata(experiment, task_sizes) | facts, out)
    difference = greatest_difference(out, policy, experiment)
    verdict = "as it must be" if difference < TOLERANCE else f"at least {TOLERANCE:g}: the file is removed"
    what = "student" if distilled else "policy head"
    say(console, f"{what} of {checkpoint}: {', '.join(experiment.tasks)}")
    say(console, f"{CHECKED:,} observations: greatest difference to the source {difference:.1e}, {verdict}")
    if not difference < TOLERANCE:  # NaN, too
        out.unlink()
        return 1
    say(console, f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB)")
    return 0


def _load(checkpoint: Path, *, distilled: bool) -> tuple[nn.Module, Experiment, dict[str, str]]:
    """The policy in float32 on the CPU, the tasks' experiment, and what the metadata says of its origin."""
    if distilled:
        saved = load_student(checkpoint)
        facts = {"policy": "student", "updates": str(saved.updates), "teacher": saved.teacher_run or ""}
        return saved.student, saved.experiment, facts
    experiment, actor, updates, _ = load_actor(checkpoint, settings=["search.dtype=float32"])
    assert isinstance(actor, InferenceModel | SACActor)
    return PolicyHead(actor.cpu()).eval(), experiment, {"policy": "policy head", "updates": str(updates)}


def metadata(experiment: Experiment, task_sizes: TaskSizes) -> dict[str, str]:
    """What the file says of its numbers: texts, and under `tasks` JSON with an entry per task id."""
    tasks = []
    for index, task in enumerate(experiment.tasks):
        signals = task_signals(task, experiment.env.backend)
        tasks.append(
            {
                "id": index,
                "name": task,
                "observation_size": int(task_sizes.obs_sizes[index]),
                "action_size": int(task_sizes.action_sizes[index]),
                "control_interval": signals.control_interval,
                "action_repeat": experiment.env.action_repeat,
                "quirks": task not in experiment.without_quirks,
                "observation": [asdict(each) for each in signals.observation],
                "action": [asdict(each) for each in signals.action],
            }
        )
    return {"ezm_format": FORMAT, "tasks": json.dumps(tasks)}


def write_onnx(policy: nn.Module, task_sizes: TaskSizes, facts: dict[str, str], out: Path) -> None:
    """Writes a policy `(observation [B, O], task [B]) -> action [B, A]` as one file, any `B`."""
    import onnx

    example = torch.zeros(2, task_sizes.obs_size), torch.zeros(2, dtype=torch.long)
    batch = torch.export.Dim("batch")
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            policy,
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=["observation", "task"],
            output_names=["action"],
            dynamic_shapes=({0: batch}, {0: batch}),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, facts)
    onnx.checker.check_model(model)
    with writing(out):
        onnx.save_model(model, out)


def greatest_difference(file: Path, policy: nn.Module, experiment: Experiment) -> float:
    """Between the actions of a file and of its source, on `CHECKED` observations that the policy visits."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    differences = []
    for observation, task in visited(policy, experiment):
        with torch.no_grad():
            expected = policy(torch.from_numpy(observation), torch.from_numpy(task)).numpy()
        (found,) = session.run(None, {"observation": observation, "task": task})
        differences.append(np.abs(found - expected).max())
    return float(np.max(differences))  # NaN where any is


def visited(
    policy: nn.Module, experiment: Experiment
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """`CHECKED` observations or some more, in batches `[B, O]` with their tasks `[B]`."""
    envs = MultiTaskVectorEnv.of(experiment, num_envs=1, seed=experiment.seed, protocol="ezm", mode="sync")
    try:
        observation, _ = envs.reset()
        task = np.asarray(envs.task_ids)
        for _ in range(-(-CHECKED // len(task))):
            yield observation, task
            with torch.no_grad():
                action = policy(torch.from_numpy(observation), torch.from_numpy(task))
            observation = envs.step(action.numpy())[0]
    finally:
        envs.close()


@contextlib.contextmanager
def _quiet() -> Iterator[Any]:
    """Drops what the exporter prints and warns of while it works."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
