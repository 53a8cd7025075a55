"""Exact neighbour lists on the host: float64, every periodic image, any cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase.neighborlist import primitive_neighbor_list

from distill.errors import CapacityError, UnsupportedStructureError
from distill.neighbors.cell import heights, image_offsets, periodic_cell


@dataclass(frozen=True)
class NeighborTable:
    """Neighbours of each atom of one structure, padded to a common width.

    Attributes:
        neighbors: `[n, K]` int32, index of the neighbouring atom; `n` means none. Filled slots
            come first, sorted by index and then by shift.
        shifts: `[n, K, 3]` int32, whole cells added to the neighbour, so that
            `r = positions[j] + shift @ cell - positions[i]` (0 along free directions).
    """

    neighbors: np.ndarray
    shifts: np.ndarray

    @property
    def capacity(self) -> int:
        """Slots per atom, `K`."""
        return self.neighbors.shape[1]

    @property
    def counts(self) -> np.ndarray:
        """Neighbours of each atom, `[n]`."""
        return np.count_nonzero(self.neighbors < len(self.neighbors), axis=1)

    def pairs(
        self, positions: np.ndarray, cell: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Filled slots as a list: first and second atom `[P]`, shifts and vectors `[P, 3]` in Å."""
        first, slot = np.nonzero(self.neighbors < len(self.neighbors))
        second, shifts = self.neighbors[first, slot], self.shifts[first, slot]
        return first, second, shifts, positions[second] + shifts @ cell - positions[first]


def neighbor_table(
    positions: Any, cell: Any, pbc: Any, cutoff: float, capacity: int | None = None
) -> NeighborTable:
    """Find all pairs closer than `cutoff`.

    Args:
        positions: `[n, 3]`, Å, wrapped or not; the shifts refer to them as given.
        cell: `[3, 3]`, rows are lattice vectors in Å; rows of free directions are not used.
        pbc: `(3,)` bool, periodic directions.
        cutoff: Å.
        capacity: slots per atom; by default the largest count, at least 1.

    Raises:
        UnsupportedStructureError: positions or cell are not finite, or the cell is singular along
            a periodic direction.
        CapacityError: an atom has more than `capacity` neighbours.
        ValueError: the cutoff is not a positive number, or the positions have another shape.
    """
    if not (np.isfinite(cutoff) and cutoff > 0):
        raise ValueError(f"the cutoff must be a positive length in Å, not {cutoff}")
    points = np.asarray(positions, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"positions must have the shape [n, 3], not {list(points.shape)}")
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if len(bad):
        raise UnsupportedStructureError(
            f"positions hold NaN or infinity (first at atom {bad[0]}, {len(bad)} in all)"
        )
    full_cell, periodic = periodic_cell(cell, pbc)
    # Wrapped first: distances of far-unwrapped atoms keep their digits.
    offsets = image_offsets(points, full_cell, periodic)
    wrapped = points - offsets @ full_cell
    i, j, shifts = _search(wrapped, full_cell, periodic, cutoff, "ijS")
    i, j = i.astype(np.int64), j.astype(np.int64)
    shifts = (shifts + offsets[i] - offsets[j]).astype(np.int32)
    return _pack(len(points), i, j, shifts, capacity)


def pair_distances(
    positions: np.ndarray, cell: Any, pbc: Any, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both atoms `[P]` and distance `[P]` in Å of all pairs closer than `cutoff`, in any order.

    Every pair comes twice, periodic images (also of an atom with itself) included. `positions`
    `[n, 3]`, `cell` and `pbc` as in `neighbor_table`.
    """
    full_cell, periodic = periodic_cell(cell, pbc)
    points = np.asarray(positions, np.float64)
    wrapped = points - image_offsets(points, full_cell, periodic) @ full_cell
    i, j, distances = _search(wrapped, full_cell, periodic, cutoff, "ijd")
    return i.astype(np.int64), j.astype(np.int64), distances


def _search(
    wrapped: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float, quantities: str
) -> Any:
    if _is_too_elongated(wrapped, cell, pbc, cutoff):
        return primitive_neighbor_list(quantities, pbc, cell, wrapped, cutoff)
    # Imported here, because vesin imports torch where that is installed.
    from vesin import NeighborList as VesinList

    search = VesinList(cutoff=cutoff, full_list=True, n_threads=1)
    return search.compute(wrapped, cell, pbc, quantities)


def _is_too_elongated(
    wrapped: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> bool:
    """Whether vesin's grid could get no cell along the thin direction of a huge, thin system.

    vesin (0.6) shrinks grids of more than about 1e5 cells by one factor in all directions; where
    that leaves none it divides by zero, which kills the process. One evaporated atom suffices.
    """
    if len(wrapped) == 0:
        return False
    extent = np.where(pbc, heights(cell), np.ptp(wrapped @ np.linalg.inv(cell), axis=0))
    cells = np.maximum(extent / cutoff, 1.0)
    shrink = min(1.0, (5e4 / cells.prod()) ** (1 / 3))
    return shrink < 1.0 and cells.min() * shrink < 2.0


def _pack(
    n: int, i: np.ndarray, j: np.ndarray, shifts: np.ndarray, capacity: int | None
) -> NeighborTable:
    """Sort pairs and lay them out in rows."""
    counts = np.bincount(i, minlength=n)
    needed = int(counts.max(initial=0))
    width = max(needed, 1) if capacity is None else capacity
    if needed > width:
        raise CapacityError(
            f"an atom has {needed} neighbours within the cutoff but the capacity is {width}; "
            f"give a capacity of at least {needed}"
        )
    order = np.lexsort((shifts[:, 2], shifts[:, 1], shifts[:, 0], j, i))
    i, j, shifts = i[order], j[order], shifts[order]
    slot = np.arange(len(i)) - np.repeat(np.cumsum(counts) - counts, counts)
    neighbors = np.full((n, width), n, dtype=np.int32)
    images = np.zeros((n, width, 3), dtype=np.int32)
    neighbors[i, slot] = j
    images[i, slot] = shifts
    return NeighborTable(neighbors, images)
