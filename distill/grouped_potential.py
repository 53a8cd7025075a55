"""Molecular dynamics of a moment model on grouped neighbour lists.

Rows stand in the order of the list, so that the element of every row and slot is static. Each
chunk of rows gathers its vectors and is evaluated at once; what is held of all pairs is the
gradient, from which every atom gathers its forces: no sum is scattered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms

from distill.kernels import Kernel, MomentWeights, RowModel, blocked
from distill.kernels.moment_blocks import Components, element_runs, moment_blocks
from distill.neighbors.grouped import GroupedList, extended_positions, grouped_list


class GroupedFunctions(NamedTuple):
    """The functions of a `Potential`; see there for the first three.

    Attributes:
        run: `(positions [n, 3], list) -> (energies [n], features [n, H], forces [n, 3])`, eV and
            eV/Å; energies and features in the order of the rows, forces in that of the atoms.
        rows: `[n]` int32, static: the element of each row.
    """

    allocate: Callable[..., GroupedList]
    update: Callable[[GroupedList, jax.Array], GroupedList]
    overflow: Callable[[GroupedList, jax.Array], jax.Array]
    run: Callable[[jax.Array, GroupedList], tuple[jax.Array, jax.Array, jax.Array]]
    rows: np.ndarray


def grouped_functions(
    weights: MomentWeights,
    atoms: Atoms,
    species: np.ndarray,
    skin: float,
    dtype: Any,
    kernel: Kernel = blocked,
) -> GroupedFunctions:
    """Functions for structures like `atoms`; arguments as for `local_potential`.

    `blocked` takes its vectors chunk by chunk; any other kernel gets those of all rows at once.
    """
    cell = np.asarray(atoms.cell.array)
    lists = grouped_list(cell, atoms.pbc, species, weights.cutoff, skin=skin)
    rows = np.sort(lists.species)
    runs = element_runs(rows)
    assert runs is not None
    model = RowModel(_by_weights_alone, weights)

    def allocate(positions: jax.Array, previous: GroupedList | None = None) -> GroupedList:
        return lists.allocate(jnp.asarray(positions, dtype), previous=previous)

    def overflow(nbrs: GroupedList, positions: jax.Array) -> jax.Array:
        return nbrs.overflow | nbrs.stale | lists.is_stale(nbrs, positions)

    def run(positions: jax.Array, nbrs: GroupedList) -> tuple[jax.Array, jax.Array, jax.Array]:
        extended = extended_positions(nbrs, positions, cell)
        # Gathers of numbers are faster than gathers of rows of three.
        axes = [extended[:, axis] for axis in range(3)]

        def vectors(given: tuple[jax.Array, jax.Array]) -> Components:
            others, own = given
            x, y, z = (
                axis.at[others].get(mode="promise_in_bounds") - own[:, number, None]
                for number, axis in enumerate(axes)
            )
            return x, y, z

        given = nbrs.neighbors, extended[: len(rows)]
        others = np.repeat(np.arange(len(nbrs.groups), dtype=np.int32), nbrs.groups)
        if kernel is blocked:
            own = weights.astype(positions.dtype)
            energies, features, gradient = moment_blocks(own, vectors, given, others, runs)
        else:
            filled = nbrs.neighbors < len(extended) - 1
            every = jnp.stack(vectors(given), axis=-1)
            (energies, features), whole = kernel(model, every, others, filled, rows)
            gradient = whole[..., 0], whole[..., 1], whole[..., 2]
        by_row = gathered_forces(gradient, nbrs.reverse)
        return energies, features, in_order_of_atoms(by_row, nbrs)

    return GroupedFunctions(allocate, lists.update, overflow, run, rows)


def _by_weights_alone(*_: Any) -> Any:
    raise NotImplementedError("grouped lists serve kernels that evaluate a model by its weights")


def gathered_forces(gradient: Components, reverse: jax.Array) -> jax.Array:
    """Forces `[n, 3]` from the gradient by each pair's vector, `[n, K]` for each axis.

    `reverse` `[n, K]` says where the mirrored pair is, `n * K` for none.
    """
    parts = []
    for own in gradient:
        mirrored = own.reshape(-1).at[reverse].get(mode="fill", fill_value=0)
        parts.append((own - mirrored).sum(axis=1))
    return jnp.stack(parts, axis=-1)


def in_order_of_atoms(by_row: jax.Array, nbrs: GroupedList) -> jax.Array:
    """`[n, ...]` by atom from `[n, ...]` by row."""
    return jnp.zeros_like(by_row).at[nbrs.order].set(by_row, unique_indices=True)
