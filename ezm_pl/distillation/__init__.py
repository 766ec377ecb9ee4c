"""Distillation: a light policy that imitates a trained agent's planner."""

from ezm_pl.distillation.fit import DistillResult, distill
from ezm_pl.distillation.module import Distilled
from ezm_pl.distillation.student import Student
from ezm_pl.distillation.student_file import STUDENT, is_student, load_student
from ezm_pl.distillation.teacher import Teacher

__all__ = [
    "STUDENT",
    "DistillResult",
    "Distilled",
    "Student",
    "Teacher",
    "distill",
    "is_student",
    "load_student",
]
