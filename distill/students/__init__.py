"""Students: small, fast potentials as Flax modules, their specs and their bundles."""

from distill.students.bundle import Bundle, load_bundle, save_bundle
from distill.students.initialise import initialise_student
from distill.students.spec import ARCHITECTURES, SIZES, StudentSpec
from distill.students.student import Student
from distill.students.uncertainty import Uncertainty, fit_uncertainty, reliability

__all__ = [
    "ARCHITECTURES",
    "Bundle",
    "SIZES",
    "Student",
    "StudentSpec",
    "Uncertainty",
    "fit_uncertainty",
    "initialise_student",
    "load_bundle",
    "reliability",
    "save_bundle",
]
