"""A sweep's trials in the storage: made once, each claimed by one worker, finished exactly once.

Each trial of the sweep is one Optuna trial. It goes back to waiting when its worker dies or is interrupted,
or when it fails for the first time, so Optuna holds exactly as many trials as were asked for. A worker
holds the storage's lock while it changes a trial's state.
"""

from __future__ import annotations

import os
import threading
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
import psutil
from optuna import Study
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, Trial, TrialState

from ezm_pl.spec import SpecError
from ezm_pl.spec.io import changes
from ezm_pl.spec.seeds import stream_int
from ezm_pl.spec.sweep import Choice
from ezm_pl.spec.sweep_plan import Point, SweepPlan, of_point
from ezm_pl.sweeps.samplers import distribution, new_pruner, new_sampler
from ezm_pl.sweeps.storage import HEARTBEAT_SECONDS, Storage, this_place

ATTEMPTS = 2
"""A trial that failed or lost its worker is tried once more."""

_KEY, _PLAN, _ID, _SLOT, _ATTEMPT, _OWNER, _ERROR = (
    "ezm:key", "ezm:plan", "ezm:id", "ezm:slot", "ezm:attempt", "ezm:owner", "ezm:error",
)  # fmt: skip
_HELD: set[str] = set()
"""Tokens of the claims of this process."""


@dataclass(frozen=True)
class Claim:
    """A trial that this worker runs.

    Attributes:
        point: its grid point.
        slot: its number within the grid point, from 0.
        attempt: 1, or 2 where it has failed once.
        values: of the searched fields.
        trial: Optuna's.
        token: of this claim; it differs once another worker has taken the trial over.
    """

    point: Point
    slot: int
    attempt: int
    values: dict[str, Choice]
    trial: Trial
    token: str


