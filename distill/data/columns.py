"""Columns of a dataset: their types, and which geometries are allowed in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from distill.errors import DatasetError

if TYPE_CHECKING:
    from distill.data.dataset import Dataset

COLUMNS: dict[str, tuple[Any, tuple[int, ...], bool]] = {
    "n_atoms": (np.int64, (), False),
    "numbers": (np.int32, (), True),
    "positions": (np.float64, (3,), True),
    "cell": (np.float64, (3, 3), False),
    "pbc": (np.bool_, (3,), False),
    "energy": (np.float64, (), False),
    "forces": (np.float64, (3,), True),
    "stress": (np.float64, (3, 3), False),
    "trajectory": (np.str_, (), False),
    "origin": (np.str_, (), False),
    "parent": (np.int64, (), False),
    "flag": (np.uint8, (), False),
}
"""Data type, trailing shape, and whether there is one row per atom, of each column."""

EXTRA_COLUMNS: dict[str, tuple[Any, tuple[int, ...], bool]] = {
    "per_atom_energy": (np.float64, (), True),
    "uncertainty": (np.float64, (), True),
}
"""Columns that few teachers give, NaN where they do not; files without them stay as they were."""

ALL_COLUMNS = {**COLUMNS, **EXTRA_COLUMNS}


def check_geometry(dataset: Dataset) -> None:
    """Refuse structures without atoms, with impossible atoms or without the cell they need.

    Raises:
        DatasetError: naming the first such structure.
    """
    if len(dataset) and dataset.n_atoms.min() < 1:
        raise DatasetError(f"structure {int(np.argmin(dataset.n_atoms))} has no atoms: remove it")
    bad = ~np.isfinite(dataset.positions).all(1) | (dataset.numbers < 1) | (dataset.numbers > 118)
    if bad.any():
        index = int(np.searchsorted(dataset.offsets, np.flatnonzero(bad)[0], "right")) - 1
        raise DatasetError(
            f"structure {index} has a non-finite position or an atomic number outside 1..118: "
            "remove it"
        )
    length = np.linalg.norm(dataset.cell, axis=2, keepdims=True)
    vectors = dataset.cell / np.where(length > 0, length, 1) * dataset.pbc[..., None]
    gram = vectors @ vectors.swapaxes(1, 2) + ~dataset.pbc[..., None] * np.eye(3)
    finite = np.isfinite(gram).all((1, 2))
    wrong = ~finite | (np.linalg.det(np.where(finite[:, None, None], gram, 0)) < 1e-10)
    if wrong.any():
        raise DatasetError(
            f"structure {int(np.argmax(wrong))} is periodic without a regular lattice vector "
            "for each periodic direction, or has a non-finite cell: set its cell, or pbc=False"
        )
