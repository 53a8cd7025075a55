"""Joining datasets, and telling whether two structures are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from distill.data.columns import ALL_COLUMNS
from distill.data.dataset import Dataset
from distill.data.hessian import HessianProducts
from distill.errors import DatasetError
from distill.units import UnitError, energy_factor, length_factor

IDENTITY = ("teacher", "teacher_version", "weights_sha256")
"""Provenance keys that must agree before two datasets are joined."""


def concatenate(datasets: Sequence[Dataset]) -> Dataset:
    """All structures of `datasets` in order; provenance of the first is kept.

    Parents and Hessian products are renumbered, so that they still point at the same structures.

    Raises:
        DatasetError: no datasets, different teachers or weights, labelled and unlabelled mixed, or
            Hessian products in some only.
        UnitError: different units.
    """
    if not datasets:
        raise DatasetError("there are no datasets to concatenate")
    first = datasets[0]
    start = 0
    shifted = []
    for number, dataset in enumerate(datasets):
        where = f"dataset {number} of the {len(datasets)} to concatenate"
        require_same_provenance(first.provenance, dataset.provenance, where)
        require_same_units(first.units, dataset.units, where)
        if len(dataset) and len(first) and dataset.has_labels != first.has_labels:
            raise DatasetError(f"{where} and dataset 0: only one has labels; label the other first")
        parent = np.where(dataset.parent >= 0, dataset.parent + start, -1)
        shifted.append(replace(dataset, parent=parent))
        start += len(dataset)
    return join(shifted)


def join(datasets: Sequence[Dataset]) -> Dataset:
    """Columns of `datasets` one after the other, unchanged and unchecked.

    Only the structure numbers of Hessian products, which count from each dataset's own first
    structure, are shifted.

    Raises:
        DatasetError: Hessian products in some only.
    """
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(d, name) for d in datasets]) for name in ALL_COLUMNS
    }
    for number, dataset in enumerate(datasets):
        require_same_hessian(
            datasets[0].hessian is not None,
            dataset.hessian is not None,
            f"dataset {number} of the {len(datasets)} to join",
        )
    products = [d.hessian for d in datasets if d.hessian is not None]
    starts = np.cumsum([0, *(len(d) for d in datasets)])[:-1]
    hessian = HessianProducts.join(products, starts.tolist()) if products else None
    return replace(datasets[0], **columns, hessian=hessian)


def require_same_hessian(first: bool, second: bool, where: object) -> None:
    """Raise `DatasetError` when only one of two datasets holds Hessian products."""
    if first != second:
        has = ("has no", "others do") if first else ("has", "others do not")
        raise DatasetError(
            f"{where}: {has[0]} Hessian products, but the {has[1]}: label all with the same "
            "`hessian`, or remove them by dataclasses.replace(dataset, hessian=None)"
        )


def require_same_provenance(
    first: Mapping[str, Any], second: Mapping[str, Any], where: object
) -> None:
    """Raise `DatasetError` when teacher, teacher version or weights differ."""
    for key in IDENTITY:
        if first.get(key) != second.get(key):
            raise DatasetError(
                f"{where}: {key} is {second.get(key)!r} here but {first.get(key)!r} in the "
                "existing data; labels of different teachers are never mixed: use another file, "
                "or label again with one teacher"
            )


def require_same_units(first: Mapping[str, str], second: Mapping[str, str], where: object) -> None:
    """Raise `UnitError` when energy or length units differ."""
    same = energy_factor(first["energy"]) == energy_factor(second["energy"]) and length_factor(
        first["length"]
    ) == length_factor(second["length"])
    if not same:
        raise UnitError(
            f"{where}: units are {second['energy']} and {second['length']} here but "
            f"{first['energy']} and {first['length']} in the existing data: convert one with "
            "in_standard_units()"
        )


def structure_hashes(dataset: Dataset) -> np.ndarray:
    """`[S]` str, SHA-256 of elements, positions, cell and periodicity of each structure.

    Two structures have the same hash only if they agree to the last bit (0.0 and -0.0 agree);
    a translated or reordered copy differs.
    """
    hashes = []
    for i in range(len(dataset)):
        rows = dataset.rows(i)
        digest = hashlib.sha256(dataset.numbers[rows].tobytes())
        for values in (dataset.positions[rows] + 0.0, dataset.cell[i] + 0.0, dataset.pbc[i]):
            digest.update(values.tobytes())
        hashes.append(digest.hexdigest())
    return np.array(hashes, "U64")
