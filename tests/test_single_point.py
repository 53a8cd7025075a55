"""The compiled system behind the student's ASE calculator: same numbers, few compilations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from ase import Atoms, units
from ase.filters import FrechetCellFilter
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from builders import (
    ethanol,
    numerical_stress,
    random_uncertainty,
    small_student,
    strained,
    triclinic_cell,
    water_box,
)

from distill import calculators
from distill.calculators import StudentCalculator
from distill.errors import UnsupportedStructureError
from distill.students import Student

pytestmark = pytest.mark.usefixtures("quick_compilation")

OPTIONS: dict[str, Any] = {"max_l": 1, "n_channels": 2, "n_triples": 0, "hidden": (4,)}
STUDENT = small_student(**OPTIONS)


def slab() -> Atoms:
    atoms = water_box(3)
    atoms.pbc = (True, False, True)
    atoms.cell[1] = 0
    return atoms


STRUCTURES: dict[str, Callable[[], Atoms]] = {
    "molecule": ethanol,
    "cell thinner than the cutoff": triclinic_cell,
    "liquid on grouped lists": lambda: water_box(3),
    "slab": slab,
    "one atom": lambda: Atoms("O"),
}


def calculator(student: Student = STUDENT, **options: Any) -> StudentCalculator:
    return StudentCalculator(student, **{"dtype": np.float64, **options})


def check(calc: StudentCalculator, atoms: Atoms, atol: float = 1e-10) -> None:
    """All results are those of `Student.label`."""
    calc.calculate(atoms)
    expected = calc.student.label([atoms], dtype=np.float64)
    results = calc.results
    np.testing.assert_allclose(results["energy"], expected.energy[0], rtol=1e-13, atol=atol)
    np.testing.assert_allclose(results["forces"], expected.forces[0], rtol=0, atol=atol)
    np.testing.assert_allclose(results["energies"], expected.per_atom_energy[0], rtol=0, atol=atol)
    assert ("stress" in results) == atoms.pbc.all()
    if atoms.pbc.all():
        found = atoms_stress(results["stress"])
        np.testing.assert_allclose(found, expected.stress[0], rtol=0, atol=atol)
        assert np.abs(found).max() > 1e-5


def atoms_stress(voigt: np.ndarray) -> np.ndarray:
    xx, yy, zz, yz, xz, xy = voigt
    return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])


@contextmanager
def compilations() -> Iterator[list[str]]:
    """The names of what XLA compiles meanwhile."""
    names: list[str] = []

    def listen(event: str, seconds: float, **given: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(str(given.get("fun_name", "")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def is_compiled(calc: StudentCalculator, atoms: Atoms) -> bool:
    return calc.compiled is not None and calc.compiled.serves(atoms)


@pytest.mark.parametrize("name", STRUCTURES)
def test_equals_the_labels_while_atoms_move_and_are_wrapped(name: str, x64: None) -> None:
    atoms, calc, rng = STRUCTURES[name](), calculator(), np.random.default_rng(0)
    check(calc, atoms)
    for amplitude in (0.01, 0.1, 0.4):
        atoms.positions += rng.normal(scale=amplitude, size=(len(atoms), 3)).clip(-0.4, 0.4)
        check(calc, atoms)
    if atoms.pbc.any():
        whole = rng.integers(-3, 4, (len(atoms), 3)) * atoms.pbc
        atoms.positions += whole @ atoms.cell.array
        check(calc, atoms)
        atoms.wrap()
        check(calc, atoms)
    atoms.positions += 40.0  # all together, far out
    check(calc, atoms)
    assert is_compiled(calc, atoms)


def test_single_precision_keeps_its_digits_far_outside_the_cell() -> None:
    atoms = water_box(3)
    calc = calculator(dtype=np.float32)
    calc.calculate(atoms)
    expected = calc.results["forces"]
    atoms.positions += 10_000 * np.array([1, -2, 3]) @ atoms.cell.array
    calc.calculate(atoms)
    np.testing.assert_allclose(calc.results["forces"], expected, rtol=0, atol=2e-4)


def test_other_atoms_between_the_calls(x64: None) -> None:
    calc, atoms = calculator(), triclinic_cell()
    check(calc, atoms)
    fewer, more, swapped = atoms.copy(), atoms.copy(), atoms.copy()
    del fewer[2]
    more += Atoms("H", [[0.5, 4.0, 3.0]])
    swapped.numbers[[0, 1]] = swapped.numbers[[1, 0]]
    permuted = atoms[np.random.default_rng(0).permutation(len(atoms))]
    free = atoms.copy()
    free.pbc = False
    for other in (fewer, more, swapped, permuted, free):
        check(calc, other)
        check(calc, atoms)


def test_what_is_called_for_often_is_compiled(x64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calculators, "CALLS_UNTIL_COMPILED", 3)
    calc, first, second = calculator(), Atoms("OH", [[0, 0, 0], [0, 0, 1]]), ethanol()
    check(calc, first)
    for _ in range(2):
        check(calc, second)
        check(calc, first)
        assert is_compiled(calc, first)
    for _ in range(3):
        assert is_compiled(calc, first)
        check(calc, second)
    assert is_compiled(calc, second)


def test_the_cell_moves_without_compilation(x64: None) -> None:
    calc, atoms = calculator(), water_box(3)
    shear = np.array([[0.0, 0.004, 0.002], [0.001, 0.005, 0.0], [0.0, -0.003, -0.004]])
    check(calc, atoms)
    with compilations() as names:
        for scale in (0.5, 1.0, -1.0, 3.0):
            moved = strained(atoms, scale * shear)
            moved.positions += np.random.default_rng(1).normal(scale=0.1, size=(len(atoms), 3))
            calc.calculate(moved)
    assert is_compiled(calc, moved) and names == []
    check(calc, moved)
    check(calc, atoms)


def test_a_cell_that_shrinks_too_much_is_left_to_the_labels(
    x64: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calculators, "CALLS_UNTIL_COMPILED", 3)
    calc, atoms = calculator(), water_box(3)
    check(calc, atoms)
    # The list reaches 0.4 Å further than the cutoff of 4 Å; a quarter of that is for the cell.
    for strain, compiled in ((-0.023, True), (-0.026, False), (0.2, True)):
        moved = strained(atoms, strain * np.eye(3))
        check(calc, moved)
        assert is_compiled(calc, moved) == compiled
    small = strained(atoms, -0.06 * np.eye(3))
    for _ in range(3):
        check(calc, small)
    assert is_compiled(calc, small)


def test_no_pair_comes_within_the_cutoff_unlisted(x64: None) -> None:
    """Atoms just out of reach come nearer by their share of the skin and the cell by its own."""
    served = []
    for strain in np.linspace(0, -0.04, 9):
        start = Atoms("OH", [[0.0, 0, 0], [4.401, 0, 0]], cell=[14.0] * 3, pbc=True)
        calc = calculator()
        calc.calculate(start)
        moved = start.copy()
        moved.positions[:, 0] += [0.149, -0.149]  # three eighths of the skin of 0.4 Å are 0.15 Å
        moved = strained(moved, strain * np.eye(3))
        served.append(is_compiled(calc, moved))
        calc.calculate(moved)
        assert calc.compiled is not None
        listed = (np.asarray(calc.compiled._lists.neighbors) < 2).any()
        assert listed or moved.get_distance(0, 1) > 4.0 or not served[-1]
    assert served[0] and not served[-1] and moved.get_distance(0, 1) < 4.0


def test_stress_is_the_strain_derivative(x64: None) -> None:
    calc, atoms = calculator(), water_box(3)

    def label(structures: list[Atoms]) -> Any:
        energies = []
        for structure in structures:
            calc.calculate(structure)
            energies.append(calc.results["energy"])
        return type("Labels", (), {"energy": np.array(energies)})

    calc.calculate(atoms)
    stress = atoms_stress(calc.results["stress"])
    numerical = numerical_stress(label, atoms)
    np.testing.assert_allclose(stress, numerical, rtol=0, atol=1e-5 * np.abs(stress).max())


def test_dynamics_compile_once(x64: None) -> None:
    atoms = water_box(3)
    atoms.calc = calculator()
    atoms.set_velocities(0.05 * np.random.default_rng(0).normal(size=(len(atoms), 3)))
    start = atoms.positions.copy()
    atoms.get_forces()
    with compilations() as names:
        VelocityVerlet(atoms, 0.5 * units.fs).run(50)
    assert names == []
    assert np.linalg.norm(atoms.positions - start, axis=1).max() > 0.4, "Å: the list was rebuilt"


def test_a_relaxation_of_the_cell_does_not_compile_at_every_step(x64: None) -> None:
    atoms = triclinic_cell()
    atoms.calc = calculator()
    before = atoms.get_potential_energy()
    STUDENT.label([atoms], dtype=np.float64)  # compiled beforehand, should the cell shrink
    with compilations() as names:
        relaxation = BFGS(FrechetCellFilter(atoms), logfile=None, maxstep=0.02)
        relaxation.run(fmax=1e-3, steps=25)
    assert relaxation.nsteps >= 20 and atoms.get_potential_energy() < before
    assert len(names) <= 3
    check(atoms.calc, atoms)


def test_atoms_that_crowd_get_a_larger_list(x64: None) -> None:
    calc, atoms = calculator(), water_box(3)
    atoms.pbc = False
    spread = atoms.copy()
    spread.positions = 1.8 * spread.positions
    check(calc, spread)
    check(calc, atoms)
    assert is_compiled(calc, atoms)


def test_lost_positions_are_named_and_the_calculator_lives_on(x64: None) -> None:
    for make in (ethanol, lambda: water_box(3), lambda: Atoms("OH", [[0, 0, 0], [9, 0, 0]])):
        atoms, calc = make(), calculator()
        lost = atoms.copy()
        lost.positions[1, 2] = np.nan
        for _ in range(2):
            lost.calc = calc
            with pytest.raises(UnsupportedStructureError, match="first at atom 1, 1 in all"):
                lost.get_forces()
            check(calc, atoms)


def test_uncertainty_comes_along(x64: None) -> None:
    student = replace(STUDENT, uncertainty=random_uncertainty(4))
    for atoms in (ethanol(), water_box(3)):
        atoms.calc = calculator(student)
        found = atoms.calc.get_property("uncertainty", atoms)
        expected = student.label([atoms], dtype=np.float64).uncertainty
        np.testing.assert_allclose(found, expected[0], rtol=0, atol=1e-10)
        assert "forces" in atoms.calc.export_properties()


def test_the_calculator_keeps_a_copy_of_what_it_calculated(x64: None) -> None:
    atoms, calc = ethanol(), calculator()
    atoms.calc = calc
    atoms.get_forces()
    first = calc.atoms
    atoms.positions[0, 0] += 0.1
    atoms.set_tags(1)
    atoms.get_forces()
    assert calc.atoms == atoms and calc.atoms != first and calc.atoms.get_tags().all()
    assert not np.shares_memory(calc.atoms.positions, atoms.positions)
    # Asked about a move, then given another change besides.
    atoms.positions[0, 0] += 0.1
    assert calc.calculation_required(atoms, ["forces"])
    atoms.numbers[[1, 2]] = atoms.numbers[[2, 1]]
    check(calc, atoms)
    assert calc.atoms == atoms
