"""Sets of small integers as 32-bit words: counting, ranking and selecting bits, elementwise."""

from __future__ import annotations

import jax
import jax.numpy as jnp

WORD = 32
"""Bits in a word."""

SHIFT = 5
"""Its logarithm: shifts of whole numbers are faster than divisions, which mind their signs."""


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


def set_bits(words: jax.Array, before: jax.Array, slots: int) -> jax.Array:
    """Numbers `[n, slots]` int32 of the bits set in `words` `[n, Q]`; -1 where there are no more.

    One elementwise loop: the word of a slot is the last one with not too many bits before it.
    """
    rank = jnp.arange(slots, dtype=jnp.int32)
    bits, passed = words[:, :1], before[:, :1]
    start = jnp.zeros((len(words), slots), jnp.int32)
    for w in range(1, words.shape[1]):
        reached = rank >= before[:, w, None]
        bits = jnp.where(reached, words[:, w, None], bits)
        passed = jnp.where(reached, before[:, w, None], passed)
        start = jnp.where(reached, w * WORD, start)
    total = before[:, -1] + ones(words[:, -1])
    return jnp.where(rank < total[:, None], start + select(bits, rank - passed), -1)
