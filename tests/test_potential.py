"""From a local energy to forces, stress and MD potentials; reference: ASE's Lennard-Jones."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.lj import LennardJones
from builders import ethanol, small_student, strained

from distill.kernels import KERNELS, blocked
from distill.neighbors import batch_graphs
from distill.potential import Potential, evaluate, hessian_vector_product, local_potential

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")

CUTOFF, SIGMA, EPSILON = 4.0, 2.0, 0.2
SKEW = np.array([[5.5, 0.0, 0.0], [1.5, 5.2, 0.0], [-1.1, 0.8, 5.4]])
STUDENT = {"max_l": 1, "n_channels": 2, "n_triples": 0, "hidden": (4,)}


def lennard_jones(vectors: Any, others: Any, mask: Any, species: Any) -> Any:
    """Half of each pair's energy, shifted to zero at the cutoff as ASE does it."""
    squared = (vectors**2).sum(-1)
    attraction = (SIGMA**2 / squared) ** 3
    shift = (SIGMA / CUTOFF) ** 12 - (SIGMA / CUTOFF) ** 6
    pairs = 4 * EPSILON * (attraction**2 - attraction - shift)
    return 0.5 * jnp.where(mask & (squared < CUTOFF**2), pairs, 0).sum(-1)


def argon(kind: str, seed: int = 0) -> Atoms:
    """Jittered grid of 27 or 8 atoms: in a cell, in one smaller than two cutoffs, slab, cluster."""
    n = 2 if kind == "small skewed cell" else 3
    cell = SKEW if n == 2 else SKEW * 9.0 / 5.5
    rng = np.random.default_rng(seed)
    grid = (np.indices((n, n, n)).reshape(3, -1).T + 0.5) / n
    positions = grid @ cell + rng.uniform(-0.3, 0.3, (n**3, 3))
    pbc = {"slab": (True, False, True), "cluster": (False,) * 3}.get(kind, (True,) * 3)
    atoms = Atoms("Ar" * n**3, positions, cell=cell, pbc=pbc)
    atoms.positions += rng.integers(-2, 3, (n**3, 3)) * np.array(pbc) @ cell  # unwrapped
    return atoms


def by_ase(atoms: Atoms) -> Atoms:
    copy = atoms.copy()
    copy.calc = LennardJones(sigma=SIGMA, epsilon=EPSILON, rc=CUTOFF, smooth=False)
    return copy


def potential_of(atoms: Atoms, **options: Any) -> Potential:
    options = {"dtype": np.float64, **options}
    return local_potential(lennard_jones, atoms, np.zeros(len(atoms)), CUTOFF, **options)


