"""Students: small, fast potentials as Flax modules, their specs and their bundles."""

from distill.students.bundle import Bundle, load_bundle, save_bundle
from distill.students.initialise import initialise_student
from distill.students.spec import ARCHITECTURES, StudentSpec
from distill.students.student import Student

__all__ = [
    "ARCHITECTURES",
    "Bundle",
    "Student",
    "StudentSpec",
    "initialise_student",
    "load_bundle",
    "save_bundle",
]
