"""Functions of blocks of rows, whose results are written into arrays made once, without a copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Piece(NamedTuple):
    """Consecutive rows of one array, of which one function makes blocks.

    Attributes:
        function: `(rows [b, ...], first) -> (by row, by slot)`, trees of arrays `[b, ...]` and
            `[b, K]`; `first` `()` is the number of the first of the rows, among those of the array.
        rows: arrays with rows along the leading axis.
        start: the first row that is taken.
        end: one more than the last.
        place: where results of the array's first row are among those of all pieces; with the others
            it leaves no gap.
        slot: where the slots of the array's first row begin among all slots.
    """

    function: Callable[[Any, Any], tuple[Any, Any]]
    rows: Any
    start: int
    end: int
    place: int = 0
    slot: int = 0


def blocks_in_place(pieces: Sequence[Piece], size: int) -> tuple[Any, Any]:
    """Results by row, `[n, ...]`, and by slot, in one axis, of functions of `size` rows at most.

    The last block of a piece begins early enough to be whole, and repeats some rows.

    Args:
        pieces: one after the other, the first at the beginning.
        size: most rows in a block.
    """
    sizes = [_block_size(piece.end - piece.start, size) for piece in pieces]
    # Traced once, for the shapes and for the loop.
    functions = [jax.jit(piece.function, inline=True) for piece in pieces]
    shapes = [
        jax.eval_shape(function, _sliced(piece.rows, 0, own), jnp.int32(0))
        for function, piece, (own, _) in zip(functions, pieces, sizes, strict=True)
    ]
    n_rows = sum(piece.end - piece.start for piece in pieces)
    # Overwritten throughout. A constant would be made, and hold memory, before rows are there.
    anything = jnp.real(jax.tree.leaves(pieces[0].rows)[0].reshape(-1)[0])
    by_row, by_slot = shapes[0]
    counts = [piece.end - piece.start for piece in pieces]
    found: Any = (
        jax.tree.map(
            lambda leaf: jnp.full((n_rows, *leaf.shape[1:]), anything.astype(leaf.dtype)), by_row
        ),
        jax.tree.map(
            lambda *leaves: jnp.full(
                sum(n * leaf.shape[1] for n, leaf in zip(counts, leaves, strict=True)),
                anything.astype(leaves[0].dtype),
            ),
            *[own for _, own in shapes],
        ),
    )
    for piece, function, (own, n_blocks) in zip(pieces, functions, sizes, strict=True):

        def block(
            number: Any, found: Any, piece: Piece = piece, function: Any = function, own: int = own
        ) -> Any:
            begin = jnp.minimum(piece.start + number * own, piece.end - own).astype(jnp.int32)
            rows, slots = function(_sliced(piece.rows, begin, own), begin)
            by_row, by_slot = found
            return (
                jax.tree.map(
                    lambda every, new: jax.lax.dynamic_update_slice_in_dim(
                        every, new, piece.place + begin, 0
                    ),
                    by_row,
                    rows,
                ),
                jax.tree.map(
                    lambda every, new: jax.lax.dynamic_update_slice_in_dim(
                        every, new.reshape(-1), piece.slot + begin * new.shape[1], 0
                    ),
                    by_slot,
                    slots,
                ),
            )

        found = block(0, found) if n_blocks == 1 else jax.lax.fori_loop(0, n_blocks, block, found)
    return found[0], found[1]


def _block_size(count: int, size: int) -> tuple[int, int]:
    """Rows of a block, and how many blocks."""
    n_blocks = -(-count // size)
    if n_blocks == 1 and count > size // 2 and count % 16 == 0:
        n_blocks = 2  # Without a loop the compiler holds more temporary arrays at once.
    even = -(-count // n_blocks)
    return min(count, size, -(-even // 8) * 8), n_blocks


def _sliced(rows: Any, begin: Any, count: int) -> Any:
    return jax.tree.map(lambda array: jax.lax.dynamic_slice_in_dim(array, begin, count), rows)
