"""Blocks that use up their lists give the same, and no caller loses an array by it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import small_student, water_box

from distill.simulation import MDConfig, make_block

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_lists_are_used_up_and_nothing_else() -> None:
    student = small_student(max_l=1, n_channels=2, n_triples=0, hidden=(4,))
    atoms = water_box(3)
    potential = student.potential(atoms)
    config = MDConfig(timestep=0.5, record_every=5, block_steps=10)
    positions = jnp.asarray(atoms.positions, jnp.float32)
    found = []
    for donate in (False, True):
        start, block = make_block(potential, config, donate_lists=donate)
        # On arrays that the state holds too, as after an overflow.
        lists = potential.allocate(positions)
        state = start(jax.random.PRNGKey(0), positions, lists)
        new, after, records, overflow = block(state, lists, 2)
        assert not overflow and lists.neighbors[0].is_deleted() == donate
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((state, positions)))
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))
        found.append(np.asarray(new.position))
    np.testing.assert_array_equal(*found)
