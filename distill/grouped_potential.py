"""Molecular dynamics of a moment model on grouped neighbour lists.

Rows stand in the order of the list, so that the element of every row and slot is static. Each
chunk of rows gathers its vectors and is evaluated at once; what is held of all pairs is the
gradient, from which every atom gathers its forces: no sum is scattered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms

from distill.kernels import Kernel, MomentWeights, RowModel, blocked
from distill.kernels.moment_blocks import (
    FORCE_ROWS,
    Components,
    blocks_in_place,
    element_runs,
    moment_blocks,
)
from distill.kernels.packed import Packed, pack, summed, unpack
from distill.neighbors.grouped import GroupedList, extended_positions, grouped_list
from distill.shared_rows import Share, on_devices, with_shares


class GroupedFunctions(NamedTuple):
    """The functions of a `Potential`; see there for the first three.

    Attributes:
        run: `(positions [n, 3], list, beside=None) -> RowResults`, forces in the order of the
            atoms. `beside` makes one number for each row, `[n]`, from the features `[n, H]`.
        run_in_cell: `(positions, list, cell [3, 3], beside=None) -> RowResults`: the same in
            another cell than that of the atoms, with the virial.
    """

    allocate: Callable[..., GroupedList]
    update: Callable[[GroupedList, jax.Array], GroupedList]
    overflow: Callable[[GroupedList, jax.Array], jax.Array]
    run: Callable[..., RowResults]
    run_in_cell: Callable[..., RowResults]


class RowResults(NamedTuple):
    """What rows give.

    Attributes:
        energies: `[n]`, eV, in the order of the rows.
        beside: `[n]` in that order, or None.
        forces: `[n, 3]`, eV/Å, in the order of the rows or, where said so, of the atoms.
        virial: `[3, 3]`, eV, dE/dstrain, or None.
    """

    energies: jax.Array
    beside: jax.Array | None
    forces: jax.Array
    virial: jax.Array | None


def grouped_functions(
    weights: MomentWeights,
    atoms: Atoms,
    species: np.ndarray,
    skin: float,
    dtype: Any,
    kernel: Kernel = blocked,
    devices: Sequence[jax.Device] = (),
) -> GroupedFunctions:
    """Functions for structures like `atoms`; arguments as for `local_potential`.

    `blocked` takes its vectors chunk by chunk; any other kernel gets those of all rows at once.
    """
    cell = np.asarray(atoms.cell.array)
    lists = grouped_list(cell, atoms.pbc, species, weights.cutoff, skin=skin)
    rows = np.sort(lists.species)

    def allocate(positions: jax.Array, previous: GroupedList | None = None) -> GroupedList:
        return lists.allocate(jnp.asarray(positions, dtype), previous=previous)

    def overflow(nbrs: GroupedList, positions: jax.Array) -> jax.Array:
        return nbrs.overflow | nbrs.stale | lists.is_stale(nbrs, positions)

    def of_rows(
        share: Share | None, positions: Any, nbrs: Any, cell: Any, with_virial: bool, beside: Any
    ) -> RowResults:
        """Results of the rows of a share, zero for the others, or of all; forces by row."""
        extended = extended_positions(nbrs, positions, cell)
        given = nbrs.neighbors, extended[: len(rows)]
        kinds = rows
        if share is not None:
            given, kinds = share.taken(given), share.elements
        energies, features, gradient, virials = _evaluate(
            weights, kernel, extended, given, nbrs.groups, kinds, with_virial
        )
        results = energies, None if beside is None else beside(features, kinds), virials
        if share is None:
            forces = gathered_forces(gradient, nbrs.reverse)
        else:
            forces = share.forces(gradient, nbrs.reverse)
            results = jax.tree.map(share.spread, results)
        energies, expected, virials = results
        return RowResults(energies, expected, forces, None if virials is None else virials.sum(0))

    evaluate: Callable[..., Any] = partial(of_rows, None)
    update: Callable[..., GroupedList] = lists.update
    if devices:
        evaluate = on_devices(of_rows, rows, devices)
        update = with_shares(
            lambda share, nbrs, positions: lists.update(nbrs, positions, share), rows, devices
        )

    def in_order(found: RowResults, nbrs: GroupedList) -> RowResults:
        return found._replace(forces=in_order_of_atoms(found.forces, nbrs))

    def run(positions: jax.Array, nbrs: GroupedList, beside: Any = None) -> RowResults:
        return in_order(evaluate(positions, nbrs, cell, False, beside), nbrs)

    def run_in_cell(
        positions: jax.Array, nbrs: GroupedList, cell: Any, beside: Any = None
    ) -> RowResults:
        return in_order(evaluate(positions, nbrs, cell, True, beside), nbrs)

    return GroupedFunctions(allocate, update, overflow, run, run_in_cell)


def _evaluate(
    weights: MomentWeights,
    kernel: Kernel,
    extended: jax.Array,
    given: tuple[jax.Array, jax.Array],
    groups: tuple[int, ...],
    rows: np.ndarray,
    with_virial: bool,
) -> tuple[jax.Array, jax.Array, Packed, jax.Array | None]:
    """Energies, features, gradient and virials of rows of the elements `rows`, sorted.

    Args:
        weights: of the model.
        kernel: see `grouped_functions`.
        extended: positions `[E, 3]` of the extended atoms.
        given: neighbours `[b, K]` and own position `[b, 3]` of each row.
        groups: slots for each element.
        rows: `[b]`, static.
        with_virial: whether virials are wanted.
    """
    # Gathers of numbers are faster than gathers of rows of three.
    everyone = pack(*extended.T)

    def vectors(given: tuple[jax.Array, jax.Array]) -> Components:
        others, own = given
        parts = zip(everyone, pack(*own.T), strict=True)
        level, z = (
            there.at[others].get(mode="promise_in_bounds") - here[:, None] for there, here in parts
        )
        return unpack((level, z))

    others = np.repeat(np.arange(len(groups), dtype=np.int32), groups)
    if kernel is blocked:
        runs = element_runs(rows)
        assert runs is not None
        own = weights.astype(extended.dtype)
        return moment_blocks(
            own, vectors, given, others, runs, with_virials=with_virial, in_place=True
        )
    filled = given[0] < len(extended) - 1
    every = jnp.stack(vectors(given), axis=-1)
    model = RowModel(_by_weights_alone, weights)
    (energies, features), whole = kernel(model, every, others, filled, rows)
    within = jnp.where(filled[..., None], every, 0)
    virials = jnp.einsum("nka,nkb->nab", within, whole) if with_virial else None
    return energies, features, pack(whole[..., 0], whole[..., 1], whole[..., 2]), virials


def _by_weights_alone(*_: Any) -> Any:
    raise NotImplementedError("grouped lists serve kernels that evaluate a model by its weights")


def gathered_forces(gradient: Packed, reverse: jax.Array) -> jax.Array:
    """Forces `[n, 3]` from the gradient by each pair's vector, packed, `[n, K]`.

    `reverse` `[n, K]` says where the mirrored pair is, `n * K` for none.
    """
    flat = [part.reshape(-1) for part in gradient]

    def forces(rows: tuple[Packed, jax.Array]) -> jax.Array:
        own, there = rows
        mirrored = (part.at[there].get(mode="fill", fill_value=0) for part in flat)
        level, z = (one - other for one, other in zip(own, mirrored, strict=True))
        return summed((level, z))

    # Differences of few rows at a time stay in the cache.
    return blocks_in_place([(forces, 0, len(reverse))], (gradient, reverse), FORCE_ROWS)


def in_order_of_atoms(by_row: jax.Array, nbrs: GroupedList) -> jax.Array:
    """`[n, ...]` by atom from `[n, ...]` by row."""
    return jnp.zeros_like(by_row).at[nbrs.order].set(by_row, unique_indices=True)
