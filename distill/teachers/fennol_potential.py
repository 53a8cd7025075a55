"""MD potentials of FeNNol models: lists, forces, and the virial in any cell the lists cover."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms

from distill.potential import Evaluation, Potential
from distill.teachers.fennol_energy import FennolEnergy, FennolLists


def fennol_potential(
    energy_function: Callable[[Atoms], FennolEnergy], atoms: Atoms, dtype: Any
) -> Potential:
    """Potential for structures like `atoms`, its lists made anew by every `update`.

    FeNNol masks pairs by their distance where it evaluates them. So lists of a smaller cell, into
    which positions were scaled, serve in a larger one, as `Potential.evaluate` asks for.

    Args:
        energy_function: `FennolTeacher.energy_function`.
        atoms: elements, cell and periodicity.
        dtype: precision of the simulation.

    Raises:
        UnknownElementError, UnsupportedStructureError: see `check_structures`.
    """
    function = energy_function(atoms)
    own_cell = jnp.asarray(atoms.cell.array, dtype) if function.periodic else None

    @jax.jit
    def build(positions: jax.Array, empty: FennolLists) -> FennolLists:
        return replace(function, state=empty.state).lists(positions, own_cell)

    def allocate(positions: jax.Array, previous: FennolLists | None = None) -> FennolLists:
        positions = jnp.asarray(positions, dtype)
        state = function.state if previous is None else previous.state
        lists = build(positions, FennolLists({}, jnp.zeros((), bool), state))
        if previous is not None or bool(lists.overflow):
            enlarge = previous is not None and bool(previous.overflow)
            inputs = function.inputs(positions, own_cell)
            state = function.model.allocate(inputs, state, enlarge)
            lists = build(positions, FennolLists({}, jnp.zeros((), bool), state))
        return lists

    def update(lists: FennolLists, positions: jax.Array) -> FennolLists:
        new = replace(function, state=lists.state).lists(positions, own_cell)
        return replace(new, overflow=new.overflow | lists.overflow)

    def energy(positions: jax.Array, lists: FennolLists) -> jax.Array:
        return function.member_energies(positions, lists, own_cell).mean()

    def evaluate(positions: jax.Array, lists: FennolLists, cell: jax.Array) -> Evaluation:
        def strained(positions: jax.Array, strain: jax.Array) -> jax.Array:
            deformation = jnp.eye(3, dtype=positions.dtype) + strain
            moved = _product(positions, deformation)
            box = _product(cell, deformation) if function.periodic else None
            return function.member_energies(moved, lists, box).mean()

        none = jnp.zeros((3, 3), positions.dtype)
        value, (gradient, virial) = jax.value_and_grad(strained, (0, 1))(positions, none)
        unknown = jnp.full(len(positions), jnp.nan, positions.dtype)
        return Evaluation(value[None], -gradient, virial[None], unknown)

    def with_cell(cell: np.ndarray) -> Potential:
        other = atoms.copy()
        # Scaled, so that the capacities are those of the crowding in this cell.
        other.set_cell(cell, scale_atoms=True)
        return fennol_potential(energy_function, other, dtype)

    return Potential.from_energy(
        energy,
        allocate=allocate,
        update=update,
        overflow=lambda lists, positions: lists.overflow,
        numbers=atoms.numbers.copy(),
        dtype=dtype,
        evaluate=evaluate,
        cell=atoms.cell.array.copy(),
        pbc=atoms.pbc.copy(),
        with_cell=with_cell if function.periodic else None,
    )


def _product(vectors: jax.Array, matrix: jax.Array) -> jax.Array:
    """`vectors @ matrix`; GPUs would multiply float32 with ten bits."""
    return jnp.matmul(vectors, matrix, precision=jax.lax.Precision.HIGHEST)
