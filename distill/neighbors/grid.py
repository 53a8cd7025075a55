"""The search grid: which grid cells an atom's neighbours can be in, and their periodic images.

Cells of the grid are parallel to the periodic cell. Along a periodic direction they divide it
exactly, so that the images of a cell are whole cells beyond the border: the halo. Along a free
direction the grid has an end; atoms beyond it belong to the last layer, which keeps every pair
within reach and costs only time.

Home cells are numbered along a space-filling curve, so that what is near in space is near in
memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from distill.neighbors.cell import heights
from distill.neighbors.search import Geometry


@dataclass(frozen=True)
class Grid:
    """A grid for one geometry; hashable, so that it can be static in jitted functions.

    Attributes:
        geometry: cell, periodicity and search radius.
        counts: home cells along each direction.
    """

    geometry: Geometry
    counts: tuple[int, int, int]

    @cached_property
    def widths(self) -> np.ndarray:
        """Edges of a grid cell in units of the cell's vectors, `[3]`."""
        free = self.geometry.radius
        return np.where(self.geometry.pbc, 1.0 / np.asarray(self.counts), free)

    @cached_property
    def reach(self) -> np.ndarray:
        """Layers of cells on either side that hold neighbours, `[3]` int."""
        layer = heights(self.geometry.matrix) * self.widths
        return np.ceil(self.geometry.radius / layer - 1e-9).astype(np.int64)

    @cached_property
    def padded(self) -> tuple[int, ...]:
        """Cells along each direction with the halo."""
        return tuple((np.asarray(self.counts) + 2 * self.reach).tolist())

    @property
    def n_home(self) -> int:
        """Cells without the halo, `C`."""
        return math.prod(self.counts)

    @cached_property
    def rank(self) -> np.ndarray:
        """`[C]` int32, number of the home cell with a given place in row-major order."""
        places = np.stack(np.unravel_index(np.arange(self.n_home), self.counts), axis=1)
        bits = max(self.counts).bit_length()
        code = np.zeros(self.n_home, np.int64)
        for bit in range(bits):
            for axis in range(3):
                code |= ((places[:, axis] >> bit) & 1) << (3 * bit + axis)
        rank = np.empty(self.n_home, np.int32)
        rank[np.argsort(code, kind="stable")] = np.arange(self.n_home)
        return rank

    @cached_property
    def _layers(self) -> tuple[np.ndarray, np.ndarray]:
        """Of every padded cell the home layers and the whole cells it is away, `[G, 3]` each."""
        places = np.stack(np.unravel_index(np.arange(math.prod(self.padded)), self.padded), axis=1)
        places = places - self.reach
        whole, layers = np.divmod(places, np.asarray(self.counts))
        return layers, whole

    @cached_property
    def home(self) -> np.ndarray:
        """`[G]` int32, the home cell that a padded cell is an image of; `C` if it is empty."""
        layers, whole = self._layers
        home = self.rank[np.ravel_multi_index(tuple(layers.T), self.counts)]
        beyond = (whole != 0) & ~np.asarray(self.geometry.pbc)
        return np.where(beyond.any(axis=1), self.n_home, home).astype(np.int32)

    @cached_property
    def halo(self) -> np.ndarray:
        """`[H]` int32, the padded cells that are images of other home cells."""
        whole = self._layers[1]
        return np.flatnonzero((whole != 0).any(axis=1) & (self.home < self.n_home)).astype(np.int32)

    @cached_property
    def halo_shifts(self) -> np.ndarray:
        """`[H, 3]`, whole cells between a cell of the halo and its home cell."""
        return self._layers[1][self.halo]

    @cached_property
    def blocks(self) -> np.ndarray:
        """`[G]` int32, place of a padded cell among home cells, then halo, then one empty cell."""
        place = np.where(self.home < self.n_home, self.home, self.n_home + len(self.halo))
        place[self.halo] = self.n_home + np.arange(len(self.halo))
        return place.astype(np.int32)

    @cached_property
    def around(self) -> np.ndarray:
        """`[D, C]` int32, the padded cells around each home cell, `D` of them.

        Entry `D - 1 - d` is opposite to entry `d`.
        """
        places = np.stack(np.unravel_index(np.arange(self.n_home), self.counts), axis=1)
        start = np.empty(self.n_home, np.int64)
        start[self.rank] = np.ravel_multi_index(tuple((places + self.reach).T), self.padded)
        strides = np.asarray([self.padded[1] * self.padded[2], self.padded[2], 1])
        return ((self.steps @ strides)[:, None] + start).astype(np.int32)

    @cached_property
    def steps(self) -> np.ndarray:
        """`[D, 3]` int, steps from a cell to those around it."""
        spans = [np.arange(-m, m + 1) for m in self.reach]
        return np.stack(np.meshgrid(*spans, indexing="ij"), axis=-1).reshape(-1, 3)

    @cached_property
    def offsets(self) -> np.ndarray:
        """`[D, 3]` float64, Å, of the cells around; exactly odd under reversal."""
        return (self.steps * self.widths) @ self.geometry.matrix
