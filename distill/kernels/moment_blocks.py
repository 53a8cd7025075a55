"""Moment models over many rows: those of one element together, in pieces that stay in cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill.kernels.contract import Species
from distill.kernels.kept import kept
from distill.kernels.moment import MomentWeights, moment_terms
from distill.kernels.packed import Packed, pack
from distill.kernels.pair_slopes import cartesian, slopes_by_sums
from distill.kernels.pair_terms import component_terms

BLOCK_ROWS = 64
"""Rows per block; with the default student their arrays take about 1 MB in float32."""

FORCE_ROWS = 256
"""Rows whose forces are summed at once."""

Components = tuple[jax.Array, jax.Array, jax.Array]
"""Three arrays `[b, K]`: x, y and z of vectors to neighbours, or of the gradient by them."""


def moment_blocks(
    weights: MomentWeights,
    vectors_of: Callable[[Any], Components],
    rows: Any,
    neighbor_species: np.ndarray,
    runs: list[tuple[int, int, int]],
    *,
    with_virials: bool = False,
    in_place: bool = False,
) -> tuple[jax.Array, jax.Array, Any, jax.Array | None]:
    """Energies `[b]` (eV), last features `[b, H]`, gradient (eV/Å) and virials of sorted rows.

    Virials `[b, 3, 3]` are the sums over the slots of a row of vector ⊗ gradient, in eV.

    Args:
        weights: of the model, in the precision of the vectors.
        vectors_of: from some of the rows to the vectors to their neighbours in Å, so that those of
            all rows need not be held at once.
        rows: arrays with rows along the leading axis.
        neighbor_species: `[K]`, sorted: the element of each slot.
        runs: `(element, start, end)` of the rows, see `element_runs`.
        with_virials: whether to sum them; None is returned in their place otherwise.
        in_place: write the results of all elements into arrays that are made once, which takes half
            the memory; the gradient is packed. Reverse differentiation of it is slow.
    """
    shaped = pack if in_place else _alone
    parts, functions = [], []
    for element, start, end in runs:

        def block(given: Any, element: int = element) -> Any:
            x, y, z = kept(lambda: vectors_of(given), jax.tree.leaves(given)[-1])
            ends = weights.cutoff, weights.angular_cutoff
            terms = kept(lambda: component_terms(x, y, z, *ends), x)
            own = np.full(len(terms.x), element)
            energies, features, slopes = moment_terms(
                weights, terms, neighbor_species, own, slopes_by_sums
            )
            if not with_virials:
                return energies, features, shaped(*cartesian(terms, slopes)), None
            gradient = kept(lambda: cartesian(terms, slopes), x)
            return energies, features, shaped(*gradient), _virials((x, y, z), gradient)

        if in_place:
            functions.append((block, start, end))
            continue
        mine = jax.tree.map(lambda array, own=slice(start, end): array[own], rows)
        parts.append(in_blocks(block, mine, BLOCK_ROWS))
    if in_place:
        written: tuple[jax.Array, jax.Array, Packed, jax.Array | None]
        written = blocks_in_place(functions, rows, BLOCK_ROWS)
        return written
    joined: tuple[jax.Array, jax.Array, Components, jax.Array | None]
    joined = jax.tree.map(lambda *own: jnp.concatenate(own), *parts)
    return joined


def _alone(x: jax.Array, y: jax.Array, z: jax.Array) -> Components:
    return x, y, z


def _virials(vectors: Components, gradient: Components) -> jax.Array:
    sums = [(r * g).sum(axis=1) for r in vectors for g in gradient]
    return jnp.stack(sums, axis=-1).reshape(-1, 3, 3)


def blocks_in_place(
    functions: Sequence[tuple[Callable[[Any], Any], int, int]], rows: Any, size: int
) -> Any:
    """`in_blocks` of functions for rows from a start to an end each, joined, without a copy.

    The last block of a function begins early enough to be whole, and repeats some rows.
    """
    count = len(jax.tree.leaves(rows)[0])
    # Overwritten throughout. A constant would be made, and hold memory, before rows are there.
    anything = jnp.real(jax.tree.leaves(rows)[0].reshape(-1)[0])
    found: Any = None
    for function, start, end in functions:
        n_blocks = -(-(end - start) // size)
        if n_blocks == 1 and end - start > size // 2 and (end - start) % 16 == 0:
            n_blocks = 2  # Without a loop the compiler holds more temporary arrays at once.
        even = -(-(end - start) // n_blocks)
        own = min(end - start, size, -(-even // 8) * 8)

        def block(
            number: Any, written: Any, function: Any = function, at: Any = (start, end, own)
        ) -> Any:
            first, last, own = at
            begin = jnp.minimum(first + number * own, last - own)
            given = jax.tree.map(
                lambda array: jax.lax.dynamic_slice_in_dim(array, begin, own), rows
            )
            return jax.tree.map(
                lambda all_rows, new: jax.lax.dynamic_update_slice_in_dim(all_rows, new, begin, 0),
                written,
                function(given),
            )

        if found is None:
            given = jax.tree.map(lambda array, own=own: array[:own], rows)
            found = jax.tree.map(
                lambda leaf: jnp.full((count, *leaf.shape[1:]), anything.astype(leaf.dtype)),
                jax.eval_shape(function, given),
            )
        found = block(0, found) if n_blocks == 1 else jax.lax.fori_loop(0, n_blocks, block, found)
    return found


def in_blocks(function: Callable[[Any], Any], rows: Any, size: int) -> Any:
    """`function` of arrays with rows along the leading axis, at most `size` rows at a time."""
    count = len(jax.tree.leaves(rows)[0])
    if count <= size:
        return function(rows)
    n_blocks = -(-count // size)
    # Blocks of even size leave few rows to pad; whole cache lines where there are many.
    even = -(-count // n_blocks)
    size = min(size, -(-even // 8) * 8)
    extra = n_blocks * size - count

    def split(array: jax.Array) -> jax.Array:
        # Repeating the last row keeps padding rows inside the range of real ones.
        padded = jnp.concatenate([array, jnp.repeat(array[-1:], extra, axis=0)]) if extra else array
        return padded.reshape(n_blocks, size, *array.shape[1:])

    found = jax.lax.map(function, jax.tree.map(split, rows))
    return jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:])[:count], found)


def element_runs(species: Species) -> list[tuple[int, int, int]] | None:
    """`(element, start, end)` of rows that stand together, if species are static and sorted."""
    if not isinstance(species, np.ndarray) or (np.diff(species) < 0).any():
        return None
    elements, starts = np.unique(species, return_index=True)
    ends = [*starts[1:], len(species)]
    return [
        (int(e), int(start), int(end)) for e, start, end in zip(elements, starts, ends, strict=True)
    ]
