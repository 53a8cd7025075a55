"""Host code that chooses the grid and the buffer sizes of a grouped list."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from distill.errors import UnsupportedStructureError
from distill.neighbors.bits import WORD
from distill.neighbors.candidates import Layout
from distill.neighbors.capacity import bucket
from distill.neighbors.cell import heights
from distill.neighbors.grid import Grid
from distill.neighbors.parts import Part, choose_parts, rows_of
from distill.neighbors.search import Geometry
from distill.neighbors.trim import kept_images, trims, usual_images

LARGEST_GRID = 4
"""Home cells, at most about so many per atom: an atom that evaporates costs little."""

STEP_COST = 0.2
"""Cost of visiting a grid cell in units of comparing one atom with one candidate."""

GROWTH = 1.25
"""What was too small grows at least by this."""

KEPT_COST = 2.0
"""A grid is kept at a reallocation for which a buffer was too small, until another is so much
faster."""


@dataclass(frozen=True)
class Demand:
    """What a configuration needs on a grid.

    Attributes:
        rows_per_cell: most atoms in one home cell.
        candidates: `[S]`, most atoms of each species in the cells around one home cell.
        images: atoms in the halo, without those that are left out.
    """

    rows_per_cell: int
    candidates: np.ndarray
    images: int

    def cost(self, grid: Grid) -> float:
        """Time of a search in arbitrary units."""
        rows = bucket(self.rows_per_cell, ratio=1.1)
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
    candidates = around.reshape(n_species, -1).max(axis=1)
    images = int(filling[:, grid.home[grid.halo]].sum())
    if trims(grid, len(species)):
        extended = kept_images(grid.geometry, fractional) + 1
        # No fewer than of atoms all over the box, so that a cluster may move to its border.
        even = usual_images(grid.geometry) + 1
        candidates = np.ceil(
            np.maximum(np.bincount(species, extended, n_species), even * np.bincount(species))
        ).astype(np.int64)
        images = math.ceil(max(extended.sum(), even * len(species))) - len(species)
    return Demand(int(filling.sum(0).max()), candidates, images)


def choose_grid(
    geometry: Geometry, species: np.ndarray, positions: np.ndarray, center: np.ndarray
) -> Grid:
    """The cheapest of some grids for `positions` `[n, 3]`."""
    fractional = positions @ np.linalg.inv(geometry.matrix)
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


def choose_layout(
    geometry: Geometry,
    species: np.ndarray,
    positions: np.ndarray,
    center: np.ndarray,
    multiplier: float,
    minimum: int = 0,
    previous: Layout | None = None,
    lacking: np.ndarray | None = None,
) -> Layout:
    """Grid and buffers for `positions` `[n, 3]`; the groups are those of `previous` or empty.

    Args:
        multiplier: room for more, at least 1.
        minimum: at least so many candidates of each species.
        previous: no buffer shrinks while its grid is kept, which it is unless something lacks.
        lacking: `[3 + 2 S]` bool, which buffers of `previous` were too small, see `build.Found`.
    """
    n, n_species = len(species), int(species.max()) + 1
    short = np.zeros(3 + 2 * n_species, bool) if lacking is None else lacking
    grid = choose_grid(geometry, species, positions, center)
    needs = demand(grid, species, positions, center)
    if previous is not None:
        old = demand(previous.grid, species, positions, center)
        # Replicas share one grid: where nothing was too small, it stays at any cost.
        if not short.any() or old.cost(previous.grid) <= KEPT_COST * needs.cost(grid):
            grid, needs = previous.grid, old
    kept = previous if previous is not None and previous.grid == grid else None
    extended = bucket(_roomy(needs.images, multiplier), ratio=1.1) if len(grid.halo) else 0
    per_cell = bucket(_roomy(max(needs.rows_per_cell, minimum), multiplier), ratio=1.1)
    words = [
        bucket(-(-_roomy(max(c, minimum), multiplier) // WORD), ratio=1.1, multiple=1)
        for c in needs.candidates.tolist()
    ]
    if kept is not None:
        extended = max(extended, _grown(kept.images - n - 1, short[0], 8))
        per_cell = max(per_cell, _grown(kept.rows_per_cell, short[1], 8))
        words = [max(w, _grown(k, short[2], 1)) for w, k in zip(words, kept.words, strict=True)]
    most = np.bincount(species) * len(grid.steps)
    layout = Layout(
        grid=grid,
        parts=previous.parts
        if previous is not None
        else (Part((0,) * n_species, rows_of(species)),),
        images=n + 1 + extended,
        rows_per_cell=min(per_cell, -(-n // 8) * 8),
        words=tuple(min(w, -(-m // WORD)) for w, m in zip(words, most.tolist(), strict=True)),
    )
    if layout.images << layout.bits >= 2**31:
        raise UnsupportedStructureError(
            f"{n} atoms with images in {len(grid.steps)} grid cells around each are too many"
        )
    return layout


def choose_groups(
    layout: Layout,
    species: np.ndarray,
    counts: np.ndarray,
    multiplier: float,
    minimum: int = 0,
    previous: Layout | None = None,
    lacking: np.ndarray | None = None,
) -> Layout:
    """`layout` with slots for `counts` `[S, n]` neighbours of each species; see `choose_layout`."""
    groups = []
    for kind, atoms in enumerate(rows_of(species)):
        wanted = max(_roomy(int(counts[kind].max()), multiplier), minimum, 1)
        if previous is not None:
            short = lacking is not None and bool(lacking[3 + kind])
            wanted = max(wanted, _grown(previous.groups[kind], short, 8))
        most = bucket(atoms * len(layout.grid.steps), ratio=1.1)
        groups.append(min(bucket(wanted, ratio=1.1), most) if atoms else 0)
    before = () if previous is None else previous.parts
    sizes = multiplier, minimum, before, lacking
    layout = replace(layout, parts=choose_parts(tuple(groups), species, counts, *sizes))
    if layout.slots >= 2**31:
        raise UnsupportedStructureError(
            f"{len(species)} atoms with up to {sum(groups)} neighbour slots each are too many"
        )
    return layout


def _roomy(count: int, multiplier: float) -> int:
    return math.ceil(count * multiplier)


def _grown(size: int, short: bool | np.bool_, multiple: int) -> int:
    return -(-math.ceil(size * GROWTH) // multiple) * multiple if short else size