KINDS = ["cell", "small skewed cell", "slab", "cluster"]


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("kind", KINDS)
def test_potential_equals_that_of_ase(kind, kernel):
    atoms = argon(kind)
    expected = by_ase(atoms)
    potential = potential_of(atoms, kernel=kernel)
    positions = jnp.asarray(atoms.positions)
    lists = potential.allocate(positions)
    energy, forces = jax.jit(potential.energy_and_forces)(positions, lists)
    assert not bool(potential.overflow(lists, positions))
    assert float(energy) == pytest.approx(expected.get_potential_energy(), rel=1e-12)
    np.testing.assert_allclose(forces, expected.get_forces(), rtol=0, atol=1e-11)
    np.testing.assert_allclose(np.asarray(forces).sum(0), 0, atol=1e-11)
    assert float(potential.energy(positions, neighbors=lists)) == pytest.approx(float(energy))
    np.testing.assert_allclose(
        potential.forces(positions, neighbors=lists), forces, rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_graph_of_several_systems_equals_ase(kernel):
    structures = [argon(kind) for kind in KINDS]
    graph = jax.tree.map(jnp.asarray, batch_graphs(structures, CUTOFF, (18,), dtype=np.float64))
    result = jax.jit(lambda g: evaluate(lennard_jones, g, kernel))(graph)
    stress = result.stress(graph.cell)
    start = 0
    for number, atoms in enumerate(structures):
        own, start = slice(start, start + len(atoms)), start + len(atoms)
        expected = by_ase(atoms)
        assert float(result.energy[number]) == pytest.approx(expected.get_potential_energy())
        np.testing.assert_allclose(result.forces[own], expected.get_forces(), rtol=0, atol=1e-11)
        np.testing.assert_allclose(
            result.per_atom_energy[own], expected.get_potential_energies(), rtol=0, atol=1e-11
        )
        if atoms.pbc.all():
            np.testing.assert_allclose(
                stress[number], expected.get_stress(voigt=False), rtol=0, atol=1e-12
            )
    np.testing.assert_array_equal(result.forces[start:], 0)
    np.testing.assert_array_equal(result.energy[len(structures) :], 0)
    np.testing.assert_array_equal(result.virial[len(structures) :], 0)


@pytest.mark.parametrize("kind", ["cell", "small skewed cell"])
def test_stress_is_the_derivative_by_strain_of_cell_and_positions(kind):
    atoms, step = argon(kind), 1e-5
    moved = []
    for a, b in np.ndindex(3, 3):
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[a, b] = sign * step
            moved.append(strained(atoms, strain))
    graph = jax.tree.map(
        jnp.asarray, batch_graphs([atoms, *moved], CUTOFF, (18,), dtype=np.float64)
    )
    result = jax.jit(lambda g: evaluate(lennard_jones, g))(graph)
    energies = np.asarray(result.energy[1:19]).reshape(3, 3, 2)
    derivative = (energies[..., 0] - energies[..., 1]) / (2 * step)
    np.testing.assert_allclose(
        result.stress(graph.cell)[0], derivative / atoms.get_volume(), rtol=0, atol=1e-8
    )
    # A compressed crystal pushes outwards: negative in ASE's sign.
    squeezed = strained(atoms, -0.4 * np.eye(3))
    assert np.trace(by_ase(squeezed).get_stress(voigt=False)) < 0
    graph = jax.tree.map(jnp.asarray, batch_graphs([squeezed], CUTOFF, (18,), dtype=np.float64))
    assert np.trace(evaluate(lennard_jones, graph).stress(graph.cell)[0]) < 0


def test_old_and_full_lists_raise_the_flag_and_grow():
    atoms = argon("cluster")
    potential = potential_of(atoms, skin=0.4, kernel=blocked)
    update, overflow = jax.jit(potential.update), jax.jit(potential.overflow)
    lists = potential.allocate(atoms.positions)
    near, far = atoms.positions.copy(), atoms.positions.copy()
    near[3, 0] += 0.14
    far[3, 0] += 0.25
    assert not bool(overflow(lists, near))
    assert bool(overflow(lists, far)), "an atom moved more than half the skin"
    followed = update(update(lists, jnp.asarray(near)), jnp.asarray(near))
    assert not bool(overflow(followed, near))

    squeezed = jnp.asarray(0.45 * atoms.positions)
    full = update(lists, squeezed)
    assert bool(overflow(full, squeezed))
    assert bool(overflow(update(full, jnp.asarray(atoms.positions)), atoms.positions)), "sticky"
    grown = potential.allocate(squeezed, full)
    assert grown.capacity > lists.capacity
    assert not bool(overflow(grown, squeezed))
    squeezed_atoms = atoms.copy()
    squeezed_atoms.positions[:] = squeezed
    assert float(potential.energy(squeezed, grown)) == pytest.approx(
        by_ase(squeezed_atoms).get_potential_energy(), rel=1e-12
    )
    again = potential.allocate(atoms.positions, grown)
    assert again.capacity >= grown.capacity, "capacity does not shrink"


def test_flag_is_raised_for_positions_that_are_nan():
    atoms = argon("cell")
    potential = potential_of(atoms)
    lost = atoms.positions.copy()
    lost[0] = np.nan
    assert bool(potential.overflow(potential.allocate(atoms.positions), jnp.asarray(lost)))


def test_lists_follow_moving_atoms():
    atoms = argon("small skewed cell")
    potential = potential_of(atoms)
    lists = potential.allocate(atoms.positions)
    update, energy = jax.jit(potential.update), jax.jit(potential.energy)
    direction = np.random.default_rng(5).standard_normal((len(atoms), 3))
    for step in range(1, 13):
        moved = atoms.copy()
        moved.positions += 0.03 * step * direction / np.linalg.norm(direction, axis=1).max()
        lists = update(lists, jnp.asarray(moved.positions))
        assert not bool(potential.overflow(lists, moved.positions))
        assert float(energy(jnp.asarray(moved.positions), lists)) == pytest.approx(
            by_ase(moved).get_potential_energy(), rel=1e-11
        )


@lru_cache
def student_energy() -> tuple[Any, Any, Any]:
    atoms = ethanol()
    potential = small_student(**STUDENT).potential(atoms, dtype=np.float64)
    lists = potential.allocate(atoms.positions)
    return potential, lists, jnp.asarray(atoms.positions)


def argon_energy() -> tuple[Any, Any, Any]:
    atoms = argon("small skewed cell")
    potential = potential_of(atoms)
    return potential, potential.allocate(atoms.positions), jnp.asarray(atoms.positions)


@pytest.mark.parametrize("make", [student_energy, argon_energy])
def test_hessian_vector_product_is_symmetric_and_equals_differences_of_forces(make):
    potential, lists, positions = make()
    rng = np.random.default_rng(6)
    first, second = (jnp.asarray(rng.standard_normal(positions.shape)) for _ in range(2))
    product = jax.jit(
        lambda x, v: hessian_vector_product(lambda y: potential.energy(y, lists), x, v)
    )
    one, two = product(positions, first), product(positions, second)
    assert float((second * one).sum()) == pytest.approx(float((first * two).sum()), rel=1e-10)
    step = 1e-5
    forces = jax.jit(potential.forces)
    difference = forces(positions - step * first, lists) - forces(positions + step * first, lists)
    np.testing.assert_allclose(
        one, difference / (2 * step), rtol=0, atol=1e-6 * float(jnp.abs(one).max())
    )
    shift = jnp.ones_like(positions)
    np.testing.assert_allclose(product(positions, shift), 0, atol=1e-10 * float(jnp.abs(one).max()))


def test_potential_from_an_energy_has_its_gradient_as_forces():
    potential = Potential.from_energy(
        lambda positions, lists: lists * (positions**4).sum(),
        numbers=np.ones(2),
        dtype=np.float64,
        allocate=lambda positions, previous=None: 0.5,
        update=lambda lists, positions: lists,
        overflow=lambda lists, positions: jnp.zeros((), bool),
    )
    positions = jnp.asarray([[1.0, 2.0, 3.0], [0.5, -1.0, 0.0]])
    energy, forces = potential.energy_and_forces(positions, 0.5)
    assert float(energy) == pytest.approx(0.5 * float((positions**4).sum()))
    np.testing.assert_allclose(forces, -2.0 * np.asarray(positions) ** 3, rtol=1e-12)
