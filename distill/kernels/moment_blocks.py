"""Moment models over many rows: those of one element together, in pieces that stay in cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill.kernels.blocks_in_place import Piece, blocks_in_place
from distill.kernels.contract import Species
from distill.kernels.density_energies import energies_by_columns
from distill.kernels.kept import if_wanted, kept
from distill.kernels.moment import moment_terms
from distill.kernels.moment_weights import MomentWeights
from distill.kernels.packed import Packed, pack, unpack
from distill.kernels.pair_slopes import Slopes, cartesian, slopes_by_sums
from distill.kernels.pair_terms import PairTerms, component_terms

BLOCK_ROWS = 64
"""Rows per block; with the default student their arrays take about 1 MB in float32."""

Components = tuple[jax.Array, jax.Array, jax.Array]
"""Three arrays `[b, K]`: x, y and z of vectors to neighbours, or of the gradient by them."""


class RowsOfWidth(NamedTuple):
    """Rows with equally many slots.

    Attributes:
        rows: arrays with rows along the leading axis.
        neighbor_species: `[K]`, sorted: the element of each slot.
        species: `[b]`, sorted, static: the element of each row.
    """

    rows: Any
    neighbor_species: np.ndarray
    species: np.ndarray


def moment_blocks(
    weights: MomentWeights,
    vectors_of: Callable[[Any], Components],
    rows: Any,
    neighbor_species: np.ndarray,
    runs: list[tuple[int, int, int]],
) -> tuple[jax.Array, jax.Array, Components]:
    """Energies `[b]` (eV), last features `[b, H]` and gradient (eV/Å) of sorted rows.

    Args:
        weights: of the model, in the precision of the vectors.
        vectors_of: from some of the rows to the vectors to their neighbours in Å, so that those of
            all rows need not be held at once.
        rows: arrays with rows along the leading axis.
        neighbor_species: `[K]`, sorted: the element of each slot.
        runs: `(element, start, end)` of the rows, see `element_runs`.
    """
    parts = []
    for element, start, end in runs:
        mine = jax.tree.map(lambda array, own=slice(start, end): array[own], rows)
        block = partial(_block, weights, vectors_of, neighbor_species, element, _components)
        parts.append(in_blocks(block, mine, BLOCK_ROWS))
    joined: tuple[jax.Array, jax.Array, Components]
    joined = jax.tree.map(lambda *own: jnp.concatenate(own), *parts)
    return joined


def moment_blocks_in_place(
    weights: MomentWeights,
    vectors_of: Callable[[Any], Components],
    parts: Sequence[RowsOfWidth],
    *,
    virials_wanted: Any = False,
) -> tuple[jax.Array, jax.Array, Packed, jax.Array | None]:
    """As `moment_blocks` of all parts, one after the other, in half the memory.

    The gradient is packed and flat, slot by slot. Virials `[b, 3, 3]` are the sums over the slots
    of a row of vector ⊗ gradient, in eV: None if `virials_wanted` is False, zeros if it is an
    array `()` that is false and there is no GPU. Reverse differentiation is slow.
    """
    pieces, place, slot = [], 0, 0
    for part in parts:
        runs = element_runs(part.species)
        assert runs is not None
        for element, start, end in runs:

            def block(
                rows: Any, _: Any, part: RowsOfWidth = part, element: int = element
            ) -> tuple[Any, Packed]:
                given = weights, vectors_of, part.neighbor_species, element
                if virials_wanted is False:
                    energies, features, gradient = _block(*given, _packed, rows)
                    return (energies, features, None), gradient
                both = partial(_with_virials, virials_wanted)
                energies, features, (gradient, virials) = _block(*given, both, rows)
                return (energies, features, virials), gradient

            pieces.append(Piece(block, part.rows, start, end, place, slot))
        place += len(part.species)
        slot += len(part.species) * len(part.neighbor_species)
    (energies, features, virials), gradient = blocks_in_place(pieces, BLOCK_ROWS)
    return energies, features, gradient, virials


def _block(
    weights: MomentWeights,
    vectors_of: Callable[[Any], Components],
    neighbor_species: np.ndarray,
    element: int,
    gradient_of: Callable[..., Any],
    rows: Any,
) -> tuple[jax.Array, jax.Array, Any]:
    """Energies, features, and what `gradient_of` makes of terms and slopes, of some rows."""
    vectors = kept(lambda: vectors_of(rows), jax.tree.leaves(rows)[-1])
    x, y, z = vectors
    ends = weights.cutoff, weights.angular_cutoff
    terms = component_terms(x, y, z, *ends, keep=partial(kept, like=x))
    own = np.full(len(terms.x), element)
    energies, features, slopes = moment_terms(
        weights,
        terms,
        neighbor_species,
        own,
        partial(energies_by_columns, like=x),
        slopes_by_sums,
    )
    return energies, features, gradient_of(terms, slopes, vectors)


def _components(terms: PairTerms, slopes: Slopes, vectors: Components) -> Components:
    return cartesian(terms, slopes)


def _packed(terms: PairTerms, slopes: Slopes, vectors: Components) -> Packed:
    # To be written elsewhere in another shape, which would not be vectorised.
    return kept(lambda: pack(*cartesian(terms, slopes)), vectors[0])


def _with_virials(
    wanted: Any, terms: PairTerms, slopes: Slopes, vectors: Components
) -> tuple[Packed, jax.Array]:
    gradient = _packed(terms, slopes, vectors)

    def sums() -> jax.Array:
        each = [(r * g).sum(axis=1) for r in vectors for g in unpack(gradient)]
        return jnp.stack(each, axis=-1).reshape(-1, 3, 3)

    if wanted is True:
        return gradient, sums()
    # A GPU would look at the predicate in each block.
    chosen = partial(if_wanted, wanted, sums)
    return gradient, jax.lax.platform_dependent(cpu=chosen, default=sums)


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
