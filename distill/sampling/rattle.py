"""Random displacements that never push atoms on top of each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms

from distill.errors import UnsupportedStructureError
from distill.neighbors import neighbor_table

MIN_RELATIVE_DISTANCE = 0.7
"""A displacement is refused when a pair gets closer than this share of its start, or of 1.5 Å."""


def rattle(structures: Sequence[Atoms], standard_deviation: float, seed: int = 0) -> list[Atoms]:
    """Copies with Gaussian displacements of all atoms.

    A copy with atoms too close is drawn again, each time with a smaller displacement.

    Args:
        structures: starts, unchanged.
        standard_deviation: Å, per component.
        seed: same seed, same result.

    Raises:
        UnsupportedStructureError: atoms of a start lie on top of each other.
    """
    rng = np.random.default_rng(seed)
    results = []
    for number, atoms in enumerate(structures):
        allowed = MIN_RELATIVE_DISTANCE * min(_closest(atoms), 1.5)
        if allowed < 0.2:
            raise UnsupportedStructureError(
                f"structure {number} has atoms {_closest(atoms):.2f} Å apart: relax it first"
            )
        amplitude = standard_deviation
        while True:  # ends: without displacement every pair is allowed
            moved = atoms.copy()
            moved.positions += rng.normal(scale=amplitude, size=(len(atoms), 3))
            if _closest(moved) >= allowed:
                break
            amplitude *= 0.8
        results.append(moved)
    return results


def _closest(atoms: Atoms, radius: float = 3.0) -> float:
    """Shortest distance of two atoms up to `radius`, Å."""
    table = neighbor_table(atoms.positions, atoms.cell.array, atoms.pbc, radius)
    vectors = table.pairs(atoms.positions, atoms.cell.array)[3]
    return float(np.linalg.norm(vectors, axis=1).min(initial=radius))