class Queue:
    """The trials of a sweep."""

    def __init__(self, storage: Storage, plan: SweepPlan) -> None:
        """Takes the sweep `plan` in `storage`; `fill` makes the trials that are missing."""
        self.storage, self.plan = storage, plan

    def fill(self) -> None:
        """Makes the studies and waiting trials that the storage does not hold yet.

        Raises:
            SpecError: the storage holds this sweep with another spec.
        """
        names = {study.study_name: study for study in optuna.get_all_study_summaries(self.storage.optuna)}
        document = self.plan.document()
        known = {
            point.label: names[self._study_name(point)].user_attrs
            for point in self.plan.points
            if self._study_name(point) in names
        }
        for label, attributes in known.items():
            before = attributes.get(_PLAN, document)
            changed = changes(of_point(before, label), of_point(document, label))
            if changed:
                lines = "\n".join(
                    f"sweep {self.plan.key!r} was begun with another spec: {c}" for c in changed
                )
                raise SpecError(f"{lines}\ngive this one another name, or go on with the one that was begun")
        identity = next((attrs[_ID] for attrs in known.values() if _ID in attrs), uuid.uuid4().hex)
        for point in self.plan.points:
            study = optuna.create_study(
                storage=self.storage.optuna,
                study_name=self._study_name(point),
                direction=self.plan.spec.direction,
                load_if_exists=True,
            )
            for key, value in ((_ID, identity), (_KEY, self.plan.key), (_PLAN, document)):
                if key not in study.user_attrs:
                    study.set_user_attr(key, value)
            there = {trial.user_attrs[_SLOT] for trial in study.get_trials(deepcopy=False)}
            combinations = self.plan.spec.combinations() if self.plan.spec.sampler == "grid" else None
            for slot in range(self.plan.spec.trials_per_point):
                if slot not in there:
                    values = combinations[slot] if combinations else {}
                    study.enqueue_trial(dict(values), user_attrs={_SLOT: slot, _ATTEMPT: 1})

    @property
    def identity(self) -> str:
        """The id by which the sweep's runs are found in MLflow."""
        return self.study(self.plan.points[0]).user_attrs[_ID]

    def study(self, point: Point, slot: int = 0) -> Study:
        """A grid point's study, with the sampler of a trial."""
        spec = self.plan.spec
        seed = stream_int(point.experiment.seed, f"sampler {point.label} {slot}")
        return optuna.load_study(
            study_name=self._study_name(point),
            storage=self.storage.optuna,
            sampler=new_sampler(spec, seed),
            pruner=new_pruner(spec, point.experiment),
        )

    def trials(self, point: Point) -> list[FrozenTrial]:
        """A grid point's trials, by slot."""
        found = self.study(point).get_trials(deepcopy=False)
        return sorted(found, key=lambda trial: trial.user_attrs[_SLOT])

    def unfinished(self) -> list[Point]:
        """The grid points of which not every trial has been made and has ended."""
        names = {study.study_name for study in optuna.get_all_study_summaries(self.storage.optuna)}
        return [
            point
            for point in self.plan.points
            if self._study_name(point) not in names
            or len(trials := self.trials(point)) < self.plan.spec.trials_per_point
            or not have_ended(trials)
        ]

    def claim(self) -> Claim | None:
        """Takes the next waiting trial; None where none waits."""
        with self.storage.alone():
            self._reclaim_dead()
            waiting = [
                (trial.user_attrs[_SLOT], index)
                for index, point in enumerate(self.plan.points)
                for trial in self.trials(point)
                if trial.state == TrialState.WAITING
            ]
            if not waiting:
                return None
            slot, index = min(waiting)
            point = self.plan.points[index]
            study = self.study(point, slot)
            space = {
                field: distribution(dimension, self.plan.takes_whole(field))
                for field, dimension in self.plan.spec.search.items()
            }
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # Optuna would have its own loop beat the heart
                trial = study.ask(space)
            self.storage.optuna.record_heartbeat(trial._trial_id)
            token, process = uuid.uuid4().hex, psutil.Process()
            began = process.create_time()
            slot, attempt = trial.user_attrs[_SLOT], trial.user_attrs[_ATTEMPT]
            owner = {
                "place": this_place(),
                "pid": process.pid,
                "began": began,
                "token": token,
                "attempt": attempt,
            }
            trial.set_user_attr(_OWNER, owner)
            _HELD.add(token)
            return Claim(point, slot, attempt, dict(trial.params), trial, token)

    def finish(self, claim: Claim, state: TrialState, value: float | None = None) -> bool:
        """Ends a trial as complete or pruned; False where another worker has taken it over."""
        with self.storage.alone():
            if not self._is_mine(claim):
                return False
            self.study(claim.point).tell(claim.trial, value, state)
            return True

    def give_back(self, claim: Claim) -> None:
        """Puts an interrupted trial back into the queue; it keeps its number of attempts."""
        with self.storage.alone():
            if self._is_mine(claim):
                self._wait_again(claim.trial._trial_id)

    def fail(self, claim: Claim, error: str) -> bool:
        """Puts a failed trial back for its second attempt, or ends it; returns whether it has ended."""
        with self.storage.alone():
            return self._is_mine(claim) and self._fail(claim.trial._trial_id, claim.attempt, error)

    def running(self) -> int:
        """How many trials some worker runs."""
        return sum(t.state == TrialState.RUNNING for point in self.plan.points for t in self.trials(point))

    def is_done(self) -> bool:
        """Whether every trial has ended."""
        return all(have_ended(self.trials(point)) for point in self.plan.points)

    def _reclaim_dead(self) -> None:
        """Fails the trials whose worker is dead: of this machine for certain, of another by its silence."""
        for point in self.plan.points:
            study = self.study(point)
            # Optuna's public fail_stale_trials ends such a trial; here it goes back into the queue.
            stale = set(self.storage.optuna._get_stale_trial_ids(study._study_id))
            for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                owner = trial.user_attrs.get(_OWNER)
                attempt = trial.user_attrs[_ATTEMPT]
                if owner is None or _was_lost(owner):
                    self._wait_again(trial._trial_id)
                elif _is_dead(owner) if owner["place"] == this_place() else trial._trial_id in stale:
                    self._fail(trial._trial_id, owner.get("attempt", attempt), "its worker died")

    def _fail(self, trial_id: int, attempt: int, error: str) -> bool:
        """Ends attempt number `attempt`; called again after it was cut short, it does no harm."""
        storage = self.storage.optuna
        storage.set_trial_user_attr(trial_id, _ERROR, error)
        if attempt < ATTEMPTS:
            storage.set_trial_user_attr(trial_id, _ATTEMPT, attempt + 1)
            self._wait_again(trial_id)
        else:
            storage.set_trial_state_values(trial_id, TrialState.FAIL)
        return attempt >= ATTEMPTS

    def _wait_again(self, trial_id: int) -> None:
        self.storage.optuna.set_trial_user_attr(trial_id, _OWNER, None)
        self.storage.optuna.set_trial_state_values(trial_id, TrialState.WAITING)

    def _is_mine(self, claim: Claim) -> bool:
        trial = self.storage.optuna.get_trial(claim.trial._trial_id)
        owner = trial.user_attrs[_OWNER]
        return trial.state == TrialState.RUNNING and owner is not None and owner["token"] == claim.token

    def _study_name(self, point: Point) -> str:
        return f"{self.plan.key}: {point.label}"

    @contextmanager
    def alive(self, claim: Claim) -> Iterator[None]:
        """Sends the heartbeats of the claim's worker, from a thread, while the block runs."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(HEARTBEAT_SECONDS):
                try:
                    self.storage.optuna.record_heartbeat(claim.trial._trial_id)
                except StorageInternalError:
                    continue  # the storage does not answer just now: the grace period allows for that

        thread = threading.Thread(target=beat, name="sweep heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def stored_sweeps(storage: Storage) -> dict[str, dict[str, Any]]:
    """Key of each sweep of a storage to its document, which `from_document` makes a plan of."""
    documents: dict[str, dict[str, Any]] = {}
    for study in optuna.get_all_study_summaries(storage.optuna):
        if _PLAN in study.user_attrs and _KEY in study.user_attrs:
            key, document = study.user_attrs[_KEY], study.user_attrs[_PLAN]
            if "variants" in document:  # some may have been added later
                variants = documents.get(key, document)["variants"] | document["variants"]
                document = {**document, "variants": variants}
            documents[key] = document
    return documents


def errors_of(trials: Sequence[FrozenTrial]) -> dict[int, str]:
    """Slot to what went wrong last, of trials that have failed at least once."""
    return {t.user_attrs[_SLOT]: t.user_attrs[_ERROR] for t in trials if _ERROR in t.user_attrs}


def have_ended(trials: Sequence[FrozenTrial]) -> bool:
    """Whether all of these trials have, in whatever way."""
    return all(trial.state.is_finished() for trial in trials)


def slot_of(trial: FrozenTrial) -> int:
    """A trial's number within its grid point."""
    return trial.user_attrs[_SLOT]


def _was_lost(owner: dict[str, Any]) -> bool:
    """Whether this process wrote a claim and never learned of it, because the storage was away."""
    mine = owner["place"] == this_place() and owner["pid"] == os.getpid()
    return mine and not _is_dead(owner) and owner["token"] not in _HELD


def _is_dead(owner: dict[str, Any]) -> bool:
    """Whether a claim's process, of this machine, is gone."""
    try:
        process = psutil.Process(owner["pid"])
        began, zombie = process.create_time(), process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    return zombie or abs(began - owner["began"]) > 1.0
