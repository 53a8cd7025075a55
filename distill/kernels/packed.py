"""Vectors as two numbers, x + iy and z: to gather two is faster than to gather three."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Packed = tuple[jax.Array, jax.Array]
"""x + iy, complex, and z, of equal shape."""


def pack(x: jax.Array, y: jax.Array, z: jax.Array) -> Packed:
    """Two arrays from three of equal shape, float32 or float64."""
    return jax.lax.complex(x, y), z


def unpack(packed: Packed) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x, y and z, each of the shape of the packed arrays."""
    level, z = packed
    return level.real, level.imag, z


def summed(packed: Packed) -> jax.Array:
    """Sums over the last axis, `[..., 3]` from `[..., K]`."""
    level, z = (part.sum(axis=-1) for part in packed)
    return jnp.stack([level.real, level.imag, z], axis=-1)
