"""Neighbour lists for a cell that moves: made in a reference cell, used in another.

Positions are carried back into the reference cell to look for neighbours. It is smaller than the
cell, so that all pairs within the cutoff are within it there too; a cell that became smaller still
is flagged. Reference cells are rungs of a ladder: few programs are compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill.potential import Potential

RUNG = 0.98
"""Length of a reference cell in units of the next larger one."""

SLACK = 3
"""Rungs between the reference and a cell that grew, from which on a larger reference is taken."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StrainedLists:
    """Lists in a reference cell.

    Attributes:
        lists: of the potential.
        rung: `()` int32, the reference is `RUNG**rung` times the cell at the start.
        crushed: `()` bool, at some step the cell was smaller than the reference.
    """

    lists: Any
    rung: jax.Array
    crushed: jax.Array


class ListFunctions(NamedTuple):
    """How the steps of a block use their lists.

    Attributes:
        update: `(lists, state) -> lists`.
        check: `(lists, state) -> (lists, bool)`: whether results are not guaranteed.
        of_potential: `(lists) -> lists` of the potential.
    """

    update: Callable[[Any, Any], Any]
    check: Callable[[Any, Any], tuple[Any, jax.Array]]
    of_potential: Callable[[Any], Any]


def fixed_lists(potential: Potential) -> ListFunctions:
    """Lists in a cell that does not move."""
    return ListFunctions(
        update=lambda lists, state: potential.update(lists, state.position),
        check=lambda lists, state: (lists, potential.overflow(lists, state.position)),
        of_potential=lambda lists: lists,
    )


def strained_lists(potential: Potential) -> ListFunctions:
    """Lists in the cell of `potential` for a state whose cell moves."""
    length = np.cbrt(abs(np.linalg.det(potential.cell)))

    def shrink(state: Any) -> jax.Array:
        """Length of the reference in units of the cell."""
        return (length / jnp.cbrt(state.volume)).astype(state.position.dtype)

    def update(lists: StrainedLists, state: Any) -> StrainedLists:
        there = potential.update(lists.lists, state.position * shrink(state))
        return replace(lists, lists=there)

    def check(lists: StrainedLists, state: Any) -> tuple[StrainedLists, jax.Array]:
        factor = shrink(state)
        lists = replace(lists, crushed=lists.crushed | (factor > 1))
        too_old = potential.overflow(lists.lists, state.position * factor)
        return lists, lists.crushed | too_old

    return ListFunctions(update, check, lambda lists: lists.lists)


def rung_below(stretch: float) -> int:
    """The largest reference half a rung or more below a cell `stretch` times the first."""
    return int(np.ceil(np.log(stretch) / np.log(RUNG) + 0.5))
