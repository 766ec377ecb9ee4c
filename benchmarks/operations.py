"""Where the time of a training run's updates goes, by kind of operation, as torch's profiler sees it.

An operation's time is its own, without those that it calls; on a GPU, that of its kernels. What is left of
a part of an update when all its operations are taken off is the host's: Python, the autograd engine,
Lightning, views (which move no number), and, while it profiles, the profiler.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any

import torch
from torch._C._profiler import _ExperimentalConfig
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from ezm_pl.selfplay import PHASE
from ezm_pl.training.batch import Batch, Targets
from ezm_pl.training.module import EZMModule
from ezm_pl.training.pipeline import Pipeline, Prepared
from ezm_pl.world_model.products import Kind

_NAMES = {
    "matrix products": "mm addmm _addmm_activation bmm baddbmm _linear_pointwise mkldnn_linear linear matmul",
    "norms": "layer_norm batch_norm _batch_norm native_layer_norm native_batch_norm cudnn_batch_norm",
    "softmax": "_softmax _log_softmax softmax log_softmax logsumexp",
    "optimizer": "_fused_adam_ _foreach_norm",
    "gather, scatter, sort": "gather scatter scatter_ scatter_add scatter_add_ index index_select index_put_ "
    "_index_put_impl_ repeat_interleave sort argsort argmax _unique2 embedding nonzero masked_fill_",
    "copies, casts": "copy_ _foreach_copy_ to _to_copy clone contiguous cat stack zeros zeros_like ones "
    "ones_like full full_like fill_ zero_ empty empty_like empty_strided new_empty new_zeros new_ones "
    "new_full new_empty_strided resize_ arange _reorder_linear_weight to_dense",
    "host": "view _unsafe_view reshape _reshape_alias as_strided t transpose permute expand expand_as "
    "view_as slice select narrow split split_with_sizes chunk unbind unflatten flatten squeeze unsqueeze "
    "detach detach_ alias unfold lift_fresh result_type broadcast_tensors item _local_scalar_dense",
}
GROUPS = (*(group for group in _NAMES if group != "host"), "elementwise, sums", "host")
_OF = {name: group for group, names in _NAMES.items() for name in names.split()}


def group_of(operation: str) -> str | None:
    """The group of an operation such as `aten::mm`; None for what is no operation of torch's."""
    library, _, name = operation.partition("::")
    if library not in ("aten", "mkldnn"):
        return None
    name = name.partition(".")[0]
    forward = name.removesuffix("_data").removesuffix("_backward")
    return _OF.get(name) or _OF.get(forward) or "elementwise, sums"


@dataclass(frozen=True)
class Operations:
    """Where some updates' time went: the learner's, and that of reanalysis in the background.

    Attributes:
        seconds: an update, by part of it (`losses`, ... as in `time/learner_*_share`, and `reanalysis`, but
            not what the learner waits; on a GPU, which works behind the host, only `update`) and by group
            of `GROUPS` in that part.
        update: seconds of an update while it was profiled.
        updates: how many were.
    """

    seconds: dict[str, dict[str, float]]
    update: float
    updates: int

    def share(self, group: str, *parts: str) -> float:
        """A group's share of all parts' time, in some of them or in all."""
        all_of_it = sum(sum(of.values()) for of in self.seconds.values())
        return sum(self.seconds.get(part, {}).get(group, 0.0) for part in parts or self.seconds) / all_of_it


class Kernels(TorchDispatchMode):
    """Counts the operations inside that reach the device: views, allocations and questions do not.

    Attributes:
        count: so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        library, _, name = func.name().partition("::")
        allocates = name.removeprefix("new_").startswith("empty")
        asks = name.startswith("_is_")
        if library in ("aten", "mkldnn") and not (
            func.is_view or allocates or asks or name == "_unsafe_view"
        ):
            self.count += 1
        return func(*args, **(kwargs or {}))


def update(module: EZMModule, size: int) -> None:
    """One more update of a run, on windows of its replay, from within a callback of Lightning's."""
    windows, before = Batch.from_windows(module.data.buffer.sample(size)), module.global_step

    def prepared() -> tuple[Batch, Targets]:
        batch = Batch(*(x.to(module.device) for x in windows))
        return batch, module.reanalyse(batch, before)

    with module.trainer.precision_plugin.train_step_context():
        module.training_step(Prepared(windows, prepared), 0)


