"""The padded graph: what padding, order and wrapping must not change."""

from __future__ import annotations

from typing import Any

import ase
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk, fcc111, molecule
from ase.neighborlist import neighbor_list as ase_neighbor_list

from distill.errors import CapacityError, UnknownElementError, UnsupportedStructureError
from distill.graph import (
    PADDING_DISTANCE,
    Graph,
    displacements,
    neighbor_species,
    sum_per_system,
)
from distill.neighbors import batch_graphs, neighbor_table, species_index

CUTOFF = 4.0
ELEMENTS = (1, 6, 8, 13)


def structures() -> list[ase.Atoms]:
    """A molecule, a small triclinic crystal, a slab without a third vector, a lone atom."""
    crystal = bulk("Al")
    crystal.rattle(0.05, seed=1)
    slab = fcc111("Al", (2, 2, 2))
    return [molecule("CH3CH2OH"), crystal, slab, ase.Atoms("O")]


def batch(atoms: list[ase.Atoms], **kwargs: Any) -> Graph:
    return jax.tree.map(jnp.asarray, batch_graphs(atoms, CUTOFF, ELEMENTS, **kwargs))


@jax.jit
def vectors_and_species(graph: Graph) -> tuple[jax.Array, jax.Array]:
    return displacements(graph), neighbor_species(graph)


def environments(graph: Graph) -> np.ndarray:
    """Rows (system, species, neighbour's species, displacement), in a fixed order."""
    mask = np.asarray(graph.pair_mask)
    i, _ = np.nonzero(mask)
    vectors, others = vectors_and_species(graph)
    rows = np.column_stack(
        [
            np.asarray(graph.system)[i],
            np.asarray(graph.species)[i],
            np.asarray(others)[mask],
            np.asarray(vectors, np.float64)[mask],
        ]
    )
    return rows[np.lexsort(np.round(rows, 3).T[::-1])]


@jax.jit
def energies(graph: Graph) -> jax.Array:
    """A smooth toy energy per system, `[B]`, that depends on species and distances."""
    squared = jnp.sum(displacements(graph) ** 2, axis=-1)
    weights = 1.0 + neighbor_species(graph) + 0.3 * graph.species[:, None]
    pair = jnp.where(graph.pair_mask, weights * jnp.exp(-0.5 * squared), 0.0)
    return sum_per_system(pair.sum(axis=-1), graph)


def test_batch_holds_the_structures() -> None:
    atoms = structures()
    graph = batch(atoms)
    total = sum(map(len, atoms))
    assert graph.positions.shape == (total + 1, 3) and graph.n_systems == len(atoms) + 1
    assert graph.positions.dtype == graph.shifts.dtype == graph.cell.dtype == jnp.float32
    assert graph.species.dtype == graph.neighbors.dtype == graph.system.dtype == jnp.int32
    assert graph.atom_mask.tolist() == [True] * total + [False]
    assert graph.system_mask.tolist() == [True] * len(atoms) + [False]
    assert graph.system[-1] == len(atoms) and graph.species[-1] == 0
    assert not graph.pair_mask[-1].any()
    sizes = sum_per_system(jnp.ones(total + 1), graph)
    assert sizes.tolist() == [*map(len, atoms), 0]
    numbers = np.asarray(ELEMENTS)[np.asarray(graph.species)[:-1]]
    np.testing.assert_array_equal(numbers, np.concatenate([a.numbers for a in atoms]))
    for k in (0, 3, 4):
        np.testing.assert_array_equal(graph.cell[k], np.eye(3))
    np.testing.assert_allclose(graph.cell[1], atoms[1].cell.array, rtol=1e-6)
    np.testing.assert_allclose(graph.cell[2, :2], atoms[2].cell.array[:2], rtol=1e-6)
    np.testing.assert_allclose(jnp.abs(graph.cell[2, 2]), [0, 0, 1], atol=1e-6)
    assert not graph.shifts[graph.system == 2, :, 2].any()


