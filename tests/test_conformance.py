"""What every teacher, and the calculator of every student, must do.

A new teacher joins the suite by one line in `SUBJECTS`.
"""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, fcc111, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.md.langevin import Langevin
from ase.md.nptberendsen import NPTBerendsen
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from ase.phonons import Phonons
from builders import random_rotation, small_student, water_box

from distill.calculators import StudentCalculator, TeacherCalculator
from distill.errors import DistillError, UnknownElementError
from distill.teachers import Teacher, load

MODELS = Path(__file__).resolve().parent.parent / "experiments" / "models"


@dataclass(frozen=True)
class Subject:
    """A calculator under test.

    Attributes:
        make: `(dtype) -> calculator`.
        metal: whether it is for copper rather than for water.
        slow: whether a large structure costs too much for the fast tests.
    """

    make: Callable[[Any], Any]
    metal: bool = False
    slow: bool = False


def teacher(*names: str, extra: str = "") -> Callable[[Any], Any]:
    def make(dtype: Any) -> Any:
        if extra:
            pytest.importorskip(extra)
        return TeacherCalculator(names[0] if len(names) == 1 else list(names), dtype=dtype)

    return make


SUBJECTS = {
    "student": Subject(lambda dtype: StudentCalculator(small_student(), dtype=dtype)),
    "fennol": Subject(teacher(f"fennol:{MODELS / 'demo_chno.fnx'}")),
    "orb": Subject(teacher(f"orb:{MODELS / 'compact_orb.ckpt'}", extra="orb_models")),
    "gfn2": Subject(
        teacher("ase:tblite.ase:TBLite?method=GFN2-xTB&verbosity=0", extra="tblite"), slow=True
    ),
    "emt": Subject(teacher("ase:ase.calculators.emt:EMT"), metal=True),
    "committee": Subject(
        teacher("ase:ase.calculators.emt:EMT", "ase:ase.calculators.emt:EMT?fixed_cutoff=true"),
        metal=True,
    ),
}


@pytest.fixture(scope="module", params=SUBJECTS)
def subject(request) -> Subject:
    return SUBJECTS[request.param]


@pytest.fixture(scope="module")
def precise(subject) -> Any:
    """The calculator in double precision, for differences."""
    import jax

    with jax.enable_x64(True):
        yield subject.make(np.float64)


@pytest.fixture
def calculator(subject, precise, x64) -> Any:
    precise.reset()
    return precise


def small(subject: Subject) -> Atoms:
    """A molecule."""
    atoms = (
        Atoms("Cu3", [[0, 0, 0], [2.5, 0, 0], [0.3, 2.4, 0.2]])
        if subject.metal
        else (molecule("CH3OH"))
    )
    atoms.rattle(0.05, seed=1)
    return atoms


def crystal(subject: Subject) -> Atoms:
    """A small skewed cell, narrower than two cutoffs."""
    if subject.metal:
        atoms = bulk("Cu").repeat((2, 1, 1))
    else:
        atoms = molecule("H2O") + molecule("CH3OH")
        atoms.positions[3:] += [2.6, 1.9, 1.4]
        atoms.set_cell([[5.6, 0.0, 0.0], [1.7, 5.1, 0.0], [-1.2, 0.9, 5.4]])
        atoms.pbc = True
    atoms.rattle(0.05, seed=2)
    return atoms


def set_velocities(atoms: Atoms, temperature: float, rng: np.random.Generator) -> None:
    deviation = np.sqrt(units.kB * temperature / atoms.get_masses())[:, None]
    atoms.set_velocities(deviation * rng.standard_normal((len(atoms), 3)))


def test_units_shapes_and_types(subject, calculator):
    atoms = crystal(subject)
    atoms.calc = calculator
    energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    assert isinstance(energy, float) and np.isfinite(energy)
    assert forces.shape == (len(atoms), 3) and forces.dtype == np.float64
    assert stress.shape == (6,) and stress.dtype == np.float64
    assert atoms.get_potential_energy(force_consistent=True) == energy
    # eV/Å: a bond stretched by 0.15 Å pulls with electronvolts, not with hartrees or kcal/mol.
    pair = Atoms("Cu2", [[0, 0, 0], [2.6, 0, 0]]) if subject.metal else molecule("H2O")
    pair.positions[1] *= 1.15
    pair.calc = calculator
    assert 0.01 < np.abs(pair.get_forces()).max() < 50


def test_forces_are_the_gradient_of_the_energy(subject, calculator):
    for atoms in (small(subject), crystal(subject)):
        atoms.calc = calculator
        forces = atoms.get_forces()
        numerical = calculate_numerical_forces(atoms, eps=1e-3, iatoms=[0, 1])
        scale = max(np.abs(forces).max(), 1.0)
        np.testing.assert_allclose(forces[:2], numerical, rtol=0, atol=2e-4 * scale)


