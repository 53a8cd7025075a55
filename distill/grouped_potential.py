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

from distill.gathered_forces import gathered_forces, shared_forces
from distill.kernels import Kernel, MomentWeights, RowModel, blocked
from distill.kernels.kept import if_wanted
from distill.kernels.moment_blocks import Components, RowsOfWidth, moment_blocks_in_place
from distill.kernels.packed import Packed, pack, unpack
from distill.neighbors.grouped import GroupedList, extended_positions, grouped_list
from distill.neighbors.parts import split_rows
from distill.shared_rows import Share, on_devices, with_shares


class GroupedFunctions(NamedTuple):
    """The functions of a `Potential`; see there for the first three.

    Attributes:
        run: `(positions [n, 3], list, cell=None, wanted=False, beside=None) -> RowResults`, forces
            in the order of the atoms, in a cell `[3, 3]` or in that of the atoms. The virial is
            there if a cell is given or `wanted` is not False; where that is an array `()`, the
            virial in the atoms' cell means nothing unless it is true. `beside` makes one number for
            each row, `[n]`, from the features `[n, H]`; zero if `wanted` is an array that is false.
    """

    allocate: Callable[..., GroupedList]
    update: Callable[[GroupedList, jax.Array], GroupedList]
    overflow: Callable[[GroupedList, jax.Array], jax.Array]
    run: Callable[..., RowResults]


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
        share: Share | None, positions: Any, nbrs: Any, cell: Any, wanted: Any, beside: Any
    ) -> RowResults:
        """Results of the rows of a share, zero for the others, or of all; forces by row."""
        extended = extended_positions(nbrs, positions, cell)
        parts = nbrs.layout.parts
        shares = [] if share is None else [share.of(part.species) for part in parts]
        own = split_rows(extended[nbrs.rows], [part.count for part in parts])
        given = []
        for number, part in enumerate(parts):
            mine, kinds = (nbrs.neighbors[number], own[number]), part.species
            if shares:
                mine, kinds = shares[number].taken(mine), shares[number].elements
            given.append(RowsOfWidth(mine, part.neighbor_species, kinds))
        found = _evaluate(weights, kernel, extended, given, wanted)
        energies, features, gradient, virials = found
        kinds = np.concatenate([rows_of_part.species for rows_of_part in given])
        expected = None if beside is None else beside(features, kinds)
        if not shares:
            forces = gathered_forces(gradient, nbrs.reverse, parts)
        else:
            forces = shared_forces(gradient, nbrs.reverse, parts, shares)
            energies, expected = jax.tree.map(partial(_spread, shares), (energies, expected))
            if virials is not None:
                virials = _by_share(shares, virials, Share.counted)
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

    def run(
        positions: jax.Array,
        nbrs: GroupedList,
        own_cell: Any = None,
        wanted: Any = False,
        beside: Any = None,
    ) -> RowResults:
        settings = (cell, wanted) if own_cell is None else (own_cell, True)
        expected = None if beside is None else partial(_if_asked, wanted, beside)
        return in_order(evaluate(positions, nbrs, *settings, expected), nbrs)

    return GroupedFunctions(allocate, update, overflow, run)


def _if_asked(wanted: Any, beside: Callable[..., jax.Array], *given: Any) -> jax.Array:
    found: jax.Array = if_wanted(wanted is False or wanted, lambda: beside(*given))
    return found


def _spread(shares: Sequence[Share], by_row: jax.Array) -> jax.Array:
    """Results of all rows, `[n, ...]`, from those of a device: zero where another one counts."""
    return _by_share(shares, by_row, Share.spread)


def _by_share(
    shares: Sequence[Share], by_row: jax.Array, function: Callable[[Share, jax.Array], jax.Array]
) -> jax.Array:
    own = split_rows(by_row, [len(share.elements) for share in shares])
    return jnp.concatenate([function(share, rows) for share, rows in zip(shares, own, strict=True)])


def _evaluate(
    weights: MomentWeights,
    kernel: Kernel,
    extended: jax.Array,
    parts: Sequence[RowsOfWidth],
    wanted: Any,
) -> tuple[jax.Array, jax.Array, Packed, jax.Array | None]:
    """Energies, features, gradient (flat) and virials of rows.

    Args:
        weights: of the model.
        kernel: see `grouped_functions`.
        extended: positions `[E, 3]` of the extended atoms.
        parts: neighbours `[b, K]` and own positions `[b, 3]` of rows.
        wanted: whether virials are, see `GroupedFunctions`.
    """
    # Gathers of numbers are faster than gathers of rows of three.
    everyone = pack(*extended.T)

    def vectors(given: tuple[jax.Array, jax.Array]) -> Components:
        others, own = given
        both = zip(everyone, pack(*own.T), strict=True)
        level, z = (
            there.at[others].get(mode="promise_in_bounds") - here[:, None] for there, here in both
        )
        return unpack((level, z))

    if kernel is blocked:
        own = weights.astype(extended.dtype)
        return moment_blocks_in_place(own, vectors, parts, virials_wanted=wanted)
    model, found = RowModel(_by_weights_alone, weights), []
    for part in parts:
        filled = part.rows[0] < len(extended) - 1
        every = jnp.stack(vectors(part.rows), axis=-1)
        (energies, features), whole = kernel(
            model, every, part.neighbor_species, filled, part.species
        )
        within = jnp.where(filled[..., None], every, 0)

        def sums(within: jax.Array = within, whole: jax.Array = whole) -> jax.Array:
            return jnp.einsum("nka,nkb->nab", within, whole)

        virials = None if wanted is False else if_wanted(wanted, sums)
        flat = pack(*(whole[..., axis].reshape(-1) for axis in range(3)))
        found.append((energies, features, flat, virials))
    joined: tuple[jax.Array, jax.Array, Packed, jax.Array | None]
    joined = jax.tree.map(lambda *own: jnp.concatenate(own), *found)
    return joined


def _by_weights_alone(*_: Any) -> Any:
    raise NotImplementedError("grouped lists serve kernels that evaluate a model by its weights")


def in_order_of_atoms(by_row: jax.Array, nbrs: GroupedList) -> jax.Array:
    """`[n, ...]` by atom from `[n, ...]` by row."""
    return jnp.zeros_like(by_row).at[nbrs.order].set(by_row, unique_indices=True)
