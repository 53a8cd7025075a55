"""One HDF5 file of structures: written atomically, checked completely when read."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import h5py
import numpy as np

import distill
from distill.data.columns import COLUMNS, EXTRA_COLUMNS
from distill.data.dataset import Dataset, make_units
from distill.data.hessian import PRODUCT_COLUMNS, HessianProducts
from distill.errors import DatasetError
from distill.units import UnitError

FORMAT = "distill-dataset"
FORMAT_VERSION = 3
"""Newest version that is read: 2 has the group `hessian`, 3 some of `EXTRA_COLUMNS`, 1 neither."""

HESSIAN = "hessian"


@dataclass(frozen=True)
class Header:
    """What a dataset file says about itself.

    Attributes:
        count: number of structures.
        start: number of the first structure within the whole dataset.
        provenance: see `Dataset`.
        units: units of the file (`load` converts to eV and Å).
        versions: libraries that wrote the file.
        sha256: `Dataset.sha256` of the content, in the units of the file.
        hessian: whether the file holds Hessian products.
    """

    count: int
    start: int
    provenance: dict[str, Any]
    units: dict[str, str]
    versions: dict[str, str]
    sha256: str
    hessian: bool


def write_file(dataset: Dataset, path: Path, start: int) -> None:
    """Write `dataset` to `path` under a temporary name, flush it to disk, then rename it.

    Raises:
        DatasetError: an empty dataset.
    """
    if len(dataset) == 0:
        raise DatasetError(f"{path}: refusing to write a dataset without structures")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with h5py.File(temporary, "w") as file:
            file.attrs["format"] = FORMAT
            # an older reader would lose products and further columns unnoticed
            version = 3 if dataset.extra_columns else 1 if dataset.hessian is None else 2
            file.attrs["format_version"] = version
            file.attrs["n_structures"] = len(dataset)
            file.attrs["start_index"] = start
            file.attrs["energy_unit"] = dataset.units["energy"]
            file.attrs["length_unit"] = dataset.units["length"]
            file.attrs["versions"] = json.dumps(_versions())
            file.attrs["content_sha256"] = dataset.sha256
            # an attribute holds at most 64 KiB, a data set any length
            file["provenance"] = json.dumps(dataset.provenance)
            for name, (dtype, _, _) in COLUMNS.items():
                values = getattr(dataset, name)
                if dtype is np.str_:
                    texts = values.astype(object)
                    file.create_dataset(name, data=texts, dtype=h5py.string_dtype())
                else:
                    file.create_dataset(name, data=values)
            for name in dataset.extra_columns:
                file.create_dataset(name, data=getattr(dataset, name))
            for name in PRODUCT_COLUMNS if dataset.hessian is not None else ():
                file.create_dataset(f"{HESSIAN}/{name}", data=getattr(dataset.hessian, name))
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def read_header(path: Path) -> Header:
    """Everything but the structures.

    Raises:
        DatasetError: a missing, truncated or foreign file.
        UnitError: units that are missing or unknown.
    """
    with _opened(path) as file:
        return _header(file, path)


def read_file(path: Path) -> tuple[Dataset, int]:
    """The structures of one file in eV and Å, and the number of the first one.

    Raises:
        DatasetError: a missing, truncated, damaged, foreign or empty file.
        UnitError: units that are missing or unknown.
    """
    with _opened(path) as file:
        header = _header(file, path)
        columns = {
            name: file[name].asstr()[:] if dtype is np.str_ else file[name][:]
            for name, (dtype, _, _) in COLUMNS.items()
        }
        columns.update({name: file[name][:] for name in EXTRA_COLUMNS if name in file})
        products = {name: file[HESSIAN][name][:] for name in PRODUCT_COLUMNS if header.hessian}
    try:
        dataset = Dataset(
            **columns,
            provenance=header.provenance,
            units=header.units,
            hessian=HessianProducts(**products) if header.hessian else None,
        )
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error
    if dataset.sha256 != header.sha256 or len(dataset) != header.count:
        raise DatasetError(
            f"{path}: the content does not match its checksum; the file was damaged or edited: "
            "restore it from a copy or label again"
        )
    return dataset.in_standard_units(), header.start


def _header(file: h5py.File, path: Path) -> Header:
    attributes = dict(file.attrs)
    if attributes.get("format") != FORMAT:
        raise DatasetError(
            f"{path}: is an HDF5 file but not a distill dataset; read other formats with "
            "distill.data.read_structures"
        )
    version = int(attributes["format_version"])
    if version > FORMAT_VERSION:
        raise DatasetError(
            f"{path}: has format version {version}, this library reads up to {FORMAT_VERSION}: "
            "update distill"
        )
    if "energy_unit" not in attributes or "length_unit" not in attributes:
        raise UnitError(
            f"{path}: has no units: set the HDF5 attributes energy_unit and length_unit (for "
            "example eV and Angstrom) if you know them"
        )
    try:
        units = make_units(str(attributes["energy_unit"]), str(attributes["length_unit"]))
    except UnitError as error:
        raise UnitError(f"{path}: {error}; correct the attribute in the file") from error
    count = int(attributes["n_structures"])
    if count == 0:
        raise DatasetError(f"{path}: the dataset is empty: label some structures first")
    return Header(
        count=count,
        start=int(attributes["start_index"]),
        provenance=json.loads(file["provenance"].asstr()[()]),
        units=units,
        versions=json.loads(attributes["versions"]),
        sha256=str(attributes["content_sha256"]),
        hessian=HESSIAN in file,
    )


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """The open file; whatever HDF5 raises becomes a `DatasetError` that names the file."""
    if not path.is_file():
        raise DatasetError(f"{path}: there is no such dataset file: check the path")
    try:
        is_hdf5 = h5py.is_hdf5(path)
        if is_hdf5:
            with h5py.File(path, "r") as file:
                yield file
    except (UnitError, DatasetError):
        raise
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DatasetError(
            f"{path}: is truncated or damaged ({error}): restore it from a copy; a damaged part "
            "of an unfinished dataset may be deleted together with the parts after it, then resume"
        ) from error
    if not is_hdf5:
        raise DatasetError(
            f"{path}: is not an HDF5 file, or its beginning is lost; read other formats with "
            "distill.data.read_structures"
        )


def _versions() -> dict[str, str]:
    return {
        "distill": distill.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "h5py": h5py.__version__,
        "ase": ase.__version__,
    }


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
