"""The moment student: derivatives, symmetries, padding and behaviour at the cutoff, in float64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from builders import (
    CUTOFF,
    ELEMENTS,
    ethanol,
    numerical_forces,
    numerical_stress,
    random_rotation,
    small_student,
    triclinic_cell,
    two_paddings,
    water_box,
)

from distill.errors import UnknownElementError
from distill.potential import evaluate
from distill.students import Student

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "max_l 1": {"max_l": 1},
    "max_l 2, no triples": {"max_l": 2, "n_triples": 0},
    "one layer": {"hidden": (6,), "n_channels": 1, "n_triples": 1},
}


def label(structures: list[Atoms], student: Student | None = None) -> Any:
    return (student or small_student()).label(structures, dtype=np.float64)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_forces_are_the_gradient_of_the_energy(options):
    student = small_student(**options)
    atoms = ethanol()
    forces = label([atoms], student).forces[0]
    numerical = numerical_forces(lambda s: label(s, student), atoms, rows=[0, 2, 8])
    assert np.abs(forces).max() > 0.05
    np.testing.assert_allclose(
        forces[[0, 2, 8]], numerical, rtol=0, atol=1e-6 * np.abs(forces).max()
    )
    np.testing.assert_allclose(forces.sum(0), 0, atol=1e-11)


def test_stress_and_forces_of_a_small_skewed_cell():
    atoms = triclinic_cell()
    labels = label([atoms])
    stress = labels.stress[0]
    assert np.abs(stress).max() > 1e-4
    np.testing.assert_allclose(stress, stress.T, atol=1e-12)
    np.testing.assert_allclose(
        stress, numerical_stress(label, atoms), rtol=0, atol=1e-6 * np.abs(stress).max()
    )
    np.testing.assert_allclose(
        labels.forces[0][:3],
        numerical_forces(label, atoms, rows=[0, 1, 2]),
        atol=1e-6 * np.abs(labels.forces[0]).max(),
    )


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_rotation_and_reflection(options):
    turns = [np.eye(3), random_rotation(3), -random_rotation(4)]
    structures = []
    for turn in turns:
        for atoms in (ethanol(), triclinic_cell()):
            atoms.set_cell(atoms.cell.array @ turn.T, scale_atoms=True)
            if not atoms.pbc.any():
                atoms.positions = atoms.positions @ turn.T
            structures.append(atoms)
    labels = label(structures, small_student(**options))
    for number, turn in enumerate(turns[1:], start=1):
        for kind in (0, 1):
            here = 2 * number + kind
            np.testing.assert_allclose(labels.energy[here], labels.energy[kind], rtol=0, atol=1e-9)
            np.testing.assert_allclose(
                labels.forces[here], labels.forces[kind] @ turn.T, rtol=0, atol=1e-9
            )
        np.testing.assert_allclose(
            labels.stress[2 * number + 1], turn @ labels.stress[1] @ turn.T, rtol=0, atol=1e-11
        )


def test_translation_permutation_and_order_in_the_batch():
    atoms, other = ethanol(), triclinic_cell()
    order = np.random.default_rng(1).permutation(len(atoms))
    shifted = atoms[order]
    shifted.positions += [3.0, -50.0, 7.0]
    labels = label([atoms, other, shifted])
    alone = label([other])
    np.testing.assert_allclose(labels.energy[2], labels.energy[0], rtol=0, atol=1e-9)
    np.testing.assert_allclose(labels.forces[2], labels.forces[0][order], rtol=0, atol=1e-9)
    np.testing.assert_allclose(
        labels.per_atom_energy[2], labels.per_atom_energy[0][order], rtol=0, atol=1e-9
    )
    np.testing.assert_allclose(labels.energy[1], alone.energy[0], rtol=0, atol=1e-9)
    np.testing.assert_allclose(labels.forces[1], alone.forces[0], rtol=0, atol=1e-9)


def test_wrapping_changes_nothing():
    atoms = triclinic_cell()
    moved = atoms.copy()
    images = np.random.default_rng(2).integers(-3, 4, (len(atoms), 3))
    moved.positions += images @ atoms.cell.array
    labels = label([atoms, moved])
    np.testing.assert_allclose(labels.energy[1], labels.energy[0], rtol=0, atol=1e-10)
    np.testing.assert_allclose(labels.forces[1], labels.forces[0], rtol=0, atol=1e-9)
    np.testing.assert_allclose(labels.stress[1], labels.stress[0], rtol=0, atol=1e-11)


def test_supercell_has_the_energy_of_its_cells():
    atoms = triclinic_cell()
    large = atoms.repeat((2, 1, 3))
    labels = label([atoms, large])
    np.testing.assert_allclose(labels.energy[1], 6 * labels.energy[0], rtol=1e-13)
    np.testing.assert_allclose(labels.forces[1], np.tile(labels.forces[0], (6, 1)), atol=1e-9)
    np.testing.assert_allclose(labels.stress[1], labels.stress[0], atol=1e-12)


def test_padding_changes_no_number_and_no_gradient():
    student = small_student(max_l=2, hidden=(6,), n_channels=2, n_triples=1)
    structures = [ethanol(), triclinic_cell(), Atoms("O")]

    def loss(variables: Any, positions: jax.Array, graph: Any) -> jax.Array:
        def atomic_energy(*rows: Any) -> Any:
            return student.module.apply(variables, *rows)

        moved = type(graph)(**{**graph.__dict__, "positions": positions})
        result = evaluate(atomic_energy, moved)
        return (result.forces**2).sum() + (result.energy**2).sum() + (result.virial**2).sum()

    found = []
    n = sum(map(len, structures)) + 1
    for padded in two_paddings(structures, CUTOFF, ELEMENTS):
        value, (of_variables, of_positions) = jax.jit(jax.value_and_grad(loss, (0, 1)))(
            student.variables, padded.positions, padded
        )
        assert np.isfinite(np.asarray(of_positions)).all()
        np.testing.assert_array_equal(of_positions[n - 1 :], 0)
        found.append((value, of_variables, of_positions[: n - 1]))
    for small, large in zip(*map(jax.tree.leaves, found), strict=True):
        # Parameters are float32 and so is their gradient.
        tolerance = 1e-10 if small.dtype == np.float64 else 1e-5
        assert np.isfinite(np.asarray(small)).all()
        np.testing.assert_allclose(
            small, large, rtol=0, atol=tolerance * max(np.abs(small).max(), 1e-3)
        )


def test_energy_and_forces_vanish_smoothly_at_the_cutoff():
    # O-H stays, one C leaves: with two derivatives of the cutoff function and a zero of the radial
    # functions the energy falls at least as the third power of the distance to the cutoff.
    def at(distance: float) -> Atoms:
        return Atoms("OHC", [[0, 0, 0], [0.6, 0.7, 0.1], [0, 0, distance]])

    gaps = np.array([0.02, 0.01])
    inside = label([at(CUTOFF - gap) for gap in gaps])
    outside = label([at(CUTOFF), at(CUTOFF + 0.01), at(CUTOFF + 1)])
    np.testing.assert_allclose(outside.energy, outside.energy[-1], rtol=0, atol=1e-11)
    far = outside.forces[-1]
    np.testing.assert_allclose(outside.forces[0], far, rtol=0, atol=1e-12)
    # C also sees the hydrogen, which is nearer: that part is smooth and must not be counted.
    alone = [Atoms("OC", [[0, 0, 0], [0, 0, CUTOFF - gap]]) for gap in [*gaps, -1.0]]
    pair = label(alone)
    energy = np.abs(pair.energy[:2] - pair.energy[2])
    force = np.array([np.abs(pair.forces[i]).max() for i in range(2)])
    assert 0 < energy[1] < energy[0] / 7.5 and energy[0] < 1e-4
    assert 0 < force[1] < force[0] / 3.7 and force[0] < 1e-2
    assert np.isfinite(inside.energy).all()


def test_isolated_atom_and_no_neighbours():
    atoms = Atoms("OHC", 100.0 * np.arange(9).reshape(3, 3))
    together, alone = label([atoms]), label([Atoms(s) for s in "OHC"])
    np.testing.assert_allclose(together.energy[0], alone.energy.sum(), rtol=1e-14)
    np.testing.assert_array_equal(together.forces[0], 0)
    np.testing.assert_array_equal([f[0] for f in alone.forces], np.zeros((3, 3)))
    assert np.isnan(together.stress).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_atoms_on_top_of_each_other_give_no_nan(dtype):
    student = small_student()
    atoms = Atoms("OHH", [[0, 0, 0], [0, 0, 0], [0.9, 0, 0]])
    labels = student.label([atoms], dtype=dtype)
    assert np.isfinite(labels.energy).all() and np.isfinite(labels.forces[0]).all()

    potential = student.potential(atoms, dtype=dtype)
    positions = jnp.asarray(atoms.positions, dtype)
    gradient = jax.jit(jax.grad(potential.energy))(positions, potential.allocate(positions))
    assert np.isfinite(np.asarray(gradient)).all()


def test_large_total_energies_keep_the_digits_of_the_residual():
    small = small_student()
    student = Student(small.spec, small.variables, np.array([-500.0, -1000.0, -150000.0]))
    atoms = water_box(2)
    total = student.label([atoms])  # float32
    exact = label([atoms], student)
    reference = 8 * (-150000.0 - 2 * 500.0)
    assert exact.energy[0] < -1e6
    residual = abs(exact.energy[0] - reference)
    assert residual > 0.1
    # float32 rounding of the residual alone; one step of float32 at the total is 0.125 eV.
    assert abs(total.energy[0] - exact.energy[0]) < 1e-5 * max(residual, 10.0)
    assert total.energy.dtype == np.float64
    np.testing.assert_allclose(
        [p.sum() for p in total.per_atom_energy], total.energy, rtol=0, atol=1e-4 * residual
    )


@pytest.mark.parametrize("order", ["sorted", "interleaved", "one element missing"])
def test_static_species_give_the_results_of_traced_ones(order):
    student = small_student(max_l=1, n_channels=2, n_triples=0)
    rng = np.random.default_rng(4)
    species = rng.integers(0, 3, 24).astype(np.int32)
    if order == "sorted":
        species.sort()
    if order == "one element missing":
        species[species == 1] = 2
    rows = (
        jnp.asarray(rng.uniform(-3, 3, (24, 5, 3))),
        jnp.asarray(rng.integers(0, 3, (24, 5))),
        jnp.asarray(rng.random((24, 5)) < 0.8),
    )
    static = jax.jit(lambda *r: student.atomic_energy(*r, species))(*rows)
    traced = jax.jit(student.atomic_energy)(*rows, jnp.asarray(species))
    np.testing.assert_allclose(static, traced, rtol=1e-12, atol=1e-12)


def test_unknown_element_is_named():
    structures = [ethanol(), Atoms("OCl", [[0, 0, 0], [1.7, 0, 0]])]
    with pytest.raises(UnknownElementError, match=r"structure 1 holds Cl.*known elements: H, C, O"):
        small_student().label(structures)
    with pytest.raises(UnknownElementError, match="Cl"):
        small_student().potential(structures[1])


def test_repeated_labels_compile_once_per_size_on_the_ladder():
    shared = small_student(max_l=1, n_channels=2, n_triples=0, hidden=(4,))
    student = Student(shared.spec, shared.variables, np.zeros(3))
    for seed in range(3):
        student.label([ethanol(seed), ethanol(seed + 1)])
        student.label([ethanol(seed), Atoms("OH", [[0, 0, 0], [0, 0, 0.9 + 0.1 * seed]])])
    # 19 and 12 atom slots fall on different steps of the ladder; nothing else differs.
    assert student._evaluate._cache_size() <= 2


def test_parameters_from_a_file_may_be_numpy_arrays():
    shared = small_student(max_l=1, n_channels=2, n_triples=0)
    loaded = Student(
        shared.spec, jax.tree.map(np.asarray, shared.variables), shared.reference_energies
    )
    atoms = water_box(3)  # more rows than a block
    potential = loaded.potential(atoms, dtype=np.float64)
    energy, forces = jax.jit(potential.energy_and_forces)(
        jnp.asarray(atoms.positions), potential.allocate(atoms.positions)
    )
    expected = label([atoms], shared)
    assert float(energy) + loaded.reference_energy(atoms.numbers) == pytest.approx(
        expected.energy[0], rel=1e-12
    )
    np.testing.assert_allclose(forces, expected.forces[0], rtol=0, atol=1e-9)
