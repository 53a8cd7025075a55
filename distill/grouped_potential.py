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
from distill.kernels.moment_blocks import Components, blocks_in_place, element_runs, moment_blocks
from distill.neighbors.grouped import GroupedList, extended_positions, grouped_list

FORCE_ROWS = 256
"""Rows whose forces are summed at once."""


class GroupedFunctions(NamedTuple):
    """The functions of a `Potential`; see there for the first three.

    Attributes:
        run: `(positions [n, 3], list) -> (energies [n], features [n, H], forces [n, 3])`, eV and
            eV/Å; energies and features in the order of the rows, forces in that of the atoms.
        run_in_cell: `(positions, list, cell [3, 3]) -> (energies, features, forces, virial
            [3, 3])`: the same in another cell than that of the atoms, and dE/dstrain in eV.
        rows: `[n]` int32, static: the element of each row.
    """

    allocate: Callable[..., GroupedList]
    update: Callable[[GroupedList, jax.Array], GroupedList]
    overflow: Callable[[GroupedList, jax.Array], jax.Array]
    run: Callable[[jax.Array, GroupedList], tuple[jax.Array, jax.Array, jax.Array]]
    run_in_cell: Callable[
        [jax.Array, GroupedList, Any], tuple[jax.Array, jax.Array, jax.Array, jax.Array]
    ]
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

    def evaluated(positions: jax.Array, nbrs: GroupedList, cell: Any, with_virial: bool) -> Any:
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
            energies, features, gradient, virials = moment_blocks(
                own, vectors, given, others, runs, with_virials=with_virial, in_place=True
            )
        else:
            filled = nbrs.neighbors < len(extended) - 1
            every = jnp.stack(vectors(given), axis=-1)
            (energies, features), whole = kernel(model, every, others, filled, rows)
            gradient = whole[..., 0], whole[..., 1], whole[..., 2]
            within = jnp.where(filled[..., None], every, 0)
            virials = jnp.einsum("nka,nkb->nab", within, whole) if with_virial else None
        by_row = gathered_forces(gradient, nbrs.reverse)
        forces = in_order_of_atoms(by_row, nbrs)
        return energies, features, forces, virials.sum(0) if virials is not None else None

    def run(positions: jax.Array, nbrs: GroupedList) -> tuple[jax.Array, jax.Array, jax.Array]:
        energies, features, forces, _ = evaluated(positions, nbrs, cell, False)
        return energies, features, forces

    def run_in_cell(positions: jax.Array, nbrs: GroupedList, cell: Any) -> Any:
        return evaluated(positions, nbrs, cell, True)

    return GroupedFunctions(allocate, lists.update, overflow, run, run_in_cell, rows)


def _by_weights_alone(*_: Any) -> Any:
    raise NotImplementedError("grouped lists serve kernels that evaluate a model by its weights")


def gathered_forces(gradient: Components, reverse: jax.Array) -> jax.Array:
    """Forces `[n, 3]` from the gradient by each pair's vector, `[n, K]` for each axis.

    `reverse` `[n, K]` says where the mirrored pair is, `n * K` for none.
    """
    flat = [axis.reshape(-1) for axis in gradient]

    def forces(rows: tuple[Components, jax.Array]) -> jax.Array:
        own, there = rows
        mirrored = (axis.at[there].get(mode="fill", fill_value=0) for axis in flat)
        parts = [(one - other).sum(axis=1) for one, other in zip(own, mirrored, strict=True)]
        return jnp.stack(parts, axis=-1)

    # Differences of few rows at a time stay in the cache.
    return blocks_in_place([(forces, 0, len(reverse))], (gradient, reverse), FORCE_ROWS)


def in_order_of_atoms(by_row: jax.Array, nbrs: GroupedList) -> jax.Array:
    """`[n, ...]` by atom from `[n, ...]` by row."""
    return jnp.zeros_like(by_row).at[nbrs.order].set(by_row, unique_indices=True)
