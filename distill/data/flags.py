"""Why a labelled structure must not be trained on: one bit per reason.

| bit | name | meaning |
|---|---|---|
| 1 | `NON_FINITE` | energy, a force, the stress or a Hessian product is NaN or infinite |
| 2 | `FORCE_TOO_LARGE` | a force is longer than the threshold given to the labelling |
| 4 | `ATOMS_TOO_CLOSE` | two atoms (images included) are closer than `MIN_DISTANCE` |
| 8 | `FAILED` | the teacher raised an error for this structure, whose labels are NaN then, or for \
its Hessian products, which are missing then |
| 16 | `INCOMPLETE` | energy or forces are absent in the file the labels were read from |
"""

from __future__ import annotations

import numpy as np

from distill.data.dataset import Dataset
from distill.errors import UnsupportedStructureError
from distill.neighbors.host import neighbor_table

NON_FINITE = 1
FORCE_TOO_LARGE = 2
ATOMS_TOO_CLOSE = 4
FAILED = 8
INCOMPLETE = 16

FLAG_NAMES = {
    NON_FINITE: "non_finite",
    FORCE_TOO_LARGE: "force_too_large",
    ATOMS_TOO_CLOSE: "atoms_too_close",
    FAILED: "failed",
    INCOMPLETE: "incomplete",
}

MAX_FORCE = 100.0
"""eV/Å: default threshold of `FORCE_TOO_LARGE`."""

MIN_DISTANCE = 0.35
"""Å: closest distance of two atoms that is not flagged (H2 at equilibrium: 0.74)."""


def flag_summary(dataset: Dataset) -> dict[str, int]:
    """Number of structures with each flag, plus `usable` and `total`, for reports."""
    counts = {name: int(np.sum(dataset.flag & bit != 0)) for bit, name in FLAG_NAMES.items()}
    return {"total": len(dataset), "usable": int(dataset.usable.sum()), **counts}


def compute_flags(
    dataset: Dataset, *, max_force: float = MAX_FORCE, expect_stress: bool = False
) -> np.ndarray:
    """Flags that follow from geometry and labels, `[S]` uint8.

    Args:
        dataset: labelled structures in eV and Å.
        max_force: eV/Å, longest force that is not flagged.
        expect_stress: whether a fully periodic structure without stress counts as non-finite.
    """
    flags = np.zeros(len(dataset), np.uint8)
    for i in range(len(dataset)):
        rows = dataset.rows(i)
        forces, stress = dataset.forces[rows], dataset.stress[i]
        finite = np.isfinite(dataset.energy[i]) and np.isfinite(forces).all()
        stress_defined = expect_stress and dataset.pbc[i].all()
        bad_stress = np.isinf(stress).any() or (stress_defined and np.isnan(stress).any())
        if not finite or bad_stress:
            flags[i] |= NON_FINITE
        lengths = np.sqrt(np.sum(np.square(np.nan_to_num(forces)), axis=1))
        if lengths.max(initial=0.0) > max_force:
            flags[i] |= FORCE_TOO_LARGE
        if atoms_too_close(dataset.positions[rows], dataset.cell[i], dataset.pbc[i]):
            flags[i] |= ATOMS_TOO_CLOSE
    return flags


def atoms_too_close(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, distance: float = MIN_DISTANCE
) -> bool:
    """Whether two atoms, or an atom and an image, are closer than `distance` (Å)."""
    # a wider search than needed, because the grid of a narrow one has far too many cells
    reach = max(distance, 1.5)
    try:
        table = neighbor_table(positions, cell, pbc, reach)
    except UnsupportedStructureError:  # a collapsed cell: images lie on top of each other
        return True
    vectors = table.pairs(positions, cell)[3]
    return bool((np.sum(vectors**2, axis=1) < distance**2).any())
