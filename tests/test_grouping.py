"""Slots grouped by element: the same pairs, the same results."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import molecule
from builders import small_student

from distill.errors import CapacityError
from distill.graph import displacements, neighbor_species
from distill.kernels import RowModel, blocked, reference
from distill.neighbors import batch_graphs, element_counts, group_slots
from distill.potential import evaluate

pytestmark = pytest.mark.usefixtures("x64")

CUTOFF, ELEMENTS = 4.0, (1, 6, 8)


def graph():
    structures = [molecule("CH3CH2OH"), molecule("H2O", cell=3 * np.eye(3), pbc=True)]
    return batch_graphs(structures, CUTOFF, ELEMENTS, n_atoms=16, dtype=np.float64)


def pairs(of):
    """Atom, neighbour and displacement of every filled slot, sorted."""
    vectors = np.asarray(displacements(jax.tree.map(jnp.asarray, of)))
    rows, slots = np.nonzero(np.asarray(of.pair_mask))
    table = np.column_stack([rows, of.neighbors[rows, slots], vectors[rows, slots].round(9)])
    return table[np.lexsort(table.T)]


def test_every_slot_holds_its_element_and_no_pair_is_lost():
    plain = graph()
    groups = element_counts(plain.neighbors, plain.species, len(ELEMENTS)) + [1, 0, 2]
    grouped = group_slots(plain, groups)
    np.testing.assert_array_equal(pairs(grouped), pairs(plain))
    expected = np.broadcast_to(np.repeat(range(3), groups), grouped.neighbors.shape)
    found = np.asarray(neighbor_species(jax.tree.map(jnp.asarray, grouped)))
    mask = np.asarray(grouped.pair_mask)
    np.testing.assert_array_equal(found[mask], expected[mask])


@pytest.mark.parametrize("options", [{}, {"n_embeddings": 3}], ids=str)
def test_energy_forces_and_virial_do_not_change(options):
    student, plain = small_student(**options), graph()
    grouped = group_slots(plain, element_counts(plain.neighbors, plain.species, len(ELEMENTS)))
    model = RowModel(
        lambda *rows: student.module.apply(student.variables, *rows),
        student.module.weights(student.variables),
    )
    expected = evaluate(model, jax.tree.map(jnp.asarray, plain), reference)
    found = evaluate(model, jax.tree.map(jnp.asarray, grouped), blocked)
    for name in ("energy", "forces", "virial", "per_atom_energy"):
        a, b = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-11 * float(jnp.abs(b).max()))


def test_too_few_slots_are_refused():
    plain = graph()
    groups = element_counts(plain.neighbors, plain.species, len(ELEMENTS))
    with pytest.raises(CapacityError, match="neighbours of element 0"):
        group_slots(plain, groups - [1, 0, 0])
