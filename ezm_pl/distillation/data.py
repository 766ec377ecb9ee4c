"""The LightningDataModule of a distillation: labelled rows and the thread that makes them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import lightning as L
from torch.utils.data import DataLoader, IterableDataset

from ezm_pl.distillation.labeller import Labeller
from ezm_pl.distillation.rows import Labelled, Rows
from ezm_pl.distillation.student import Student
from ezm_pl.distillation.teacher import Teacher
from ezm_pl.selfplay import Pacing, WeightStore
from ezm_pl.spec.distillation import Distillation
from ezm_pl.spec.seeds import stream

_LABELLING_SHARE = 0.8
"""Of the updates, in which rows are made; the rest learns from all of them."""
_MAX_LEAD = 0.02
"""Share of the run by which updates may run ahead of the rows before they wait."""


class _Batches(IterableDataset[Labelled]):
    """Endless batches; waits for the labelling thread."""

    def __init__(self, data: DistillationData) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Labelled]:
        data = self.data
        while (labeller := data.labeller) is not None:
            labeller.check()
            if data.rows.least and data.pacing.wait_to_learn(timeout=0.5):
                yield data.rows.sample(data.spec.batch_size)
            elif data.trainer is not None and data.trainer.should_stop:
                return
            elif not data.rows.least:
                time.sleep(0.05)  # the labeller has the processor


class DistillationData(L.LightningDataModule):
    """Batches of labelled rows, while a background thread makes more.

    Args:
        spec: of the distillation.
        teacher: who labels.

    Attributes:
        rows: all labelled observations so far.
        store: the student's newest weights.
        pacing: keeps labelling and learning in step; counts the updates.
        labeller: while there is training.
    """

    def __init__(self, spec: Distillation, teacher: Teacher) -> None:
        super().__init__()
        self.spec, self.teacher = spec, teacher
        self.rows = Rows(teacher.sizes, spec.rows, stream(spec.seed, "rows"))
        self.store = WeightStore()
        self.pacing = Pacing(max(1, int(_LABELLING_SHARE * spec.updates)), spec.rows, _MAX_LEAD)
        self.labeller: Labeller | None = None
        self._env_steps = 0

    @property
    def env_steps(self) -> int:
        """Control steps per task that have been played for rows."""
        return self._env_steps if self.labeller is None else self.labeller.env_steps

    def start(self, student: Student) -> None:
        """Starts the labelling thread, from where an earlier session stopped if there was one."""
        self.pacing.collected(self.rows.least)
        self.labeller = Labeller(
            self.spec, self.teacher, student, self.rows, self.store, self.pacing, env_steps=self._env_steps
        )
        self.labeller.start()

    def train_dataloader(self) -> DataLoader[Labelled]:
        """Endless batches."""
        return DataLoader(_Batches(self), batch_size=None)

    def val_dataloader(self) -> list[int]:
        """A single item: the whole evaluation is one step."""
        return [0]

    def teardown(self, stage: str) -> None:
        """Stops the thread, also after an error."""
        if stage == "fit" and self.labeller is not None:
            self.labeller.stop()
            self._env_steps, self.labeller = self.labeller.env_steps, None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of the rows: all of them, so that no label is searched for twice."""
        return {**self.rows.state_dict(), "env_steps": self.env_steps, "updates": self.pacing.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self.rows.load_state_dict(state_dict)
        self._env_steps = state_dict["env_steps"]
        self.pacing.updated(state_dict["updates"])
