"""An update asks for no number of the device: nothing in it makes the host wait.

There need not be a GPU to know: what makes a host wait are a few operations (reading a number, shapes that
depend on data, copies to and from the host), and torch says when one is dispatched. One whole update runs
under such a watch: reanalysis, losses, gradients, clipping, Adam, Lightning's own share, and the refresh of
the inference copies. What is not seen: `.numpy()` and `.tolist()`, which the CPU answers without dispatching
anything; of a device's tensors only the errors take that way, to the buffer: `PriorityWriter` says how.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fit_helpers import draw_ahead, fit_experiment, run
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {
    "aten._local_scalar_dense",  # item, bool, int, float
    "aten.is_nonzero",
    "aten.equal",
    "aten.nonzero",
    "aten.masked_select",
    "aten._unique2",
    "aten.unique_dim",
    "aten.repeat_interleave.Tensor",
    "aten.lift_fresh",  # torch.tensor(numbers): a copy from unpinned memory
}


class Watch(TorchDispatchMode):
    """Notes the operations that would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.waiting: list[str] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = str(func)
        self.seen += 1
        masks = name.startswith(("aten.index.", "aten.index_put", "aten._index_put")) and any(
            x is not None and x.dtype == torch.bool for x in args[1]
        )
        if masks or name in WAITING or name.rpartition(".")[0] in WAITING:
            where = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_stack(limit=12)]
            self.waiting.append(f"{name} in {' '.join(where)}")
        return func(*args, **(kwargs or {}))


class Watched(Callback):
    """Watches one update, from the end of the one before to its own."""

    def __init__(self, update: int) -> None:
        self.update, self.watch, self.watches = update, Watch(), False

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        if trainer.global_step == self.update - 1:
            self.watch.__enter__()
            self.watches = True
        elif trainer.global_step == self.update:
            self.stop()

    def stop(self) -> None:
        """Ends the watch, so that a training that failed leaves nothing to the tests after it."""
        if self.watches:
            self.watch.__exit__(None, None, None)
        self.watches = False


@pytest.mark.parametrize("policy", ["best", "improved"])
def test_an_update_does_not_wait(policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Update 3 refreshes the inference copies and logs nothing; its batch is drawn in a thread."""
    draw_ahead(monkeypatch)
    watched = Watched(update=3)
    spec: dict[str, Any] = {
        "trainer": {"log_every": 50},
        "targets": {"policy": policy, "search_value_after": 0},
        "search": {"correct_proposal": policy == "improved"},
    }
    try:
        run(fit_experiment(spec), tmp_path, watched)
    finally:
        watched.stop()
    assert watched.watch.seen > 500
    assert watched.watch.waiting == []


def test_the_watch_sees_what_waits() -> None:
    x = torch.arange(3.0)
    waits: list[Callable[[], object]] = [
        lambda: x.sum().item(),
        lambda: bool(x.any()),
        lambda: x[x > 1],
        lambda: x.__setitem__(x > 1, 0.0),
        lambda: x.nonzero(),
        lambda: torch.tensor([1.0]),
    ]
    for wait in waits:
        with Watch() as watch:
            wait()
        assert watch.waiting
