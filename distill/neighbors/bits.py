"""Sets of small integers as 32-bit words: counting, ranking and selecting bits, elementwise."""

from __future__ import annotations

import jax
import jax.numpy as jnp

WORD = 32
"""Bits in a word."""


def ones(word: jax.Array) -> jax.Array:
    """Number of set bits, int32, of uint32 words of any shape."""
    return jax.lax.population_count(word).astype(jnp.int32)


def below(bit: jax.Array) -> jax.Array:
    """Words (uint32) with the bits `0 ... bit - 1` set, for `bit` (int32) in `0 ... 31`."""
    return (jnp.uint32(1) << bit.astype(jnp.uint32)) - jnp.uint32(1)


def select(word: jax.Array, rank: jax.Array) -> jax.Array:
    """Place (int32) of the set bit that has `rank` (int32) set bits below it.

    Without meaning, but within `0 ... 31`, where the word has no more than `rank` set bits.
    """
    place = jnp.zeros(jnp.broadcast_shapes(word.shape, rank.shape), jnp.int32)
    for width in (16, 8, 4, 2, 1):
        low = ones(word & jnp.uint32((1 << width) - 1))
        up = rank >= low
        rank = jnp.where(up, rank - low, rank)
        word = jnp.where(up, word >> jnp.uint32(width), word)
        place = jnp.where(up, place + width, place)
    return place
