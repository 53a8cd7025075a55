"""The ASE calculators: numbers, ASE's conventions and caching, optimisers and dynamics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from builders import ethanol, small_student, triclinic_cell

from distill.calculators import StudentCalculator, TeacherCalculator
from distill.errors import UnknownElementError
from distill.students import save_bundle
from distill.teachers import load

pytestmark = pytest.mark.usefixtures("quick_compilation")

OPTIONS = {"max_l": 1, "n_channels": 2, "n_triples": 0, "hidden": (4,)}


class CountingTeacher:
    """Harmonic springs to the origin: a teacher with an analytic answer that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def label(self, structures: list[Atoms]) -> Any:
        from distill.data.labels import Labels

        self.calls += 1
        energy = np.array([0.5 * (a.positions**2).sum() for a in structures])
        return Labels(energy, [-a.positions for a in structures])


def student_calculator(**options: Any) -> StudentCalculator:
    return StudentCalculator(small_student(**OPTIONS), dtype=np.float64, **options)


def with_calculator(atoms: Atoms, calculator: Any) -> Atoms:
    atoms.calc = calculator
    return atoms


def set_velocities(atoms: Atoms, temperature: float, seed: int) -> None:
    deviation = np.sqrt(units.kB * temperature / atoms.get_masses())[:, None]
    atoms.set_velocities(deviation * np.random.default_rng(seed).standard_normal((len(atoms), 3)))


def test_results_are_those_of_the_student(x64):
    student = small_student(**OPTIONS)
    atoms = with_calculator(triclinic_cell(), student_calculator())
    labels = student.label([atoms], dtype=np.float64)
    assert atoms.get_potential_energy() == pytest.approx(labels.energy[0], rel=1e-14)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    np.testing.assert_allclose(atoms.get_forces(), labels.forces[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(atoms.get_stress(voigt=False), labels.stress[0], atol=1e-15)
    assert atoms.get_potential_energies().sum() == pytest.approx(labels.energy[0], rel=1e-13)


def test_forces_and_stress_equal_the_numerical_ones_of_ase(x64):
    atoms = with_calculator(triclinic_cell(), student_calculator())
    forces, stress = atoms.get_forces(), atoms.get_stress()
    numerical = calculate_numerical_forces(atoms, eps=1e-4, iatoms=[0, 4])
    np.testing.assert_allclose(forces[[0, 4]], numerical, rtol=0, atol=1e-6 * np.abs(forces).max())
    numerical = calculate_numerical_stress(atoms, eps=1e-4)
    np.testing.assert_allclose(stress, numerical, rtol=0, atol=1e-6 * np.abs(stress).max())


def test_bundle_by_path_gives_the_same_as_the_student(tmp_path):
    student = small_student(**OPTIONS)
    path = save_bundle(student, tmp_path / "bundle", {})
    atoms = ethanol()
    energy = with_calculator(atoms, StudentCalculator(path)).get_potential_energy()
    assert energy == pytest.approx(student.label([atoms]).energy[0], abs=1e-5)
    assert energy == with_calculator(atoms, StudentCalculator(str(path))).get_potential_energy()


def test_other_sizes_compositions_and_cells_one_after_the_other():
    student = small_student(**OPTIONS)
    calculator = StudentCalculator(student)
    for atoms in (ethanol(), molecule("H2O"), triclinic_cell(), Atoms("O"), ethanol(1)):
        expected = student.label([atoms])
        atoms.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(expected.energy[0], abs=1e-4)
        assert atoms.get_forces().shape == (len(atoms), 3)
        np.testing.assert_allclose(atoms.get_forces(), expected.forces[0], atol=1e-5)


@pytest.mark.parametrize("pbc", [(False,) * 3, (True, True, False)])
def test_stress_needs_three_periodic_directions(pbc):
    atoms = with_calculator(triclinic_cell(), StudentCalculator(small_student(**OPTIONS)))
    atoms.pbc = pbc
    with pytest.raises(PropertyNotImplementedError, match="periodic in all directions"):
        atoms.get_stress()
    assert np.isfinite(atoms.get_potential_energy()) and np.isfinite(atoms.get_forces()).all()
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()
    atoms.pbc = True
    assert np.isfinite(atoms.get_stress()).all()


def test_nothing_is_calculated_twice():
    teacher = CountingTeacher()
    atoms = with_calculator(ethanol(), TeacherCalculator(teacher))
    atoms.get_forces(), atoms.get_potential_energy(), atoms.get_forces()
    assert teacher.calls == 1
    atoms.positions[0] += 0.1
    atoms.get_potential_energy(), atoms.get_forces()
    assert teacher.calls == 2
    copy = atoms.copy()
    copy.calc = atoms.calc
    copy.get_forces()
    assert teacher.calls == 2


def test_results_do_not_change_when_the_caller_writes_into_them():
    atoms = with_calculator(ethanol(), TeacherCalculator(CountingTeacher()))
    forces = atoms.get_forces()
    forces[:] = 0
    np.testing.assert_allclose(atoms.get_forces(), -atoms.positions)


def test_stress_of_a_teacher_that_has_none_is_refused():
    atoms = with_calculator(triclinic_cell(), TeacherCalculator(CountingTeacher()))
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_potential_energies()


def test_no_atoms_and_unknown_elements():
    with pytest.raises(ValueError, match="no atoms"):
        StudentCalculator(small_student(**OPTIONS)).calculate()
    atoms = with_calculator(Atoms("Cl"), StudentCalculator(small_student(**OPTIONS)))
    with pytest.raises(UnknownElementError, match="Cl"):
        atoms.get_potential_energy()


def test_dynamics_with_a_student_conserve_energy(x64):
    drifts, start = [], ethanol()
    set_velocities(start, 100, 0)
    for timestep in (0.4, 0.2):
        run = with_calculator(start.copy(), student_calculator())
        before = run.get_total_energy()
        VelocityVerlet(run, timestep * units.fs).run(round(16 / timestep))
        drifts.append(abs(run.get_total_energy() - before))
    assert drifts[1] < drifts[0] < 1e-3


@pytest.fixture(scope="module")
def teacher(demo_teacher_path):
    return load(f"fennol:{demo_teacher_path}")


def test_teacher_by_name_gives_its_labels(teacher, demo_teacher_path):
    atoms = with_calculator(triclinic_cell(), TeacherCalculator(f"fennol:{demo_teacher_path}"))
    labels = teacher.label([atoms])
    stress = atoms.get_stress(voigt=False)
    assert atoms.get_potential_energy() == pytest.approx(labels.energy[0], abs=1e-3)
    np.testing.assert_allclose(atoms.get_forces(), labels.forces[0], atol=1e-4)
    np.testing.assert_allclose(stress, labels.stress[0], atol=1e-5)


def test_relaxation_and_dynamics_with_a_teacher(teacher):
    atoms = with_calculator(molecule("CH3CH2OH"), TeacherCalculator(teacher))
    start = atoms.get_potential_energy()
    assert BFGS(atoms, logfile=None).run(fmax=0.05, steps=60)
    assert atoms.get_potential_energy() < start
    assert 0.93 < atoms.get_distance(2, 3) < 1.01, "the O-H bond, Å"
    set_velocities(atoms, 300, 1)
    before = atoms.get_total_energy()
    VelocityVerlet(atoms, 0.5 * units.fs).run(40)
    assert abs(atoms.get_total_energy() - before) < 0.01
