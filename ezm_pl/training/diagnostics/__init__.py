"""What a checkpoint's model, values, policy and replay are worth, with the simulator as the judge."""

from ezm_pl.training.diagnostics.diagnose import Diagnostics, TaskDiagnosis

__all__ = ["Diagnostics", "TaskDiagnosis"]
