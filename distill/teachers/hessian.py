"""Hessian-vector products of any teacher by central differences of its forces."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from ase import Atoms

from distill.data.labels import Labels
from distill.teachers.base import HessianProduct

STEP = 0.01
"""Å, displacement of the atom that moves most; halved for the finer of the two differences."""


def directions_of(structure: Atoms, direction: np.ndarray) -> tuple[np.ndarray, bool]:
    """`direction` as float64 `[k, n, 3]`, and whether it was a single one.

    Raises:
        ValueError: another shape, or NaN.
    """
    directions = np.asarray(direction, np.float64)
    if directions.ndim not in (2, 3) or directions.shape[-2:] != (len(structure), 3):
        raise ValueError(
            f"direction has shape {directions.shape}, expected [{len(structure)}, 3] or "
            f"[k, {len(structure)}, 3]: one vector for each atom"
        )
    if not np.isfinite(directions).all():
        raise ValueError("direction holds NaN or infinity")
    return directions.reshape(-1, len(structure), 3), directions.ndim == 2


def product_of(
    values: np.ndarray, error: np.ndarray, single: bool, *, exact: bool
) -> HessianProduct:
    """`HessianProduct` of `[k, n, 3]` values; without the first axis for a single direction."""
    return (
        HessianProduct(values[0], error[0], exact)
        if single
        else HessianProduct(values, error, exact)
    )


def numerical_hvp(
    label: Callable[[Sequence[Atoms]], Labels],
    structure: Atoms,
    direction: np.ndarray,
    step: float = STEP,
) -> HessianProduct:
    """Hessian-vector products from forces at four displaced structures for each direction.

    Differences with `step` and `step / 2` are extrapolated (Richardson), which leaves an error of
    the fourth order. Their difference is given as the error estimate: it bounds what remains of
    the truncation and shows the noise of the forces, which dominates in single precision.

    Args:
        label: gives the forces of a batch, e.g. `Teacher.label`.
        structure: where.
        direction: `[n, 3]` or `[k, n, 3]`, any length.
        step: Å, of the atom that moves most.
    """
    directions, single = directions_of(structure, direction)
    lengths = np.linalg.norm(directions, axis=2).max(1)
    scales = np.where(lengths > 0, lengths, 1.0)
    moved: list[Atoms] = []
    for unit in directions / scales[:, None, None]:
        for amount in (step, -step, step / 2, -step / 2):
            copy = structure.copy()
            copy.positions += amount * unit
            moved.append(copy)
    forces = np.reshape(label(moved).forces, (len(directions), 4, len(structure), 3))
    coarse = (forces[:, 1] - forces[:, 0]) / (2 * step)
    fine = (forces[:, 3] - forces[:, 2]) / step
    values = (4 * fine - coarse) / 3
    error = np.abs(values - coarse).max((1, 2)) * scales
    return product_of(values * scales[:, None, None], error, single, exact=False)