def test_batch_pairs_equal_ase() -> None:
    atoms = structures()
    graph = batch(atoms)
    vectors = np.asarray(displacements(graph))
    start = 0
    for number, one in enumerate(atoms):
        i, j, expected = ase_neighbor_list("ijD", one, CUTOFF)
        rows = np.flatnonzero(np.asarray(graph.system) == number)
        found = []
        for atom in rows:
            for slot in np.flatnonzero(graph.pair_mask[atom]):
                neighbor = int(graph.neighbors[atom, slot])
                assert graph.system[neighbor] == number
                found.append([atom - start, neighbor - start, *vectors[atom, slot]])
        reference = np.column_stack([i, j, expected])
        table = np.asarray(found).reshape(-1, 5)
        assert len(table) == len(reference)
        order = [np.lexsort(np.round(x, 3).T[::-1]) for x in (table, reference)]
        np.testing.assert_allclose(table[order[0]], reference[order[1]], atol=1e-5)
        start += len(one)


def test_padding_changes_nothing() -> None:
    tight = batch(structures())
    loose = batch(structures(), n_atoms=64, n_neighbors=120, n_systems=9)
    assert loose.positions.shape == (64, 3) and loose.neighbors.shape == (64, 120)
    assert (loose.neighbors[~loose.pair_mask] == 64).all()
    np.testing.assert_array_equal(environments(tight), environments(loose))
    np.testing.assert_allclose(energies(tight)[:4], energies(loose)[:4], rtol=1e-6)
    assert not energies(loose)[4:].any()
    lengths = jnp.linalg.norm(displacements(loose), axis=-1)[~loose.pair_mask]
    assert (lengths == PADDING_DISTANCE).all()
    assert not neighbor_species(loose)[~loose.pair_mask].any()


def test_order_of_atoms_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    atoms = structures()
    mixed = [one[rng.permutation(len(one))] for one in atoms]
    np.testing.assert_allclose(environments(batch(atoms)), environments(batch(mixed)), atol=1e-5)
    np.testing.assert_allclose(energies(batch(atoms)), energies(batch(mixed)), rtol=1e-5)


def test_order_of_systems_changes_nothing() -> None:
    atoms = structures()
    backwards = energies(batch(atoms[::-1]))[:4][::-1]
    np.testing.assert_allclose(energies(batch(atoms))[:4], backwards, rtol=1e-5)


@pytest.mark.parametrize("distance", [1, 100_000])
def test_wrapping_changes_nothing(distance: int) -> None:
    rng = np.random.default_rng(0)
    atoms = structures()
    unwrapped = []
    for one in atoms:
        moved = one.copy()
        images = rng.integers(-distance, distance + 1, (len(one), 3)) * one.pbc
        moved.positions += images @ one.cell.array
        unwrapped.append(moved)
    # In float32 this holds only because positions are wrapped before they are cast.
    np.testing.assert_allclose(
        environments(batch(atoms)), environments(batch(unwrapped)), atol=1e-5
    )


def test_given_tables_are_used() -> None:
    atoms = structures()
    atoms[1].positions[0] += 5 * atoms[1].cell.array[1]
    tables = [neighbor_table(a.positions, a.cell.array, a.pbc, CUTOFF, 100) for a in atoms]
    with_tables = batch_graphs(atoms, CUTOFF, ELEMENTS, tables=tables)
    jax.tree.map(np.testing.assert_array_equal, with_tables, batch_graphs(atoms, CUTOFF, ELEMENTS))
    with pytest.raises(ValueError, match="match"):
        batch_graphs(atoms, CUTOFF, ELEMENTS, tables=tables[:-1])
    with pytest.raises(ValueError, match="match"):
        batch_graphs(atoms, CUTOFF, ELEMENTS, tables=tables[::-1])


