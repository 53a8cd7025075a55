"""Neighbour lists on the device: allocated on the host, updated inside jit.

Capacity is data: it is chosen by `NeighborSearch.allocate` and then fixed. A list that turns out
too small says so in its `overflow` flag, which stays set; the caller then goes back to the last
good state and allocates again with `previous=`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill.neighbors.capacity import bucket
from distill.neighbors.cell import periodic_cell
from distill.neighbors.host import neighbor_table
from distill.neighbors.search import Geometry, choose, find_pairs, largest_filling

DEFAULT_SKIN = 0.4
"""Å: in water, a wider one costs more for pairs out of reach than it spares in rebuilds."""

REBUILD_FRACTION = 0.375
"""Share of the skin that an atom may move before the list is rebuilt, at first."""

MORE_CAUTION = 0.8
"""Factor of that share after atoms moved too far in one step, see `next_rebuild_fraction`."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NeighborList:
    """Pairs within cutoff and skin of the reference positions; a pytree of fixed shape.

    Attributes:
        neighbors: `[n, K]` int32, index of the neighbouring atom; `n` means none. Filled slots
            come first.
        shifts: `[n, K, 3]`, whole cells added to the neighbour (dtype of the positions), for the
            unwrapped positions: `r = positions[j] + shift @ cell - positions[i]`.
        reference_positions: `[n, 3]`, Å, where the list was built.
        overflow: `()` bool, a buffer was too small at some update since the allocation, so pairs
            are missing.
        stale: `()` bool, at some update an atom had moved more than half the skin (or to NaN), so
            the list in use until then may have missed pairs.
        rebuild_fraction: `()`, share of the skin that an atom may move before a rebuild.
        cell_capacity: static, slots per cell of the search grid.
    """

    neighbors: jax.Array
    shifts: jax.Array
    reference_positions: jax.Array
    overflow: jax.Array
    stale: jax.Array
    rebuild_fraction: jax.Array
    cell_capacity: int = field(metadata={"static": True})

    @property
    def capacity(self) -> int:
        """Neighbour slots per atom, `K`."""
        return self.neighbors.shape[1]


@dataclass(frozen=True)
class NeighborSearch:
    """How neighbours are found in one cell; made by `neighbor_list`.

    Frozen and hashable, so it may be a static argument of a jitted function; equal searches share
    compilations.
    """

    geometry: Geometry
    skin: float
    capacity_multiplier: float

    def allocate(
        self,
        positions: Any,
        minimum_capacity: int = 0,
        previous: NeighborList | None = None,
    ) -> NeighborList:
        """Choose capacities for `positions` `[n, 3]` (Å, unwrapped) and build the list; host code.

        Args:
            positions: kept in their floating-point dtype.
            minimum_capacity: at least so many neighbour slots; the slots of grid cells grow in
                proportion.
            previous: the list to replace: no capacity shrinks, and all grow if it overflowed. If it
                was stale, rebuilds come earlier, so that fast atoms have more room for one step.

        Raises:
            UnsupportedStructureError: positions are NaN or infinite.
        """
        start = jnp.array(positions)  # a copy: lists may be donated
        if not jnp.issubdtype(start.dtype, jnp.floating):
            start = start.astype(float)
        slots, cell_slots = self._capacities(np.asarray(start, np.float64), minimum_capacity)
        if previous is not None:
            grown = int(previous.overflow)
            slots = max(slots, bucket(previous.capacity + grown))
            cell_slots = max(cell_slots, _cell_bucket(previous.cell_capacity + grown))
        while True:
            slots, cell_slots = self._limit(len(start), slots, cell_slots)
            neighbors, shifts, overflow = _build(self.geometry, start, slots, cell_slots)
            if not overflow:
                break
            # Only float32 rounding at the edge of the radius or of a grid cell leads here.
            slots, cell_slots = bucket(slots + 1), _cell_bucket(cell_slots + 1)
        return NeighborList(
            neighbors=neighbors,
            shifts=shifts,
            reference_positions=start,
            overflow=jnp.asarray(False),
            stale=jnp.asarray(False),
            rebuild_fraction=next_rebuild_fraction(previous, start.dtype),
            cell_capacity=cell_slots,
        )

    def update(self, nbrs: NeighborList, positions: jax.Array) -> NeighborList:
        """The list for `positions` `[n, 3]`: rebuilt if an atom moved far enough, else as it was.

        Pure and jittable; shapes and treedef stay, so the list can be the carry of a loop. The
        rebuild comes at `rebuild_fraction` of the skin: what is left up to half of it is for the
        step taken after the update. No gradient flows through.
        """
        if positions.shape != nbrs.reference_positions.shape:
            raise ValueError(
                f"positions {positions.shape} do not match the list, which was allocated for "
                f"{nbrs.reference_positions.shape}; allocate a list for them"
            )
        now = jax.lax.stop_gradient(positions).astype(nbrs.reference_positions.dtype)

        def rebuild(old: NeighborList) -> NeighborList:
            neighbors, shifts, overflow = find_pairs(
                self.geometry, now, old.capacity, old.cell_capacity
            )
            return replace(
                old,
                neighbors=neighbors,
                shifts=shifts,
                reference_positions=now,
                overflow=old.overflow | overflow,
            )

        nbrs = replace(nbrs, stale=nbrs.stale | self.is_stale(nbrs, now))
        # False for NaN: positions that are lost must not look like a buffer that is too small.
        moved = largest_move(nbrs, now) > nbrs.rebuild_fraction * self.skin
        return jax.lax.cond(moved, rebuild, lambda old: old, nbrs)

    def is_stale(self, nbrs: NeighborList, positions: jax.Array) -> jax.Array:
        """`()` bool: an atom moved more than half the skin (or to NaN) since the list was built.

        Pairs within the cutoff may then be missing from the list.
        """
        return ~(largest_move(nbrs, positions) <= 0.5 * self.skin)

    def _capacities(self, positions: np.ndarray, minimum_capacity: int) -> tuple[int, int]:
        geometry = self.geometry
        table = neighbor_table(positions, geometry.matrix, geometry.pbc, geometry.radius)
        count = int(table.counts.max(initial=0))
        slots = bucket(max(math.ceil(count * self.capacity_multiplier), minimum_capacity, 1))
        if choose(geometry, len(positions)) != "cells":
            return slots, 0
        growth = max(self.capacity_multiplier, minimum_capacity / max(count, 1))
        return slots, _cell_bucket(math.ceil(largest_filling(geometry, positions) * growth))

    def _limit(self, n_atoms: int, slots: int, cell_slots: int) -> tuple[int, int]:
        """Cut capacities to what can never overflow."""
        method = choose(self.geometry, n_atoms)
        if method != "images":
            slots = min(slots, max(n_atoms - 1, 1))
        return slots, min(cell_slots, n_atoms) if method == "cells" else 0


