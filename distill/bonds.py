"""Which atoms are near each other, bonded, or of one molecule; on the host, images included."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from distill.neighbors import neighbor_table

BOND_FACTOR = 1.3
"""Sums of covalent radii up to which two atoms are taken for bonded, where nothing else is said."""


class NearPairs(NamedTuple):
    """Pairs of atoms, each in both directions.

    Attributes:
        first: `[P]`.
        second: `[P]`.
        shifts: `[P, 3]` int, cells by which the second is moved.
        vectors: `[P, 3]`, Å, from the first to the second.
    """

    first: np.ndarray
    second: np.ndarray
    shifts: np.ndarray
    vectors: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Distances `[P]`, Å."""
        return np.asarray(np.linalg.norm(self.vectors, axis=1))

    def chosen(self, which: np.ndarray) -> NearPairs:
        """Those of a mask or of numbers."""
        return NearPairs(*(values[which] for values in self))

    def among(self, others: NearPairs) -> np.ndarray:
        """`[P]` bool: which are also in `others`, of the same atoms, that may have moved."""
        rows = [np.column_stack([one.first, one.second, one.shifts]) for one in (self, others)]
        number = np.unique(np.concatenate(rows), axis=0, return_inverse=True)[1]
        return np.isin(number[: len(self.first)], number[len(self.first) :])


def near_pairs(atoms: Atoms, reach: float) -> NearPairs:
    """All pairs closer than `reach`, Å."""
    table = neighbor_table(atoms.positions, atoms.cell.array, atoms.pbc, reach)
    return NearPairs(*table.pairs(atoms.positions, atoms.cell.array))


def sums_of_radii(atoms: Atoms, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Covalent radii of pairs of atoms, added: `[P]`, Å."""
    radii = covalent_radii[atoms.numbers]
    return np.asarray(radii[first] + radii[second])


def find_bonds(atoms: Atoms, factor: float = BOND_FACTOR) -> NearPairs:
    """Pairs closer than `factor` sums of their covalent radii."""
    pairs = near_pairs(atoms, bond_reach(atoms, factor))
    longest = factor * sums_of_radii(atoms, pairs.first, pairs.second)
    return pairs.chosen(pairs.lengths < longest)


def number_molecules(n_atoms: int, bonds: NearPairs) -> np.ndarray:
    """`[n]` int, the molecule of each atom, counted from 0; a free atom is one of its own."""
    graph = coo_array((np.ones(len(bonds.first)), bonds[:2]), shape=(n_atoms, n_atoms))
    return np.asarray(connected_components(graph, directed=False)[1])


def bond_reach(atoms: Atoms, factor: float) -> float:
    """Å, longest possible bond: `factor` sums of covalent radii."""
    return float(factor * 2 * covalent_radii[atoms.numbers].max())


def close_pairs(atoms: Atoms, positions: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs `[P, 2]` and distances `[P]` in Å below `reach`, each pair in both directions.

    `positions` `[n, 3]` in Å, wrapped or not; `atoms` gives the cell.
    """
    table = neighbor_table(positions, atoms.cell.array, atoms.pbc, reach)
    pairs = NearPairs(*table.pairs(positions, atoms.cell.array))
    return np.stack([pairs.first, pairs.second], axis=1), pairs.lengths


def bonded(
    atoms: Atoms, pairs: np.ndarray, lengths: np.ndarray, factor: float
) -> set[tuple[int, int]]:
    """Pairs closer than `factor` sums of their covalent radii (1.2 is usual), lower index first."""
    near = lengths < factor * sums_of_radii(atoms, *pairs.T)
    return {(int(i), int(j)) for i, j in pairs[near] if i <= j}