def test_stress_is_the_derivative_with_respect_to_strain(subject, calculator):
    atoms = crystal(subject)
    atoms.calc = calculator
    stress = atoms.get_stress()
    numerical = calculate_numerical_stress(atoms, eps=1e-4)
    np.testing.assert_allclose(stress, numerical, rtol=0, atol=2e-3 * np.abs(stress).max())


def test_results_follow_the_atoms(subject, calculator):
    atoms = small(subject)
    atoms.calc = calculator
    first = atoms.get_potential_energy(), atoms.get_forces()
    seen = []
    original = calculator.calculate

    def count(*arguments, **options):
        seen.append(1)
        return original(*arguments, **options)

    calculator.calculate = count
    try:
        atoms.get_potential_energy(), atoms.get_forces()
        assert not seen, "nothing changed, nothing is calculated"
        atoms.positions[0, 0] += 0.05
        assert atoms.get_potential_energy() != first[0] and len(seen) == 1
        atoms.positions[0, 0] -= 0.05
        assert atoms.get_potential_energy() == pytest.approx(first[0], abs=1e-7)
        forces = atoms.get_forces()
        forces[:] = 0
        np.testing.assert_allclose(atoms.get_forces(), first[1], atol=1e-6)
    finally:
        del calculator.calculate


def test_one_system_after_another(subject, calculator):
    """Other sizes and compositions; the first one again gives the first result."""
    others = [crystal(subject), small(subject)]
    others += [Atoms("Cu"), bulk("Cu", cubic=True)] if subject.metal else [molecule("H2O")]
    energies = []
    for atoms in [*others, *others]:
        atoms.calc = calculator
        energies.append(atoms.get_potential_energy())
        assert atoms.get_forces().shape == (len(atoms), 3)
    half = len(others)
    np.testing.assert_allclose(energies[:half], energies[half:], rtol=0, atol=1e-6)


def test_wrapping_and_order_change_nothing(subject, calculator):
    atoms = crystal(subject)
    atoms.calc = calculator
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    moved = atoms.copy()
    moved.positions[::2] += 3 * atoms.cell.array[0] - atoms.cell.array[2]
    order = np.random.default_rng(0).permutation(len(atoms))
    moved = moved[order]
    moved.calc = calculator
    assert moved.get_potential_energy() == pytest.approx(energy, abs=1e-5)
    np.testing.assert_allclose(moved.get_forces(), forces[order], atol=1e-4)


def test_rotation_turns_forces(subject, calculator, request):
    if "orb" in request.node.callspec.id:
        pytest.skip("Orb learns invariance, it does not have it")
    atoms, rotation = small(subject), random_rotation(3)
    atoms.calc = calculator
    forces, energy = atoms.get_forces(), atoms.get_potential_energy()
    turned = atoms.copy()
    turned.positions = atoms.positions @ rotation
    turned.calc = calculator
    assert turned.get_potential_energy() == pytest.approx(energy, abs=1e-6)
    np.testing.assert_allclose(turned.get_forces(), forces @ rotation, atol=1e-5)


def test_stress_of_isolated_atoms_is_refused(subject, calculator):
    atoms = small(subject)
    atoms.calc = calculator
    with pytest.raises(PropertyNotImplementedError, match="periodic"):
        atoms.get_stress()
    assert np.isfinite(atoms.get_forces()).all()


def test_slabs_are_treated_or_refused(subject, calculator):
    atoms = fcc111("Cu", (2, 2, 2), vacuum=6.0) if subject.metal else crystal(subject)
    atoms.pbc = (True, True, False)
    atoms.calc = calculator
    source = getattr(calculator, "teacher", None)
    if source is not None and not source.info.partly_periodic:
        with pytest.raises(DistillError, match="periodic"):
            atoms.get_forces()
    else:
        assert np.isfinite(atoms.get_forces()).all()


def test_elements_it_does_not_know(subject, calculator):
    if isinstance(calculator, TeacherCalculator) and calculator.teacher.info.kind in (
        "ase",
        "committee",
    ):
        pytest.skip("an ASE calculator says itself what it knows")
    atoms = Atoms("Xe")
    atoms.calc = calculator
    with pytest.raises(UnknownElementError, match="Xe"):
        atoms.get_potential_energy()


