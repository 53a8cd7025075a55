"""Displacements that neither periodic images nor a breathing cell falsify."""

from __future__ import annotations

import numpy as np


def unwrap(positions: np.ndarray, cells: np.ndarray, wrapped: bool = False) -> np.ndarray:
    """Paths of atoms, as sums of their displacements from frame to frame.

    A displacement is that of the scaled coordinates in the cell of the later frame: where the cell
    changes, atoms far from the origin do not seem to move with it (see von Bülow, Bullerjahn and
    Hummer, J. Chem. Phys. 153, 021101 (2020)). In a cell that stays as it is this changes nothing.

    Args:
        positions: `[T, ..., n, 3]`, Å.
        cells: `[T, ..., 3, 3]`, Å; zero for systems without one.
        wrapped: positions were put back into the cell in each frame: the displacement to the
            nearest image is taken.

    Returns:
        `[T, ..., n, 3]` in float64, equal to `positions` in the first frame.
    """
    positions, cells = np.asarray(positions, np.float64), np.asarray(cells, np.float64)
    if len(positions) < 2 or (not wrapped and (cells == cells[:1]).all()):
        return positions
    scaled = positions @ np.linalg.inv(cells)
    steps = np.diff(scaled, axis=0)
    if wrapped:
        steps -= np.round(steps)
    moves = steps @ cells[1:]
    return np.concatenate([positions[:1], positions[:1] + np.cumsum(moves, axis=0)])


def without_drift(values: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """`values` `[..., n, 3]` less their mean by `masses` `[n]`; a single atom is left as it is."""
    if len(masses) < 2:
        return values
    return values - np.einsum("...nx,n->...x", values, masses / masses.sum())[..., None, :]
