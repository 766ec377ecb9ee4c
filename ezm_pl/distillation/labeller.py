"""The background thread that makes rows: replay first, then what the student visits (DAgger).

Source: Ross, Gordon and Bagnell, "A Reduction of Imitation Learning and Structured Prediction to No-Regret
Online Learning" (2011), in its form without parameters: the planner's own visits first, the student's then.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray

from ezm_pl.distillation.rows import Rows
from ezm_pl.distillation.student import Student
from ezm_pl.distillation.teacher import Teacher
from ezm_pl.selfplay import BackgroundError, BackgroundThread, Pacing, WeightStore
from ezm_pl.spec.distillation import Distillation
from ezm_pl.spec.seeds import stream_int

_CHUNK = 64
"""Observations of replay per task that are searched at once."""


class LabellerError(BackgroundError):
    """The labelling thread failed; its own exception is the cause."""


class Labeller(BackgroundThread):
    """Fills `rows` to their capacity, in step with the updates.

    Args:
        spec: how many rows of which kind.
        teacher: who labels.
        student: who plays; weights come from `store`.
        rows: where labelled observations go.
        store: the student's newest weights.
        pacing: when to wait.
        env_steps: control steps per task that an earlier session has played.

    Attributes:
        env_steps: control steps per task played so far.
    """

    def __init__(
        self,
        spec: Distillation,
        teacher: Teacher,
        student: Student,
        rows: Rows,
        store: WeightStore,
        pacing: Pacing,
        *,
        env_steps: int = 0,
    ) -> None:
        super().__init__(pacing, name="ezm-labeller", failed="labelling failed", error=LabellerError)
        self.spec, self.teacher, self.rows, self.store = spec, teacher, rows, store
        self.student = copy.deepcopy(student).to(teacher.device).eval()
        self.env_steps = env_steps

    def _work(self) -> None:
        wanted, planned = self.spec.replay_rows, 0
        if self.rows.least < wanted:
            replay = self.teacher.replay(wanted)
            if replay is None:
                planned = wanted
            else:
                self._label_replay(replay)
        if self.rows.least < self.rows.capacity and not self._stop.is_set():
            self._play(planned)

    def _label_replay(self, replay: list[NDArray[np.float32]]) -> None:
        """Labels replay `[n, O]` of each task in random order; a resumed session goes on where it was."""
        order = np.random.default_rng(stream_int(self.spec.seed, "order of replay"))
        replay = [order.permutation(each) for each in replay]
        while self.rows.least < self.spec.replay_rows and self._may_go_on():
            first = int(self.rows.least)
            chunks = [each[first : first + _CHUNK] for each in replay]
            if not all(len(chunk) for chunk in chunks):
                return  # a task's replay is used up; visits make up for it
            task = np.repeat(np.arange(len(chunks)), [len(chunk) for chunk in chunks])
            self._add(np.concatenate(chunks), task)

    def _play(self, planned: int) -> None:
        """Labels what environments show, under the planner for `planned` rows, then under the student."""
        seed = stream_int(self.spec.seed, f"environments from row {self.rows.least}")
        envs = self.teacher.environments(self.spec.num_envs, seed)
        task = np.asarray(envs.task_ids)
        tasks = torch.as_tensor(task, device=self.teacher.device)
        steps = np.zeros(len(self.rows.count))
        version, played_before = -1, self.env_steps
        try:
            observation, _ = envs.reset()
            while self.rows.least < self.rows.capacity and self._may_go_on():
                newest = self.store.newer_than(version)
                if newest is not None:
                    version = newest[0]
                    self.student.load_state_dict(newest[1])
                action = self._add(observation, task)
                if self.rows.least > planned:
                    with torch.inference_mode():
                        given = torch.as_tensor(observation, device=self.teacher.device)
                        action = self.student(given, tasks).cpu().numpy()
                observation, _, _, _, info = envs.step(action)
                steps += np.bincount(task, info["steps"], len(steps))
                self.env_steps = played_before + int(steps.mean())
        finally:
            envs.close()

    def _may_go_on(self) -> bool:
        """Waits until the updates have caught up; False when the thread is to stop."""
        return self.pacing.wait_to_collect() and not self._stop.is_set()

    def _add(self, observation: NDArray[np.float32], task: NDArray[np.int64]) -> NDArray[np.float32]:
        """Labels observations `[B, O]`, adds them to the rows, and returns the labels `[B, A]`."""
        action = self.teacher.label(observation, task)
        self.rows.add(observation, task, action)
        self.pacing.collected(self.rows.least)
        return action
