"""ASE calculators for students and teachers: thin shells, drop-in for any ASE script."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from distill.errors import ConfigError
from distill.students import Bundle, Student, load_bundle
from distill.teachers import Teacher
from distill.teachers import load as load_teacher


class _LabelCalculator(Calculator):
    """Calculator of anything with `label(structures) -> Labels`."""

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "forces", "stress"]

    def __init__(self, source: Any, **parameters: Any):
        super().__init__(**parameters)
        self._source = source

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """All properties at once: they come from one differentiation. See ASE."""
        super().calculate(atoms, properties, system_changes)
        if self.atoms is None:
            raise ValueError("there are no atoms to calculate: pass them or attach the calculator")
        if "stress" in properties and not self.atoms.pbc.all():
            raise PropertyNotImplementedError(
                "stress needs a structure that is periodic in all directions"
            )
        labels = self._source.label([self.atoms])
        energy = float(labels.energy[0])
        self.results = {"energy": energy, "free_energy": energy, "forces": labels.forces[0]}
        if self.atoms.pbc.all() and labels.stress is not None:
            self.results["stress"] = full_3x3_to_voigt_6_stress(labels.stress[0])
        if labels.per_atom_energy is not None and "energies" in self.implemented_properties:
            self.results["energies"] = labels.per_atom_energy[0]


class _StudentSource:
    def __init__(self, student: Student, dtype: Any):
        self._student, self._dtype = student, dtype

    def label(self, structures: Sequence[Atoms]) -> Any:
        return self._student.label(structures, dtype=self._dtype)


class StudentCalculator(_LabelCalculator):
    """ASE calculator of a student.

    Args:
        model: a bundle, a student, or the path of a bundle.
        dtype: precision; float64 needs jax's x64 mode.
        parameters: passed on to ASE.
    """

    implemented_properties: ClassVar[list[str]] = [
        "energy",
        "free_energy",
        "energies",
        "forces",
        "stress",
    ]

    def __init__(
        self,
        model: str | Path | Bundle | Student,
        *,
        dtype: Any = np.float32,
        **parameters: Any,
    ):
        if isinstance(model, (str, Path)):
            model = load_bundle(model)
        self.student = model.student if isinstance(model, Bundle) else model
        super().__init__(_StudentSource(self.student, dtype), **parameters)


class TeacherCalculator(_LabelCalculator):
    """ASE calculator of a teacher.

    Args:
        model: a teacher or its name, see `distill.teachers.load`; a list of names makes a
            committee.
        dtype: precision when `model` is a name.
        parameters: passed on to ASE.
    """

    def __init__(
        self, model: str | Sequence[str] | Teacher, *, dtype: Any = np.float32, **parameters: Any
    ):
        self.teacher: Teacher = (
            load_teacher(model, dtype=dtype)
            if isinstance(model, str) or isinstance(model, Sequence)
            else model
        )
        super().__init__(self.teacher, **parameters)


class _KindCalculator(TeacherCalculator):
    """Calculator of one kind of teacher, whose name may leave out the kind."""

    kind: ClassVar[str]

    def __init__(self, model: str | Path | Teacher, *, dtype: Any = np.float32, **parameters: Any):
        if isinstance(model, (str, Path)):
            name = str(model)
            model = name if name.startswith(f"{self.kind}:") else f"{self.kind}:{name}"
        super().__init__(model, dtype=dtype, **parameters)
        if self.teacher.info.kind != self.kind:
            raise ConfigError(
                f"{type(self).__name__} is for {self.kind} teachers, not for "
                f"{self.teacher.info.name}: use TeacherCalculator"
            )


class FeNNolTeacherCalculator(_KindCalculator):
    """ASE calculator of a FeNNol teacher.

    Args:
        model: a teacher, a name (`fennol:ani1ccx` or `ani1ccx`) or the path of a `.fnx` file.
        dtype: precision when `model` is a name; float64 needs jax's x64 mode.
        parameters: passed on to ASE.

    Raises:
        ConfigError: a teacher of another kind; see also `distill.teachers.load`.
    """

    kind = "fennol"


class OrbTeacherCalculator(_KindCalculator):
    """ASE calculator of an Orb teacher.

    Args:
        model: a teacher, a name (`orb:orb-v2` or `orb-v2`) or the path of a checkpoint.
        dtype: precision when `model` is a name.
        parameters: passed on to ASE.

    Raises:
        ConfigError: a teacher of another kind; see also `distill.teachers.load`.
    """

    kind = "orb"