def neighbor_list(
    cell: Any,
    pbc: Any,
    cutoff: float,
    skin: float = DEFAULT_SKIN,
    capacity_multiplier: float = 1.25,
) -> NeighborSearch:
    """Set up neighbour lists for a fixed cell.

    Args:
        cell: `[3, 3]`, rows are lattice vectors in Å; rows of free directions are not used.
        pbc: `(3,)` bool, periodic directions.
        cutoff: Å.
        skin: Å, added to the cutoff so that a list serves several steps.
        capacity_multiplier: room for neighbours to come, times the largest count.

    Raises:
        UnsupportedStructureError: the cell is singular along a periodic direction.
        ValueError: cutoff or skin are not positive, or the multiplier is below 1.
    """
    if not (0 < cutoff < math.inf and 0 < skin < math.inf and capacity_multiplier >= 1):
        raise ValueError(
            "need cutoff > 0, skin > 0 and capacity_multiplier >= 1, not "
            f"{cutoff}, {skin} and {capacity_multiplier}"
        )
    full_cell, periodic = periodic_cell(cell, pbc)
    geometry = Geometry(
        cell=tuple(tuple(row) for row in full_cell.tolist()),
        pbc=tuple(periodic.tolist()),
        radius=float(cutoff) + float(skin),
    )
    return NeighborSearch(geometry, float(skin), float(capacity_multiplier))


@partial(jax.jit, static_argnums=(0, 2, 3))
def _build(
    geometry: Geometry, positions: jax.Array, capacity: int, cell_capacity: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    return find_pairs(geometry, positions, capacity, cell_capacity)


def largest_move(nbrs: Any, positions: jax.Array) -> jax.Array:
    """How far an atom moved since a list (of any kind) was built, Å, `()`; NaN if a position is."""
    squared = jnp.sum((positions - nbrs.reference_positions) ** 2, axis=-1)
    return jnp.sqrt(jnp.max(squared))


def next_rebuild_fraction(previous: Any, dtype: Any) -> jax.Array:
    """Share of the skin for the list (of any kind) that replaces `previous` or is the first."""
    if previous is None:
        return jnp.asarray(REBUILD_FRACTION, dtype)
    factor = MORE_CAUTION if bool(previous.stale) else 1.0
    return jnp.asarray(factor * previous.rebuild_fraction, dtype)


def _cell_bucket(n: int) -> int:
    return bucket(n, multiple=4)
