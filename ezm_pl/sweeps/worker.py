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
            return _work_through(queue, where, console)
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


def _work_through(queue: Queue, where: str, console: Console) -> int:
    _check_machine(queue.unfinished())
    with queue.storage.alone():
        queue.fill()
    table = LiveTable(queue, console)
    tell = partial(say, console, style="yellow")
    tracked, patience = MlflowSweep(queue), Patience(tell)
    trials = Patience(tell, "the storage of trials", storage_errors)
    say(console, f"sweep {queue.plan.key}, stored in {where}")
    if trials.insist(queue.is_done):
        _close_at_last(queue, tracked, patience, trials, console)
        say(console, f"the sweep has already finished: {trials.insist(table.summary)}")
        return trials.insist(partial(_exit_code, queue))
    try:
        with queue.storage.alone():
            tracked.begin()
        with table.shown():
            while not trials.insist(queue.is_done):
                claim = trials.insist(queue.claim)
                if claim is None:
                    time.sleep(_WAIT_SECONDS)  # the others' trials may come back
                else:
                    _work_on(claim, queue, tracked, patience, trials, console)
                trials.insist(table.say_finished)
                with trials.spare(), queue.storage.alone(), patience.spare():
                    tracked.close_finished()
        _close_at_last(queue, tracked, patience, trials, console)
    except KeyboardInterrupt:
        with trials.spare(), queue.storage.alone(), patience.spare():
            if not queue.running():
                tracked.interrupt()
        raise
    say(console, f"done: {trials.insist(table.summary)}")
    return trials.insist(partial(_exit_code, queue))


def _close_at_last(
    queue: Queue, tracked: MlflowSweep, patience: Patience, trials: Patience, console: Console
) -> None:
    """Ends the runs of a sweep that is done, however MLflow was in the meantime."""

    def close() -> None:
        with queue.storage.alone():
            patience.insist(tracked.close_finished)

    try:
        trials.insist(close)
    except store_errors():
        say(console, "MLflow could not be told that the sweep has ended; the same command tells it", "red")


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


def _exit_code(queue: Queue) -> int:
    """0; 1 where the sweep has ended without a single result."""
    states = [trial.state for point in queue.plan.points for trial in queue.trials(point)]
    return 0 if {TrialState.COMPLETE, TrialState.PRUNED} & set(states) else 1


def _work_on(
    claim: Claim,
    queue: Queue,
    tracked: MlflowSweep,
    patience: Patience,
    trials: Patience,
    console: Console,
) -> None:
    """Runs a claimed trial and says how it ended; `patience` is with MLflow, `trials` with the storage."""
    from ezm_pl.sweeps.trial import run_trial  # PyTorch

    with queue.alive(claim):
        try:
            value = run_trial(claim, tracked, patience)
        except KeyboardInterrupt:
            with trials.spare():  # else the next worker takes it from a dead one
                queue.give_back(claim)
            raise
        except Exception as error:  # noqa: BLE001 - whatever a trial raises, the sweep goes on
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            if trials.insist(partial(queue.fail, claim, said)):
                with patience.spare():  # `close_finished` makes up for it, here and below
                    tracked.mark(claim, tags.FAILED)
            say(
                console,
                f"{claim.point.label} trial {claim.slot}, attempt {claim.attempt} of {ATTEMPTS}: {said}",
                "red",
            )
            say(console, traceback.format_exc())
            return
        finally:
            gc.collect()  # a network, its optimiser and replay buffers, which hold one another
        state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        if trials.insist(partial(queue.finish, claim, state, value)):
            with patience.spare():
                tracked.mark(claim, tags.PRUNED if value is None else tags.COMPLETE)