def count_kernels(module: EZMModule) -> int:
    """Operations of an update that reach the device, reanalysis included; it neither logs nor refreshes.

    On one window per task, which no device takes in chunks, and with the products that a GPU computes: packed
    weights and programs are a processor's.
    """
    experiment, compiled, kind = module.experiment, module.planner.compiled, module.target.kind
    never = 10**9
    module.experiment = experiment.model_copy(
        update={
            "optim": experiment.optim.model_copy(update={"refresh_every": never}),
            "trainer": experiment.trainer.model_copy(update={"log_every": never}),
        }
    )
    module.planner.compiled = module.compiled_losses = None
    module.target.kind = lambda rows: Kind(kind(0).dtype, packed=False, paired=True)  # type: ignore[method-assign]
    update(module, len(experiment.tasks))  # constants are made at the first one
    with Kernels() as kernels:
        update(module, len(experiment.tasks))
    module.experiment, module.planner.compiled = experiment, compiled
    module.target.kind = kind  # type: ignore[method-assign]
    return kernels.count


class Watch:
    """Profiles the learner's thread and the pipeline's, from `start` to `stop`.

    Args:
        device: that the learner computes on.
        pipeline: drained at both ends, so that only whole reanalyses are seen.
    """

    def __init__(self, device: torch.device, pipeline: Pipeline) -> None:
        self._cuda, self._pipeline = device.type == "cuda", pipeline
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._cuda else [])]
        config = _ExperimentalConfig(profile_all_threads=not self._cuda)
        self._profile = profile(activities=activities, experimental_config=config)

    def start(self) -> None:
        """Begins."""
        self._pipeline.drain()
        self._profile.start()

    def stop(self, updates: int) -> Operations:
        """Ends, `updates` updates later."""
        self._pipeline.drain()
        self._profile.stop()
        events = [event for event in self._profile.events() if event.device_type == DeviceType.CPU]
        phases = [event for event in events if event.name.startswith(PHASE)]
        learner = next(event.thread for event in phases if event.name == PHASE + "losses")
        jobs = [event for event in phases if event.name == PHASE + "reanalysis"]
        background = [event for event in jobs if event.thread != learner]
        first = min(event.time_range.start for event in phases if event.thread == learner)
        last = max(event.time_range.end for event in phases if event.thread == learner)
        spans = {learner: [(first, last, "update")] if self._cuda else _covered(phases, learner)}
        if background:
            # What the learner waits for is counted where it is done.
            spans[learner] = [span for span in spans[learner] if span[2] not in ("search", "waiting")]
            spans[background[0].thread] = sorted(
                (job.time_range.start, job.time_range.end, "reanalysis") for job in background
            )
        seconds: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(GROUPS, 0.0))
        for start, end, part in chain(*spans.values()):
            seconds[part]["host"] += (end - start) / 1e6
        for event in events:
            group, of_thread = group_of(event.name), spans.get(event.thread, [])
            span = bisect_right(of_thread, event.time_range.start, key=itemgetter(0)) - 1
            if group in (None, "host") or span < 0 or event.time_range.start >= of_thread[span][1]:
                continue
            own = (event.self_device_time_total if self._cuda else event.self_cpu_time_total) / 1e6
            seconds[of_thread[span][2]][group] += own
            seconds[of_thread[span][2]]["host"] -= own
        each = {part: {group: s / updates for group, s in of.items()} for part, of in seconds.items()}
        return Operations(each, (last - first) / 1e6 / updates, updates)


def _covered(phases: list[Any], thread: int) -> list[tuple[float, float, str]]:
    """Start, end (microseconds) and name of a thread's phases in order, and of what is between them."""
    own = sorted((e.time_range.start, e.time_range.end, e.name) for e in phases if e.thread == thread)
    spans: list[tuple[float, float, str]] = []
    for start, end, name in own:
        if spans and start > spans[-1][1]:
            spans.append((spans[-1][1], start, "other"))
        spans.append((start, end, name.removeprefix(PHASE)))
    return spans