def test_relaxation_and_dynamics(subject, calculator):
    atoms = small(subject)
    atoms.calc = calculator
    if isinstance(calculator, StudentCalculator):
        atoms = molecule("CH3OH")  # random parameters: no minimum near by
        atoms.calc = calculator
    else:
        start = atoms.get_potential_energy()
        BFGS(atoms, logfile=None).run(fmax=0.1, steps=30)
        assert atoms.get_potential_energy() < start
    rng = np.random.default_rng(0)
    set_velocities(atoms, 100, rng)
    drifts = []
    for timestep in (0.5, 0.25):
        run = atoms.copy()
        run.calc = calculator
        before = run.get_total_energy()
        VelocityVerlet(run, timestep * units.fs).run(round(10 / timestep))
        drifts.append(abs(run.get_total_energy() - before))
    assert drifts[1] < max(0.6 * drifts[0], 1e-5)
    assert drifts[0] < 0.02
    Langevin(atoms, 0.5 * units.fs, temperature_K=300, friction=0.02, rng=rng, fixcm=False).run(20)
    assert np.isfinite(atoms.get_positions()).all()


def test_hessian_products(subject, calculator):
    if not isinstance(calculator, TeacherCalculator):
        pytest.skip("a student's Hessian comes from jax")
    teacher: Teacher = calculator.teacher
    atoms = small(subject)
    directions = np.random.default_rng(1).standard_normal((2, len(atoms), 3))
    product = teacher.hvp(atoms, directions)
    assert product.exact == (teacher.info.hessian == "exact")
    step = 5e-4
    moved = [atoms.copy() for _ in range(4)]
    for i, copy in enumerate(moved):
        copy.positions += (step if i % 2 == 0 else -step) * directions[i // 2]
    forces = teacher.label(moved).forces
    for k in range(2):
        reference = (forces[2 * k + 1] - forces[2 * k]) / (2 * step)
        scale = np.abs(reference).max()
        np.testing.assert_allclose(product.values[k], reference, rtol=0, atol=5e-3 * scale)
    left = (directions[0] * product.values[1]).sum()
    right = (directions[1] * product.values[0]).sum()
    assert left == pytest.approx(right, rel=2e-2, abs=1e-3), "the Hessian is symmetric"


def test_many_calls_need_no_more_memory(subject):
    calculator = subject.make(np.float32)
    atoms = Atoms("Cu2", [[0, 0, 0], [2.5, 0, 0]]) if subject.metal else molecule("H2O")
    rng = np.random.default_rng(0)

    def call(times: int) -> None:
        for _ in range(times):
            atoms.positions[0, 0] += 1e-3 * rng.standard_normal()
            calculator.calculate(atoms, ["energy", "forces"])

    call(200)
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call(1000)
    gc.collect()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 30_000, "KiB"


def test_from_one_atom_to_five_hundred(subject):
    calculator = subject.make(np.float32)
    if subject.metal:
        sizes = [Atoms("Cu"), bulk("Cu", cubic=True).repeat((5, 5, 5))]
    else:
        one = Atoms("O")
        sizes = [one, water_box(3 if subject.slow else 6)[: 81 if subject.slow else 501]]
    for atoms in sizes:
        atoms.calc = calculator
        assert np.isfinite(atoms.get_potential_energy())
        assert np.isfinite(atoms.get_forces()).all()
        assert np.abs(atoms.get_forces().sum(0)).max() < 1e-2


def test_the_name_gives_the_same_teacher_again(subject, calculator):
    if not isinstance(calculator, TeacherCalculator):
        pytest.skip("not a teacher")
    info = calculator.teacher.info
    record = info.provenance()
    assert record["teacher"] and record["weights_sha256"] and record["hessian"]
    names = record["teacher"]
    if info.kind == "ase":
        assert load(names).info == info


def test_constant_pressure_and_phonons(subject, calculator, tmp_path):
    """ASE's own drivers that use stress and displaced copies."""
    if subject.slow:
        pytest.skip("seconds for each of a hundred calls")
    atoms = crystal(subject)
    atoms.calc = calculator
    set_velocities(atoms, 50, np.random.default_rng(4))
    volume = atoms.get_volume()
    NPTBerendsen(
        atoms,
        0.5 * units.fs,
        temperature_K=50,
        pressure_au=0.0,
        compressibility_au=4.5e-5 / units.bar,
        taup=500 * units.fs,
        taut=100 * units.fs,
    ).run(5)
    assert np.isfinite(atoms.get_stress()).all() and atoms.get_volume() != volume
    cell = crystal(subject)
    phonons = Phonons(cell, calculator, supercell=(1, 1, 1), delta=0.01, name=str(tmp_path / "p"))
    phonons.run()
    phonons.read(acoustic=True)
    frequencies = phonons.band_structure([[0, 0, 0]])[0]
    assert np.isfinite(frequencies).all()
    assert np.sort(np.abs(frequencies))[:3].max() < 2e-3, "three translations cost nothing, eV"
