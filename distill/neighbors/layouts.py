"""Host code that chooses the grid and the buffer sizes of a grouped list."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from distill.neighbors.bits import WORD
from distill.neighbors.capacity import bucket
from distill.neighbors.cell import heights
from distill.neighbors.grid import Grid
from distill.neighbors.search import Geometry

LARGEST_GRID = 4
"""Padded grid cells, at most about so many per atom: an atom that evaporates costs little."""

STEP_COST = 0.2
"""Cost of visiting a grid cell in units of comparing one atom with one candidate."""


@dataclass(frozen=True)
class Demand:
    """What a configuration needs on a grid.

    Attributes:
        rows_per_cell: most atoms in one home cell.
        candidates: `[S]`, most atoms of each species in the cells around one home cell.
        images: atoms in the halo.
    """

    rows_per_cell: int
    candidates: np.ndarray
    images: int

    def cost(self, grid: Grid) -> float:
        """Time of a search in arbitrary units."""
        rows = bucket_rows(self.rows_per_cell)
        width = sum(-(-int(c) // WORD) * WORD for c in self.candidates)
        return grid.n_home * width * (rows + STEP_COST * len(grid.steps))


def demand(grid: Grid, species: np.ndarray, positions: np.ndarray, center: np.ndarray) -> Demand:
    """Count atoms in cells, in float64.

    Args:
        species: `[n]` in `0 ... S - 1`.
        positions: `[n, 3]`, Å.
        center: `[3]`, Å, middle of the grid along free directions.
    """
    pbc, counts = np.asarray(grid.geometry.pbc), np.asarray(grid.counts)
    fractional = positions @ np.linalg.inv(grid.geometry.matrix)
    place = np.where(
        pbc,
        (fractional - np.floor(fractional)) * counts,
        (fractional - center) / grid.widths + 0.5 * counts,
    )
    layer = np.clip(np.floor(place), 0, counts - 1).astype(np.int64)
    cells = grid.rank[np.ravel_multi_index(tuple(layer.T), grid.counts)]
    n_species = int(species.max(initial=0)) + 1
    filling = np.zeros((n_species, grid.n_home + 1), np.int64)
    np.add.at(filling, (species, cells), 1)
    around = filling[:, grid.home].reshape(n_species, *grid.padded)
    for axis, reach in enumerate(grid.reach):
        sums = np.cumsum(around, axis=axis + 1)
        sums = np.concatenate([np.zeros_like(sums.take([0], axis + 1)), sums], axis=axis + 1)
        span = 2 * int(reach) + 1
        end = sums.shape[axis + 1]
        around = sums.take(range(span, end), axis + 1) - sums.take(range(end - span), axis + 1)
    return Demand(
        rows_per_cell=int(filling.sum(0).max()),
        candidates=around.reshape(n_species, -1).max(axis=1),
        images=int(filling[:, grid.home[grid.halo]].sum()),
    )


def choose_grid(
    geometry: Geometry, species: np.ndarray, positions: np.ndarray, center: np.ndarray
) -> Grid:
    """The cheapest of some grids for `positions` `[n, 3]`."""
    fractional = (positions - 0.0) @ np.linalg.inv(geometry.matrix)
    extent = np.where(
        geometry.pbc, heights(geometry.matrix), 2 * np.abs(fractional - center).max(axis=0)
    )
    best, lowest = None, math.inf
    for division in (2.0, 1.5, 1.0, 0.5, 0.25, 0.125):
        grid = _limited(geometry, extent, division, len(positions))
        cost = demand(grid, species, positions, center).cost(grid)
        if cost < 0.95 * lowest:
            best, lowest = grid, cost
    assert best is not None
    return best


def _limited(geometry: Geometry, extent: np.ndarray, division: float, n_atoms: int) -> Grid:
    """The grid with cells of about the search radius over `division`, or coarser ones."""
    fine = np.maximum(np.floor(extent / geometry.radius * division + 1e-9), 1.0)
    free = np.maximum(np.ceil(extent / geometry.radius), 1.0)
    counts = np.where(geometry.pbc, fine, np.minimum(free, np.maximum(free * division, 1.0)))
    while True:
        whole = [int(c) for c in np.minimum(counts, 2.0**20)]
        grid = Grid(geometry, (whole[0], whole[1], whole[2]))
        if math.prod(whole) <= max(LARGEST_GRID * n_atoms, 1):
            return grid
        counts[np.argmax(counts)] = np.floor(0.8 * counts.max())


def bucket_rows(n: int) -> int:
    """Slots per grid cell: whole vectors."""
    return bucket(n, ratio=1.1)
