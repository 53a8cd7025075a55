"""Teachers: potentials that label structures. `load("fennol:ani1ccx")` gives one."""

from distill.teachers.base import HessianProduct, Teacher, TeacherInfo, check_structures
from distill.teachers.load import load
from distill.teachers.weights import MODELS_VARIABLE, WeightsError

__all__ = [
    "MODELS_VARIABLE",
    "HessianProduct",
    "Teacher",
    "TeacherInfo",
    "WeightsError",
    "check_structures",
    "load",
]
