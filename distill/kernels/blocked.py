"""Rows in blocks that stay in cache: each block's gradient is taken at once.

Rows are independent, so the intermediate arrays of one block (a few hundred kB) never leave the
cache, whereas those of all rows would stream through memory several times. Where the slots are
grouped by element and the model is known by its weights, the gradient is the one written by hand
in `distill.kernels.moment`; atoms of one element that stand together share a block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill.kernels.contract import AtomicEnergy, NeighborSpecies, RowModel, Species
from distill.kernels.moment import MomentWeights, cartesian, moment_rows, moment_terms
from distill.kernels.pair_terms import pair_terms
from distill.kernels.reference import reference

BLOCK_ROWS = 64
"""Rows per block; with the default student their arrays take about 1 MB in float32."""

CHUNK_ROWS = 2048
"""Rows whose pair terms are held at once; they stream through memory, so few are better."""


def blocked(
    atomic_energy: AtomicEnergy,
    displacements: jax.Array,
    neighbor_species: NeighborSpecies,
    mask: jax.Array,
    species: Species,
) -> tuple[Any, jax.Array]:
    """Same results as `reference`, at less memory traffic for more than `BLOCK_ROWS` rows."""
    weights = atomic_energy.moments if isinstance(atomic_energy, RowModel) else None
    if weights is None or not isinstance(neighbor_species, np.ndarray):
        return _any_model(atomic_energy, displacements, neighbor_species, mask, species)
    weights = weights.astype(displacements.dtype)
    runs = _runs(species)
    if runs is None:
        energies, features, gradients = moment_rows(
            weights, displacements, neighbor_species, species
        )
        return (energies, features), gradients
    parts = [
        _moment_blocks(weights, displacements[start:end], neighbor_species, element)
        for element, start, end in runs
    ]
    energies, features, gradients = (jnp.concatenate(own) for own in zip(*parts, strict=True))
    return (energies, features), gradients


def _moment_blocks(
    weights: MomentWeights, displacements: jax.Array, neighbor_species: np.ndarray, element: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rows of one element."""

    def block(terms: Any) -> Any:
        own = np.full(len(terms.x), element)
        return moment_terms(weights, terms, neighbor_species, own)

    def chunk(vectors: jax.Array) -> Any:
        # The sines and square roots of a chunk first: inside a block XLA would repeat them.
        terms = pair_terms(vectors, weights.cutoff)
        energies, features, slopes = in_blocks(block, terms, BLOCK_ROWS)
        return energies, features, jnp.stack(cartesian(terms, slopes), axis=-1)

    result: tuple[jax.Array, jax.Array, jax.Array] = in_blocks(chunk, displacements, CHUNK_ROWS)
    return result


def in_blocks(function: Callable[[Any], Any], rows: Any, size: int) -> Any:
    """`function` of arrays with rows along the leading axis, `size` rows at a time."""
    count = len(jax.tree.leaves(rows)[0])
    if count <= size:
        return function(rows)
    n_blocks = -(-count // size)
    extra = n_blocks * size - count

    def split(array: jax.Array) -> jax.Array:
        # Repeating the last row keeps padding rows inside the range of real ones.
        padded = jnp.concatenate([array, jnp.repeat(array[-1:], extra, axis=0)]) if extra else array
        return padded.reshape(n_blocks, size, *array.shape[1:])

    found = jax.lax.map(function, jax.tree.map(split, rows))
    return jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:])[:count], found)


def _any_model(
    atomic_energy: AtomicEnergy,
    displacements: jax.Array,
    neighbor_species: NeighborSpecies,
    mask: jax.Array,
    species: Species,
) -> tuple[Any, jax.Array]:
    rows = displacements, neighbor_species, mask, species
    if len(displacements) <= BLOCK_ROWS:
        return reference(atomic_energy, *rows)
    others = jnp.broadcast_to(jnp.asarray(neighbor_species), mask.shape)
    return in_blocks(
        lambda block: reference(atomic_energy, *block),
        (displacements, others, mask, jnp.asarray(species)),
        BLOCK_ROWS,
    )


def _runs(species: Species) -> list[tuple[int, int, int]] | None:
    """`(element, start, end)` of rows that stand together, if species are static and sorted."""
    if not isinstance(species, np.ndarray) or (np.diff(species) < 0).any():
        return None
    elements, starts = np.unique(species, return_index=True)
    ends = [*starts[1:], len(species)]
    return [
        (int(e), int(start), int(end)) for e, start, end in zip(elements, starts, ends, strict=True)
    ]
