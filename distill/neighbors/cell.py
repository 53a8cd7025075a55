"""Cell geometry on the host, in float64: completion, checks, wrapping."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase.geometry import complete_cell

from distill.errors import UnsupportedStructureError

MINIMUM_HEIGHT = 0.1
"""Å. A periodic cell thinner than this is taken for an input error, not for a crystal."""


def periodic_cell(cell: Any, pbc: Any) -> tuple[np.ndarray, np.ndarray]:
    """Split a cell into what is periodic and what is not.

    Args:
        cell: `[3, 3]`, rows are lattice vectors in Å; rows of free directions may be anything.
        pbc: `(3,)` bool or one bool.

    Returns:
        The cell `[3, 3]` float64 with the rows of free directions replaced by unit vectors at
        right angles to the periodic ones, and `pbc` as a `(3,)` bool array.

    Raises:
        UnsupportedStructureError: the periodic vectors are not finite, zero or (nearly) dependent.
    """
    given = np.asarray(cell, dtype=np.float64).reshape(3, 3)
    periodic = np.broadcast_to(np.asarray(pbc, dtype=bool), (3,)).copy()
    if not np.isfinite(given[periodic]).all():
        raise UnsupportedStructureError(f"the cell holds NaN or infinity: {given.tolist()}")
    full = np.where(periodic[:, None], given, 0.0)
    if (np.linalg.norm(full[periodic], axis=1) >= MINIMUM_HEIGHT).all():
        # complete_cell recomputes every row, so the given ones are put back bit for bit.
        full = np.where(periodic[:, None], given, complete_cell(full))
        if np.linalg.matrix_rank(full) == 3 and (heights(full)[periodic] >= MINIMUM_HEIGHT).all():
            return full, periodic
    raise UnsupportedStructureError(
        f"the cell {given.tolist()} is singular or thinner than {MINIMUM_HEIGHT} Å along a "
        f"direction that pbc={periodic.tolist()} calls periodic; set pbc to False there or give "
        "independent lattice vectors"
    )


def heights(cell: np.ndarray) -> np.ndarray:
    """Distances `[3]` in Å between opposite faces of `cell` `[3, 3]` (rows are vectors)."""
    return 1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0)


def image_offsets(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Whole cells `[n, 3]` (float64, 0 along free directions) that each atom lies away from home.

    `positions - offsets @ cell` is wrapped into the cell.
    """
    return np.where(pbc, np.floor(positions @ np.linalg.inv(cell)), 0.0)
