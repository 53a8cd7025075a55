"""Radial distribution functions of the pairs of elements."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase.data import chemical_symbols

from distill.neighbors import pair_distances


class RadialDistribution:
    """Histograms of distances between pairs of elements, normalised frame by frame.

    In a periodic system the partial g_ab(r) = V n_ab(r) / (N_a N_b 4π r² dr) with V of the frame,
    all images counted, also those of an atom itself: g is right beyond half the cell, its integral
    gives coordination numbers, and an ideal gas has 1 - 1/N below half the cell for a = b. In a
    system that is not periodic in all directions, where no density is defined, the density of
    distances in 1/Å, with all pairs at any distance making 1.

    Args:
        numbers: `[n]` atomic numbers.
        pbc: `(3,)` periodic directions.
        r_max: Å.
        width: of the bins, Å; made a little smaller so that they fill `r_max`.
    """

    def __init__(self, numbers: Any, pbc: Any, r_max: float, width: float = 0.05) -> None:
        if not (r_max > width > 0):
            raise ValueError(f"r_max ({r_max}) must be larger than the width of bins ({width} Å)")
        elements, self._kind, counts = np.unique(
            np.asarray(numbers), return_inverse=True, return_counts=True
        )
        self.pbc = np.broadcast_to(np.asarray(pbc, bool), 3)
        self.periodic = bool(self.pbc.all())
        self.r_max = float(r_max)
        n_bins = int(np.ceil(r_max / width - 1e-9))
        self.edges = np.linspace(0.0, r_max, n_bins + 1)
        kinds = np.arange(len(elements))
        self._pairs = [(a, b) for a in kinds for b in kinds[a:]]
        if not self.periodic:  # a single atom of an element makes no pair with itself
            self._pairs = [(a, b) for a, b in self._pairs if a != b or counts[a] > 1]
        # Row of the histogram of each ordered pair of kinds.
        self._row = np.full((len(kinds), len(kinds)), -1)
        for row, (a, b) in enumerate(self._pairs):
            self._row[a, b] = self._row[b, a] = row
        symbols = [chemical_symbols[z] for z in elements]
        self.labels = [f"{symbols[a]}-{symbols[b]}" for a, b in self._pairs]
        # Ordered pairs, as the search gives them.
        self._ordered = np.array(
            [
                (1 if a == b else 2) * counts[a] * counts[b]
                if self.periodic
                else (counts[a] * (counts[a] - 1) if a == b else 2 * counts[a] * counts[b])
                for a, b in self._pairs
            ],
            float,
        )

    @property
    def r(self) -> np.ndarray:
        """`[bins]`, middles of the bins, Å."""
        return 0.5 * (self.edges[1:] + self.edges[:-1])

    def __call__(self, positions: np.ndarray, cell: np.ndarray) -> np.ndarray:
        """`[pairs, bins]` of one frame: `positions` `[n, 3]` and `cell` `[3, 3]` in Å."""
        i, j, distance = pair_distances(positions, cell, self.pbc, self.r_max)
        n_bins = len(self.edges) - 1
        bins = np.minimum((distance * (n_bins / self.r_max)).astype(np.int64), n_bins - 1)
        flat = self._row[self._kind[i], self._kind[j]] * n_bins + bins
        size = len(self._pairs) * n_bins
        histogram = np.bincount(flat, minlength=size).reshape(len(self._pairs), n_bins)
        if not self.periodic:
            return histogram / self._ordered[:, None] / np.diff(self.edges)
        shells = 4 / 3 * np.pi * np.diff(self.edges**3)
        return histogram * abs(np.linalg.det(cell)) / self._ordered[:, None] / shells
