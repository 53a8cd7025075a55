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


def near_pairs(atoms: Atoms, reach: float, positions: np.ndarray | None = None) -> NearPairs:
    """All pairs closer than `reach`, Å, of `atoms`, or of `positions` `[n, 3]` in their cell."""
    where = atoms.positions if positions is None else np.asarray(positions, np.float64)
    table = neighbor_table(where, atoms.cell.array, atoms.pbc, reach)
    return NearPairs(*table.pairs(where, atoms.cell.array))


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


def bonded(atoms: Atoms, pairs: NearPairs, factor: float) -> set[tuple[int, int]]:
    """Those of `pairs` closer than `factor` sums of their covalent radii, lower index first."""
    near = pairs.lengths < factor * sums_of_radii(atoms, pairs.first, pairs.second)
    own = zip(pairs.first[near].tolist(), pairs.second[near].tolist(), strict=True)
    return {(i, j) for i, j in own if i <= j}
