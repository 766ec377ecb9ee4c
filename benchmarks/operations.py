"""Where the time of a training run's updates goes, by kind of operation, as torch's profiler sees it.

An operation's time is its own, without those that it calls; on a GPU, that of its kernels. What is left of
a part of an update when all its operations are taken off is the host's: Python, the autograd engine,
Lightning, views (which move no number), and, while it profiles, the profiler.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from ezm_pl.selfplay import Clock

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
_LAP = "end of a part"


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
    """Where some updates' time went.

    Attributes:
        seconds: an update, by part of it (`search`, `losses`, ... as in `time/learner_*_share`; on a GPU,
            which works behind the host, only `update`) and by group of `GROUPS` in that part.
        update: seconds of an update while it was profiled.
        updates: how many were.
    """

    seconds: dict[str, dict[str, float]]
    update: float
    updates: int

    def share(self, group: str, *parts: str) -> float:
        """A group's share of an update's time, in some parts of it or in all."""
        return sum(self.seconds.get(part, {}).get(group, 0.0) for part in parts or self.seconds) / self.update


class Watch:
    """Profiles the thread that calls it, from `start` to `stop`; `clock` is told where its parts end.

    Args:
        clock: the learner's.
        device: that it computes on.
    """

    def __init__(self, clock: Clock, device: torch.device) -> None:
        self._clock, self._cuda = clock, device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._cuda else [])]
        self._profile = profile(activities=activities)
        self._ended: list[str] = []

    def start(self) -> None:
        """Begins."""
        lap = self._clock.lap

        def marked(part: str) -> None:
            lap(part)
            self._ended.append(part)
            with record_function(_LAP):
                pass

        self._profile.start()
        self._clock.lap = marked  # type: ignore[method-assign]
        self._clock.lap("other")

    def stop(self, updates: int) -> Operations:
        """Ends, `updates` updates later."""
        self._clock.lap("other")
        del self._clock.lap  # the class's own again
        self._profile.stop()
        events = [event for event in self._profile.events() if event.device_type == DeviceType.CPU]
        laps = sorted(event.time_range.start for event in events if event.name == _LAP)
        ended = self._ended
        if self._cuda:
            laps, ended = [laps[0], laps[-1]], ["update"] * 2
        seconds: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(GROUPS, 0.0))
        for part, (start, end) in zip(ended[1:], pairwise(laps), strict=True):
            seconds[part]["host"] += (end - start) / 1e6
        for event in events:
            lap, group = bisect_left(laps, event.time_range.start), group_of(event.name)
            if group in (None, "host") or not 0 < lap < len(laps):
                continue
            own = (event.self_device_time_total if self._cuda else event.self_cpu_time_total) / 1e6
            seconds[ended[lap]][group] += own
            seconds[ended[lap]]["host"] -= own
        each = {part: {group: s / updates for group, s in of.items()} for part, of in seconds.items()}
        return Operations(each, (laps[-1] - laps[0]) / 1e6 / updates, updates)
