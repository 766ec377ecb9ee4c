"""`ezm sweep run` and `ezm sweep worker`: take trials from the queue until none is left."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Sequence
from functools import partial

from optuna.trial import TrialState
from rich.console import Console

from ezm_pl.spec import RunFailed, SpecError, as_spec_error
from ezm_pl.spec.errors import nearest
from ezm_pl.spec.sweep_plan import Point, SweepPlan, from_document
from ezm_pl.sweeps.live_table import LiveTable
from ezm_pl.sweeps.mlflow_sweep import MlflowSweep
from ezm_pl.sweeps.patience import Patience
from ezm_pl.sweeps.queue import ATTEMPTS, Claim, Queue, stored_sweeps
from ezm_pl.sweeps.storage import DEFAULT_STORAGE, Storage, open_storage, storage_errors
from ezm_pl.tracking.console import say
from ezm_pl.tracking.fault_tolerance.signals import signals_as_sigint
from ezm_pl.tracking.store import first_line, shown, store_errors
from ezm_pl.tracking.sweep import tags
from ezm_pl.tracking.tasks import check_tasks

_WAIT_SECONDS = 2.0
"""Between looks at trials that other workers run."""


def run_sweep(plan: SweepPlan, *, storage_url: str | None, console: Console, report: bool = False) -> int:
    """Begins the sweep, or goes on with it, and works until every trial has ended.

    Args:
        plan: the sweep.
        storage_url: of the storage that holds its trials; None: the default one.
        console: where to print.
        report: whether to write its report then (see `make_report`).

    Returns:
        The exit code: 0; 1 where every trial failed; 130 after Ctrl-C, 75 where a scheduler has stopped it.

    Raises:
        SpecError: a storage that cannot be opened, or that holds the sweep with another spec.
    """
    storage = open_storage(storage_url)
    where = shown(storage_url or DEFAULT_STORAGE)
    for why in plan.left_out:
        say(console, f"left out: {why}", "yellow")
    code = _work(Queue(storage, plan), where, console)
    if report and code == 0:
        from ezm_pl.sweeps.report import make_report

        uri = plan.points[0].experiment.tracking.uri
        make_report(plan.key, out=None, published=[], console=console, uri=uri)
    return code


def join_sweep(reference: str, *, storage_url: str | None, console: Console) -> int:
    """Works on a sweep that somebody has begun.

    Args:
        reference: the sweep's name, or its key (name, preset and grid points).
        storage_url: of the storage that it is in; None: the default one.
        console: where to print.

    Raises:
        SpecError: no such sweep, or more than one.
    """
    storage = open_storage(storage_url)
    where = shown(storage_url or DEFAULT_STORAGE)
    return _work(Queue(storage, find_sweep(storage, reference, where)), where, console)


def find_sweep(storage: Storage, reference: str, where: str) -> SweepPlan:
    """The sweep of that name or key in a storage; `SpecError` where there is none, or several."""
    sweeps = stored_sweeps(storage)
    matches = [key for key, document in sweeps.items() if reference in (key, document["name"])]
    if len(matches) > 1:
        raise SpecError(f"SWEEP {reference!r}: {len(matches)} sweeps in {where}: {'; '.join(matches)}")
    if not matches:
        hint = nearest(reference, [*sweeps, *(document["name"] for document in sweeps.values())])
        raise SpecError(f"SWEEP {reference!r}: not among the {len(sweeps)} sweeps in {where}{hint}")
    with as_spec_error(SpecError, named=f"SWEEP {reference!r}"):
        plan = from_document(sweeps[matches[0]])
    if plan.key != matches[0]:
        raise SpecError(
            f"SWEEP {reference!r}: another version began it as {matches[0]!r}, this one {plan.key!r}"
        )
    return plan


def _work(queue: Queue, where: str, console: Console) -> int:
    with signals_as_sigint() as stopped:
        try:
            _check_machine(queue.unfinished())
            return _Worker(queue, where, console).work_through()
        except KeyboardInterrupt:
            say(
                console,
                f"sweep {queue.plan.spec.name} interrupted; the same command continues it: its trial, from "
                "the last checkpoint",
                "yellow",
            )
            return stopped.exit_code
        except storage_errors() as error:
            raise RunFailed(
                f"the storage of trials does not answer: {first_line(error)}; the same command goes on later"
            ) from None


class _Worker:
    """Takes trials of a queue until none is left; outlasts MLflow (`mlflow`) and the storage (`trials`).

    Args:
        queue: of the sweep.
        where: its storage, for messages.
        console: where to print.
    """

    def __init__(self, queue: Queue, where: str, console: Console) -> None:
        tell = partial(say, console, style="yellow")
        self.queue, self.where, self.console = queue, where, console
        self.tracked, self.table = MlflowSweep(queue), LiveTable(queue, console)
        self.mlflow, self.trials = Patience(tell), Patience(tell, "the storage of trials", storage_errors)

    def work_through(self) -> int:
        """Works until every trial has ended; the exit code."""
        with self.queue.storage.alone():
            self.queue.fill()
        say(self.console, f"sweep {self.queue.plan.key}, stored in {self.where}")
        if self.trials.insist(self.queue.is_done):
            self._close_at_last()
            say(self.console, f"the sweep has already finished: {self.trials.insist(self.table.summary)}")
            return self.trials.insist(self._exit_code)
        try:
            with self.queue.storage.alone():
                self.tracked.begin()
            with self.table.shown():
                while not self.trials.insist(self.queue.is_done):
                    claim = self.trials.insist(self.queue.claim)
                    if claim is None:
                        time.sleep(_WAIT_SECONDS)  # the others' trials may come back
                    else:
                        self._work_on(claim)
                    self.trials.insist(self.table.say_finished)
                    with self.trials.spare(), self.queue.storage.alone(), self.mlflow.spare():
                        self.tracked.close_finished()
            self._close_at_last()
        except KeyboardInterrupt:
            with self.trials.spare(), self.queue.storage.alone(), self.mlflow.spare():
                if not self.queue.running():
                    self.tracked.interrupt()
            raise
        say(self.console, f"done: {self.trials.insist(self.table.summary)}")
        return self.trials.insist(self._exit_code)

    def _work_on(self, claim: Claim) -> None:
        """Runs a claimed trial and says how it ended."""
        from ezm_pl.sweeps.trial import run_trial  # PyTorch

        with self.queue.alive(claim):
            try:
                value = run_trial(claim, self.tracked, self.mlflow)
            except KeyboardInterrupt:
                with self.trials.spare():  # else the next worker takes it from a dead one
                    self.queue.give_back(claim)
                raise
            except Exception as error:  # noqa: BLE001 - whatever a trial raises, the sweep goes on
                said = f"{type(error).__name__}: {error}".splitlines()[0]
                if self.trials.insist(partial(self.queue.fail, claim, said)):
                    self._mark(claim, tags.FAILED)
                attempt = f"attempt {claim.attempt} of {ATTEMPTS}"
                say(self.console, f"{claim.point.label} trial {claim.slot}, {attempt}: {said}", "red")
                say(self.console, traceback.format_exc())
                return
            finally:
                gc.collect()  # a network, its optimiser and replay buffers, which hold one another
            state = TrialState.PRUNED if value is None else TrialState.COMPLETE
            if self.trials.insist(partial(self.queue.finish, claim, state, value)):
                self._mark(claim, tags.PRUNED if value is None else tags.COMPLETE)

    def _mark(self, claim: Claim, state: str) -> None:
        with self.mlflow.spare():  # `close_finished` makes up for it
            self.tracked.mark(claim, state)

    def _close_at_last(self) -> None:
        """Ends the runs of a sweep that is done, however MLflow was in the meantime."""

        def close() -> None:
            with self.queue.storage.alone():  # for one attempt: all workers of the storage share the lock
                self.tracked.close_finished()

        try:
            self.mlflow.insist(partial(self.trials.insist, close))
        except store_errors():
            say(
                self.console,
                "MLflow could not be told that the sweep has ended; the same command tells it",
                "red",
            )

    def _exit_code(self) -> int:
        """0; 1 where the sweep has ended without a single result."""
        states = [trial.state for point in self.queue.plan.points for trial in self.queue.trials(point)]
        return 0 if {TrialState.COMPLETE, TrialState.PRUNED} & set(states) else 1


def _check_machine(points: Sequence[Point]) -> None:
    """Raises what every trial of one of these grid points would raise on this machine, and be failed by.

    Raises:
        SpecError: a task, a package, a device or memory that is not here.
    """
    from ezm_pl.tracking.runs.logger import quiet_lightning
    from ezm_pl.training import check_settings  # PyTorch

    quiet_lightning()
    for point in points:
        with as_spec_error(SpecError, named=f"grid point {point.label}"):
            check_tasks(point.experiment.tasks, point.experiment.env.backend)
            point.experiment.check_packages()
            check_settings(point.experiment)
