"""A potential without neighbour lists, from an energy of positions and cell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms

from distill.potential import Evaluation, Potential


def potential_without_lists(
    atoms: Atoms, energy: Callable[[jax.Array, jax.Array], jax.Array]
) -> Potential:
    """Forces and virial by automatic differentiation of `energy(positions, cell)`, eV."""

    def evaluate(positions: jax.Array, lists: Any, cell: jax.Array) -> Evaluation:
        value, (gradient, by_cell) = jax.value_and_grad(energy, (0, 1))(positions, cell)
        virial = positions.T @ gradient + cell.T @ by_cell
        rows = jnp.zeros(len(positions))
        return Evaluation(value[None], -gradient, 0.5 * (virial + virial.T)[None], rows)

    made = Potential(
        numbers=atoms.numbers,
        dtype=np.float64,
        allocate=lambda positions, previous=None: jnp.zeros(()),
        update=lambda lists, positions: lists,
        overflow=lambda lists, positions: jnp.zeros((), bool),
        energy_and_forces=lambda positions, lists: (jnp.zeros(()), 0 * positions),
        evaluate=evaluate,
        cell=atoms.cell.array,
        pbc=atoms.pbc,
    )

    def with_cell(cell: Any) -> Potential:
        # So small that no cell is smaller: without lists every reference is as good.
        return replace(made, cell=0.3 * cell, with_cell=with_cell)

    return replace(made, with_cell=with_cell)


def no_energy(positions: jax.Array, cell: jax.Array) -> jax.Array:
    """That of an ideal gas."""
    return 0.0 * (positions.sum() + cell.sum())
