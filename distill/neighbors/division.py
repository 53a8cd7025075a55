"""How devices divide the work on one list; here for one device, which does all of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import jax
import numpy as np


class Division(Protocol):
    """What each device does; see `distill.shared_rows.Share` for several."""

    @property
    def elements(self) -> np.ndarray:
        """The element of each own row, `[b]`, static; none before `of` named the rows."""

    def of(self, rows: np.ndarray) -> Division:
        """The same of other rows, of the elements `[n]`, sorted and static."""

    def rows(self, array: jax.Array) -> jax.Array:
        """Own rows `[b, ...]` of `[n, ...]`."""

    def all_rows(self, array: jax.Array) -> jax.Array:
        """`[n, ...]` from the `[b, ...]` of every device."""

    def part(self, array: jax.Array, axis: int) -> jax.Array:
        """Own part of an axis that is divided evenly."""

    def all_parts(self, array: jax.Array, axis: int, length: int) -> jax.Array:
        """The whole axis, of a length, from the parts of every device."""


@dataclass(frozen=True)
class _Undivided:
    elements: np.ndarray

    def of(self, rows: np.ndarray) -> Division:
        return _Undivided(rows)

    def rows(self, array: jax.Array) -> jax.Array:
        return array

    def all_rows(self, array: jax.Array) -> jax.Array:
        return array

    def part(self, array: jax.Array, axis: int) -> jax.Array:
        return array

    def all_parts(self, array: jax.Array, axis: int, length: int) -> jax.Array:
        return array


UNDIVIDED: Division = _Undivided(np.zeros(0, np.int32))
"""One device."""
