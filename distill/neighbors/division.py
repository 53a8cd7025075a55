"""How devices divide the work on one list; here for one device, which does all of it."""

from __future__ import annotations

from typing import Protocol

import jax


class Division(Protocol):
    """What each device does; see `distill.shared_rows.Share` for several."""

    def rows(self, array: jax.Array) -> jax.Array:
        """Own rows `[b, ...]` of `[n, ...]`."""

    def all_rows(self, array: jax.Array) -> jax.Array:
        """`[n, ...]` from the `[b, ...]` of every device."""

    def part(self, array: jax.Array, axis: int) -> jax.Array:
        """Own part of an axis that is divided evenly."""

    def all_parts(self, array: jax.Array, axis: int, length: int) -> jax.Array:
        """The whole axis, of a length, from the parts of every device."""


class _Undivided:
    def rows(self, array: jax.Array) -> jax.Array:
        return array

    def all_rows(self, array: jax.Array) -> jax.Array:
        return array

    def part(self, array: jax.Array, axis: int) -> jax.Array:
        return array

    def all_parts(self, array: jax.Array, axis: int, length: int) -> jax.Array:
        return array


UNDIVIDED: Division = _Undivided()
"""One device."""