def test_gradients_are_finite_and_zero_on_padding() -> None:
    overlapping = ase.Atoms("OHH", positions=[[0, 0, 0], [1, 0, 0], [1, 0, 0]])
    graph = batch([*structures(), overlapping], n_atoms=40, n_neighbors=100, n_systems=8)

    def energy(positions: jax.Array, cell: jax.Array) -> jax.Array:
        moved = Graph(**{**vars(graph), "positions": positions, "cell": cell})
        return energies(moved).sum()

    def padded_norms(positions: jax.Array) -> jax.Array:
        moved = Graph(**{**vars(graph), "positions": positions})
        return jnp.linalg.norm(displacements(moved)[-1], axis=-1).sum()

    gradients = jax.jit(jax.grad(energy, argnums=(0, 1)))(graph.positions, graph.cell)
    for gradient in gradients:
        assert jnp.isfinite(gradient).all()
        assert jnp.abs(gradient).max() > 0
    assert not gradients[0][~graph.atom_mask].any()
    norms = jax.jit(jax.grad(padded_norms))(graph.positions)
    assert not norms.any()


def test_sum_per_system_ignores_values_on_padding() -> None:
    graph = batch(structures(), n_atoms=40)
    values = jnp.where(graph.atom_mask, 1.0, jnp.nan)
    assert sum_per_system(values, graph).tolist() == [9, 1, 8, 1, 0]
    assert sum_per_system(jnp.ones((40, 3)), graph).shape == (5, 3)


def test_regular_cell_of_a_slab_is_kept() -> None:
    slab = fcc111("Al", (2, 2, 2), vacuum=6.0)
    np.testing.assert_allclose(batch([slab]).cell[0], slab.cell.array, rtol=1e-6)


def test_degenerate_free_vector_is_replaced() -> None:
    slab = fcc111("Al", (2, 2, 2))
    slab.cell[2] = slab.cell[0] + slab.cell[1]
    assert abs(np.linalg.det(batch([slab]).cell[0])) > 1.0


def test_double_precision_graph() -> None:
    graph = batch_graphs(structures(), CUTOFF, ELEMENTS, dtype=np.float64)
    assert graph.positions.dtype == graph.shifts.dtype == graph.cell.dtype == np.float64


def test_unknown_element_is_named() -> None:
    atoms = [molecule("H2O"), molecule("CH3Cl")]
    with pytest.raises(UnknownElementError, match=r"structure 1 holds Cl.*known elements: H, C, O"):
        batch_graphs(atoms, CUTOFF, (1, 6, 8))


def test_species_index() -> None:
    index = species_index([8, 1, 1, 6], (1, 6, 8))
    assert index.dtype == np.int32 and index.tolist() == [2, 0, 0, 1]
    with pytest.raises(UnknownElementError, match="N, Cl"):
        species_index([17, 7, 1], (1, 6, 8))
    for wrong in [(8, 1), (1, 1), ()]:
        with pytest.raises(ValueError, match="sorted"):
            species_index([1], wrong)


@pytest.mark.parametrize(
    ("name", "needed"), [("n_atoms", 20), ("n_systems", 5), ("n_neighbors", 12)]
)
def test_capacity_errors_name_the_slot_and_the_number(name: str, needed: int) -> None:
    atoms = structures()
    graph = batch_graphs(atoms, CUTOFF, ELEMENTS)
    assert {"n_atoms": len(graph.positions), "n_systems": graph.n_systems}.get(
        name, graph.neighbors.shape[1]
    ) == needed
    slots: dict[str, Any] = {name: needed}
    batch_graphs(atoms, CUTOFF, ELEMENTS, **slots)
    with pytest.raises(CapacityError, match=f"{name}={needed - 1}.*need {needed}"):
        batch_graphs(atoms, CUTOFF, ELEMENTS, **{**slots, name: needed - 1})


def test_bad_structures_are_refused() -> None:
    with pytest.raises(ValueError, match="no structures"):
        batch_graphs([], CUTOFF, ELEMENTS)
    with pytest.raises(UnsupportedStructureError):
        batch_graphs([ase.Atoms("O", pbc=True)], CUTOFF, ELEMENTS)
