"""What a person sees of a sweep: a live table on a terminal, elsewhere one line per finished trial."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING

from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from ezm_pl.sweeps.queue import Queue, errors_of, slot_of
from ezm_pl.tracking.console import cell, count, say

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_NAMES = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}
_MOST_ROWS = 24


class LiveTable:
    """The trials of a sweep on a console."""

    def __init__(self, queue: Queue, console: Console) -> None:
        """Shows `queue` on `console`."""
        self.queue, self.console = queue, console
        self._said: set[tuple[str, int]] = set()
        self._last: Table | Group | str = ""

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Shows the table on a terminal while the block runs; other output appears above it."""
        self.say_finished(quietly=True)
        if not self.console.is_terminal:
            yield
            return
        with Live(get_renderable=self._render, console=self.console, refresh_per_second=0.5, transient=False):
            yield

    def say_finished(self, *, quietly: bool = False) -> None:
        """Where there is no terminal, prints one line per trial that has ended since the last call."""
        for label, trial in self._trials():
            if not trial.state.is_finished() or (label, slot_of(trial)) in self._said:
                continue
            self._said.add((label, slot_of(trial)))
            if quietly or self.console.is_terminal:
                continue
            name, point, number, state, value, minutes = self._row(label, trial)
            text = (
                f"{name} {point} trial {number}: {state}, objective {value}, {minutes} minutes; {self.eta()}"
            )
            say(self.console, text)

    def summary(self) -> str:
        """`9 trials: 8 complete, 1 pruned`."""
        states = [trial.state for _, trial in self._trials()]
        counts = [f"{states.count(s)} {name}" for s, name in _NAMES.items() if s in states]
        return f"{count(len(states), 'trial')}: {', '.join(counts)}"

    def eta(self) -> str:
        """How long the remaining trials will take, estimated from the mean time per task so far."""
        tasks = {point.label: len(point.experiment.tasks) for point in self.queue.plan.points}
        trials = self._trials()
        ended = [(tasks[label], _seconds(t)) for label, t in trials if t.state == TrialState.COMPLETE]
        left = sum(tasks[label] for label, t in trials if not t.state.is_finished())
        if not left:
            return "all done"
        if not ended:
            return "time left: not known before the first trial's end"
        rate = sum(seconds for _, seconds in ended) / sum(count for count, _ in ended)
        running = [(tasks[label], _seconds(t)) for label, t in trials if t.state == TrialState.RUNNING]
        spent = sum(min(seconds, count * rate) for count, seconds in running)
        minutes = (left * rate - spent) / max(1, len(running)) / 60
        return f"about {minutes:.0f} minutes left"

    def _render(self) -> Table | Group | str:
        with suppress(StorageInternalError):  # while the storage does not answer, the last table stays
            self._last = self._table()
        return self._last

    def _table(self) -> Table:
        table = Table(title=f"Sweep {self.queue.plan.key}", caption=f"{self.summary()}; {self.eta()}")
        for name in ("sweep", "point", "trial", "state"):
            table.add_column(name, no_wrap=True)
        for name in ("objective", "minutes"):
            table.add_column(name, justify="right")
        rows = [(label, t) for label, t in self._trials() if t.state != TrialState.WAITING]
        for label, trial in sorted(rows, key=lambda row: _began(row[1]))[-_MOST_ROWS:]:
            table.add_row(*self._row(label, trial))
        return table

    def _row(self, label: str, trial: FrozenTrial) -> tuple[str, str, str, str, str, str]:
        value = trial.value if trial.state.is_finished() else _latest(trial)
        error = errors_of([trial]).get(slot_of(trial), "")
        state = _NAMES[trial.state] + (f" ({error})" if error and trial.state == TrialState.FAIL else "")
        minutes = f"{_seconds(trial) / 60:.1f}"
        return self.queue.plan.spec.name, label, str(slot_of(trial)), state, cell(value, ".4g"), minutes

    def _trials(self) -> list[tuple[str, FrozenTrial]]:
        return [(point.label, t) for point in self.queue.plan.points for t in self.queue.trials(point)]


def _began(trial: FrozenTrial) -> datetime:
    return trial.datetime_start or datetime.min


def _seconds(trial: FrozenTrial) -> float:
    if trial.datetime_start is None:
        return 0.0
    return ((trial.datetime_complete or datetime.now()) - trial.datetime_start).total_seconds()


def _latest(trial: FrozenTrial) -> float | None:
    return trial.intermediate_values[trial.last_step] if trial.last_step is not None else None
