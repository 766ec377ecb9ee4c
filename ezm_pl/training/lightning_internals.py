"""Where this project reaches into Lightning beyond its public interface, each place with its reason.

Written against Lightning 2.6.6. Nothing else in the package uses a private name of Lightning's
(tests/test_subpackages.py), so an update of Lightning is checked here.
"""

from __future__ import annotations

import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

_EXPECTED_WARNINGS = (
    ".*is deprecated, use `isinstance\\(treespec.*",
    ".*module\\(s\\) in eval mode at the start of training.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*it is recommended to use `self.log.*sync_dist=True.*",  # evaluations are the same on all ranks
)
"""About what this project does on purpose, or about Lightning itself. They have no category of their own."""


@contextmanager
def no_advice() -> Iterator[None]:
    """Inside, `_EXPECTED_WARNINGS` are not shown."""
    with warnings.catch_warnings():
        for message in _EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        yield


def begin_with_evaluation(checkpoint: dict[str, Any]) -> None:
    """Has the fit loop restored from a checkpoint begin with the evaluation that its update still owes.

    Lightning would take it as done. It repeats one in the middle of which it was saved, so that is what
    the state is made to say. The batches that it then counts once more are taken off beforehand: one after
    the evaluation and, where the save was made at a batch's end, one before it.
    """
    loop = checkpoint["loops"]["fit_loop"]
    progress = loop["epoch_loop.val_loop.batch_progress"]
    done = progress["total"]["completed"]
    progress["total"] = {"ready": done + 1, "started": done + 1, "processed": done, "completed": done}
    progress["current"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    progress["is_last_batch"] = False
    batches = loop["epoch_loop.batch_progress"]["total"]
    again = 1 + batches["processed"] - batches["completed"]
    loop["epoch_loop.state_dict"]["_batches_that_stepped"] = checkpoint["global_step"] - again


def take_processes(launcher: Any) -> list[subprocess.Popen]:
    """The ranks that Lightning has started on this machine, to be watched by the caller; [] if it has none.

    Lightning's own observer would kill this process at once when one of them fails, before anybody has said
    why. It watches the launcher's list, which is empty afterwards.
    """
    if not isinstance(launcher, _SubprocessScriptLauncher):
        return []
    processes = list(launcher.procs)
    launcher.procs.clear()
    return processes


class UpdatesBar(RichProgressBar):
    """Lightning's Rich bar, labelled `updates`; the label has no public setter, and is an epoch's number."""

    def evaluated(self, pl_module: Any) -> str:
        """What the module's evaluator plays just now, in words."""
        return "episodes"

    def on_validation_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        """Says what is evaluated, and how far it is."""
        super().on_validation_batch_start(trainer, pl_module, *args)
        bar, progress = self.val_progress_bar_id, self.progress
        if bar is None or progress is None:
            return

        def show(decisions: int) -> None:
            said = f"evaluating {self.evaluated(pl_module)}, decision {decisions}"
            progress.update(bar, total=1, description=said)

        pl_module.evaluator.on_step = show

    def _get_train_description(self, current_epoch: int) -> str:
        return "updates"
