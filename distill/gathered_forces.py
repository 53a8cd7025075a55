"""Forces of rows, gathered: every pair's gradient belongs to its row and to the mirrored pair's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from distill.kernels.blocks_in_place import Piece, blocks_in_place
from distill.kernels.packed import Packed, summed
from distill.neighbors.parts import Part
from distill.shared_rows import Share

FORCE_ROWS = 256
"""Rows whose forces are summed at once: differences of few rows at a time stay in the cache."""


def gathered_forces(
    gradient: Packed, reverse: Sequence[jax.Array], parts: Sequence[Part]
) -> jax.Array:
    """Forces `[n, 3]` from the gradient by each pair's vector, of all slots of all rows, packed.

    Args:
        gradient: eV/Å, flat.
        reverse: of each part, see `GroupedList`.
        parts: of the rows.
    """

    def forces(there: jax.Array, slot: jax.Array) -> jax.Array:
        own = (
            jax.lax.dynamic_slice_in_dim(one, slot, there.size).reshape(there.shape)
            for one in gradient
        )
        level, z = (
            one - every.at[there].get(mode="fill", fill_value=0)
            for one, every in zip(own, gradient, strict=True)
        )
        return summed((level, z))

    pieces: list[Piece] = []
    slot = 0
    for part, there in zip(parts, reverse, strict=True):

        def block(rows: jax.Array, first: Any, slot: int = slot, width: int = part.slots) -> Any:
            return forces(rows, slot + first * width), ()

        pieces.append(_piece(block, there, pieces))
        slot += there.size
    return _by_row(pieces)


def shared_forces(
    gradient: Packed, reverse: Sequence[jax.Array], parts: Sequence[Part], shares: Sequence[Share]
) -> jax.Array:
    """What the pairs of a device's rows add to the forces of all, `[n, 3]`.

    Args:
        gradient: of all slots of the device's own rows, eV/Å, flat.
        reverse: of each part, of all rows.
        parts: of all rows.
        shares: of each part.
    """
    spans, first, own_first = [], 0, 0
    for part, share in zip(parts, shares, strict=True):
        for start, count, own_start in share.spans(part.slots):
            spans.append((start + first, count, own_start + own_first))
        first += part.count * part.slots
        own_first += len(share.elements) * part.slots

    def block(there: jax.Array, _: Any) -> Any:
        here = jnp.full_like(there, gradient[0].size)
        for start, count, own_start in spans:
            # Numbers below the start are large ones without a sign.
            within = (there - start).astype(jnp.uint32) < count.astype(jnp.uint32)
            here = jnp.where(within, there + (own_start - start), here)
        level, z = (every.at[here].get(mode="fill", fill_value=0) for every in gradient)
        return -summed((level, z)), ()

    pieces: list[Piece] = []
    for there in reverse:
        pieces.append(_piece(block, there, pieces))
    own_rows, slot = [], 0
    for part, share in zip(parts, shares, strict=True):
        end = slot + len(share.elements) * part.slots
        level, z = (every[slot:end].reshape(-1, part.slots) for every in gradient)
        own_rows.append(share.spread(summed((level, z))))
        slot = end
    return _by_row(pieces) + jnp.concatenate(own_rows)


def _piece(block: Any, reverse: jax.Array, before: Sequence[Piece]) -> Piece:
    place = before[-1].place + before[-1].end if before else 0
    return Piece(block, reverse, 0, len(reverse), place)


def _by_row(pieces: Sequence[Piece]) -> jax.Array:
    forces: jax.Array = blocks_in_place(pieces, FORCE_ROWS)[0]
    return forces
