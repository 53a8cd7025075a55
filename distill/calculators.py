"""ASE calculators for students and teachers: thin shells, drop-in for any ASE script."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.outputs import Properties, all_outputs
from ase.stress import full_3x3_to_voigt_6_stress

from distill.data import Labels
from distill.errors import ConfigError
from distill.neighbors import DEFAULT_SKIN
from distill.single_point import CompiledSystem, equal_arrays
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
        # All that the method of the base class does besides is to make a folder.
        if atoms is not None:
            self._keep(atoms, system_changes)
        if self.atoms is None:
            raise ValueError("there are no atoms to calculate: pass them or attach the calculator")
        if "stress" in properties and not self.atoms.pbc.all():
            raise PropertyNotImplementedError(
                "stress needs a structure that is periodic in all directions"
            )
        self.results = self._evaluate(self.atoms)

    def _keep(self, atoms: Atoms, changes: Sequence[str]) -> None:
        """Have a copy of what is calculated."""
        self.atoms = atoms.copy()

    def _evaluate(self, atoms: Atoms) -> dict[str, Any]:
        labels = self._source.label([atoms])
        energy = float(labels.energy[0])
        results = {"energy": energy, "free_energy": energy, "forces": labels.forces[0]}
        if atoms.pbc.all() and labels.stress is not None:
            results["stress"] = full_3x3_to_voigt_6_stress(labels.stress[0])
        if labels.per_atom_energy is not None and "energies" in self.implemented_properties:
            results["energies"] = labels.per_atom_energy[0]
        if labels.uncertainty is not None and "uncertainty" in self.implemented_properties:
            results["uncertainty"] = labels.uncertainty[0]
        return results


VOIGT = np.array([0, 4, 8, 5, 2, 1])
"""xx, yy, zz, yz, xz, xy in a matrix row by row."""

CALLS_UNTIL_COMPILED = 100
"""A compilation takes seconds, which so many slower calls take too."""


class _StudentSource:
    """Labels of one structure after another: compiled for a system, or by `Student.label`."""

    def __init__(self, student: Student, dtype: Any, skin: float):
        self._student, self._dtype, self._skin = student, dtype, skin
        self.compiled: CompiledSystem | None = None
        self._reference = np.zeros(0)
        self._last = Atoms()
        self._calls = 0

    def label(self, structures: Sequence[Atoms]) -> Labels:
        return self._student.label(structures, dtype=self._dtype)

    def results(self, atoms: Atoms) -> dict[str, Any] | None:
        """Of the compiled system, by ASE's names; None where it does not serve `atoms`."""
        if not self._is_compiled(atoms):
            return None
        assert self.compiled is not None
        found = self.compiled(atoms)
        energies = found.per_atom_energy + self._reference
        energy = float(energies.sum())
        results = {
            "energy": energy,
            "free_energy": energy,
            "energies": energies,
            "forces": found.forces,
        }
        if self.compiled.periodic:
            symmetric = (found.virial + found.virial.T) * (0.5 / self.compiled.volume)
            results["stress"] = symmetric.reshape(-1)[VOIGT]
        if found.uncertainty is not None:
            results["uncertainty"] = found.uncertainty
        return results

    def _is_compiled(self, atoms: Atoms) -> bool:
        """Whether the compiled system serves `atoms`; it is made now if that is worth while."""
        if self.compiled is not None and self.compiled.serves(atoms):
            self._calls = 0
            return True
        same = np.array_equal(atoms.numbers, self._last.numbers)
        same = same and bool((atoms.pbc == self._last.pbc).all())
        self._calls = self._calls + 1 if same else 1
        self._last = atoms
        if len(atoms) == 0 or (self.compiled is not None and self._calls < CALLS_UNTIL_COMPILED):
            return False
        student = self._student
        potential = student.potential(atoms, skin=self._skin, dtype=self._dtype)
        self.compiled = CompiledSystem(potential, atoms, student.cutoff, self._skin)
        self._reference = student.reference_energies[student.species(atoms.numbers)]
        self._calls = 0
        return True


class StudentCalculator(_LabelCalculator):
    """ASE calculator of a student.

    The first system that it is called for is compiled: its atoms and cell may then move, the
    neighbour list stays on the device, and a call costs little more than its arithmetic. The cell
    is an argument of the compiled function and may change at every call. Structures with other
    elements, another order of atoms or other periodic directions, and cells that shrank since the
    compilation by more than the list leaves room for (about 2 % in any direction with a skin of a
    twelfth of the cutoff), are evaluated by `Student.label`: slower per call, but it seldom
    compiles. A system that is called for often in succession is compiled in place of the first.

    `results` also hold `uncertainty` `[n]`, expected force errors in eV/Å, if the student has it.

    Args:
        model: a bundle, a student, or the path of a bundle.
        dtype: precision; float64 needs jax's x64 mode.
        skin: of the neighbour list, Å.
        parameters: passed on to ASE.

    Raises:
        UnknownElementError: at a call, an element that the student does not know.
        UnsupportedStructureError: at a call, positions or cell that are not finite, or a cell that
            is singular along a periodic direction.
    """

    implemented_properties: ClassVar[list[str]] = [
        "energy",
        "free_energy",
        "energies",
        "forces",
        "stress",
        "uncertainty",
    ]

    def __init__(
        self,
        model: str | Path | Bundle | Student,
        *,
        dtype: Any = np.float32,
        skin: float = DEFAULT_SKIN,
        **parameters: Any,
    ):
        if isinstance(model, (str, Path)):
            model = load_bundle(model)
        self.student = model.student if isinstance(model, Bundle) else model
        self._copy: Atoms | None = None
        self._moved: list[str] | None = None
        super().__init__(_StudentSource(self.student, dtype, skin), **parameters)

    @property
    def compiled(self) -> CompiledSystem | None:
        """What serves the calls for one system, see above; None before the first call."""
        compiled: CompiledSystem | None = self._source.compiled
        return compiled

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What changed since the last calculation, of all that a student sees. See ASE.

        Compared bit for bit, which takes a fraction of the time of ASE's tolerant comparison.
        """
        before = self.atoms
        if before is None:
            return list(all_changes)
        pairs = {
            "positions": (before.positions, atoms.positions),
            "numbers": (before.numbers, atoms.numbers),
            "cell": (before.cell.array, atoms.cell.array),
            "pbc": (before.pbc, atoms.pbc),
        }
        changes = [name for name, (old, new) in pairs.items() if not equal_arrays(old, new)]
        self._moved = changes if changes == ["positions"] and before is self._copy else None
        return changes

    def _keep(self, atoms: Atoms, changes: Sequence[str]) -> None:
        """A copy, of the arrays alone where `check_state` has just found that all else is the same.

        `Atoms.copy` takes longer than all else that a call does on the host.
        """
        if self._copy is not None and self._moved is not None and changes is self._moved:
            kept = copy(self._copy)
            kept.arrays = {name: array.copy() for name, array in atoms.arrays.items()}
        else:
            kept = atoms.copy()
        self.atoms = self._copy = kept

    def _evaluate(self, atoms: Atoms) -> dict[str, Any]:
        results: dict[str, Any] | None = self._source.results(atoms)
        return super()._evaluate(atoms) if results is None else results

    def export_properties(self) -> Properties:
        """Those results that ASE knows by name."""
        known = {name: value for name, value in self.results.items() if name in all_outputs}
        return Properties(known)


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
