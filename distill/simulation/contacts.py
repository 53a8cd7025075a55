"""Which atoms of a frame are close, and which are bonded; on the host, images included."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.data import covalent_radii

from distill.neighbors import neighbor_table


def close_pairs(atoms: Atoms, positions: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs `[P, 2]` and distances `[P]` in Å below `reach`, each pair in both directions.

    `positions` `[n, 3]` in Å, wrapped or not; `atoms` gives the cell.
    """
    table = neighbor_table(positions, atoms.cell.array, atoms.pbc, reach)
    first, second, _, vectors = table.pairs(positions, atoms.cell.array)
    return np.stack([first, second], axis=1), np.linalg.norm(vectors, axis=1)


def bond_reach(atoms: Atoms, factor: float) -> float:
    """Å, longest possible bond: `factor` sums of covalent radii."""
    return float(factor * 2 * covalent_radii[atoms.numbers].max())


def bonded(
    atoms: Atoms, pairs: np.ndarray, lengths: np.ndarray, factor: float
) -> set[tuple[int, int]]:
    """Pairs closer than `factor` sums of their covalent radii (1.2 is usual), lower index first."""
    near = lengths < factor * covalent_radii[atoms.numbers][pairs].sum(1)
    return {(int(i), int(j)) for i, j in pairs[near] if i <= j}
