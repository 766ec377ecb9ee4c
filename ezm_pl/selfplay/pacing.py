"""Keeps collection and learning in step (docs/algorithm.md, "Self-play")."""

from __future__ import annotations

import threading


class Pacing:
    """Collection never runs ahead of the updates, nor the updates far ahead of collection.

    Both count as shares of their budgets; random warm-up steps do not count.

    Args:
        total_updates: updates during which there is collection.
        total_steps: control steps per task to be collected after warm-up.
        max_lead: share of the run by which updates may be ahead before they wait.
    """

    def __init__(self, total_updates: int, total_steps: int, max_lead: float) -> None:
        self.total_updates, self.total_steps, self.max_lead = total_updates, total_steps, max_lead
        self._updates = 0
        self._steps = 0.0
        self._stopped = False
        self._changed = threading.Condition()

    @property
    def finished(self) -> bool:
        """Whether all steps have been collected."""
        return self._steps >= self.total_steps

    @property
    def progress(self) -> float:
        """Share of the updates done, in [0, 1]."""
        return min(1.0, self._updates / self.total_updates)

    @property
    def updates(self) -> int:
        """Updates done in all."""
        return self._updates

    def updated(self, updates: int) -> None:
        """The learner has done `updates` updates in all."""
        with self._changed:
            self._updates = updates
            self._changed.notify_all()

    def collected(self, steps: float) -> None:
        """The collector has `steps` control steps per task in all, warm-up left out."""
        with self._changed:
            self._steps = steps
            self._changed.notify_all()

    def stop(self) -> None:
        """Wakes all waiting threads; nothing waits from now on."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def wait_to_collect(self) -> bool:
        """Blocks the collector until it may take a step; False when it is to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self.may_collect())
            return not self._stopped

    def may_collect(self) -> bool:
        """Whether collection is not ahead of the updates, and there is still something to collect."""
        return not self.finished and self._steps / self.total_steps <= self._updates / self.total_updates

    def may_learn(self) -> bool:
        """Whether the updates done are ahead of collection by no more than `max_lead`, or it is over."""
        ahead = self._updates / self.total_updates - self._steps / self.total_steps
        return self.finished or ahead <= self.max_lead

    def wait_to_learn(self, timeout: float) -> bool:
        """Blocks the learner until it may update, at most `timeout` seconds; whether it may."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self.may_learn(), timeout)
            return self.may_learn()


class Lockstep(Pacing):
    """Collector and learner take turns, so that what each of them sees does not depend on their speed.

    Before the learner draws a batch, the collector takes all the steps that it may take; during the update
    it takes none.
    """

    _parked = False

    def wait_to_collect(self) -> bool:
        """Blocks the collector until the learner lets it take a step; False when it is to stop."""
        with self._changed:
            self._parked = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._stopped or not self._parked)
            return not self._stopped

    def wait_to_learn(self, timeout: float) -> bool:
        """Has the collector take its steps, for at most `timeout` seconds; whether it has taken them all."""
        with self._changed:
            self._changed.wait_for(self._caught_up, timeout)
            return self._parked and self.may_learn()

    def _caught_up(self) -> bool:
        if self._parked and self.may_collect():
            self._parked = False
            self._changed.notify_all()
        return self._stopped or self._parked
