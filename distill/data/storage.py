"""The dataset file: one HDF5 file, written atomically, or in parts while it grows.

HDF5 has no journal, so a file that is open for appending can be lost by a kill. `DatasetWriter`
therefore writes every appended batch as a complete file of its own,
`<dataset>.h5.parts/000000.h5`, and `finish` merges them. Each part knows the number of its first
structure, so that parts which are already merged are recognised and nothing is stored twice.
Hessian products in a part number the structures of that part from 0; reading shifts them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from distill.data.dataset import Dataset
from distill.data.files import Header, read_file, read_header, write_file
from distill.data.joining import (
    join,
    require_same_hessian,
    require_same_provenance,
    require_same_units,
    structure_hashes,
)
from distill.errors import DatasetError


def save(dataset: Dataset, path: str | os.PathLike[str]) -> None:
    """Write `dataset` to `path`, replacing what is there, completely or not at all.

    Raises:
        DatasetError: an empty dataset, or unmerged parts of another one at this path.
    """
    path = Path(path)
    if _part_files(path):
        raise DatasetError(
            f"{path}: {_parts_folder(path)} holds an unfinished dataset; resume it, call "
            "DatasetWriter(...).finish(), or delete that folder"
        )
    write_file(dataset, path, 0)


def load(path: str | os.PathLike[str]) -> Dataset:
    """Read a dataset, with any parts that were not merged yet, in eV and Å.

    Raises:
        DatasetError: a missing, truncated, damaged, foreign or empty file, or a gap in the parts.
        UnitError: units that are missing or unknown.
    """
    path = Path(path)
    parts = _part_files(path)
    loaded: list[Dataset] = []
    repeated: list[tuple[Path, int, np.ndarray]] = []
    count = 0
    for file in ([path] if path.exists() or not parts else []) + parts:
        dataset, start = read_file(file)
        if loaded:
            require_same_provenance(loaded[0].provenance, dataset.provenance, file)
            require_same_hessian(loaded[0].hessian is not None, dataset.hessian is not None, file)
        _require_order(file, start, len(dataset), count)
        if start == count:
            loaded.append(dataset)
            count += len(dataset)
        else:
            repeated.append((file, start, structure_hashes(dataset)))
    merged = join(loaded)
    hashes = structure_hashes(merged) if repeated else np.array([])
    for file, start, part in repeated:
        if (hashes[start : start + len(part)] != part).any():
            raise DatasetError(
                f"{file}: differs from the structures of the same numbers in {path}; it belongs "
                "to another run: delete it"
            )
    return merged


class DatasetWriter:
    """Appends batches to a dataset so that a kill loses at most the batch in hand.

    A context manager; only one writer at a time may hold a path. Parents in appended batches are
    numbers in the whole file and are stored as they are.

    Args:
        path: the dataset file, new or existing.
        provenance: must agree with that of an existing file in teacher, version and weights.

    Raises:
        DatasetError: another provenance, another writer at work, or damaged existing data.
    """

    def __init__(self, path: str | os.PathLike[str], provenance: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self._folder = _parts_folder(self.path)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock: IO[str] | None = _lock(self._folder / "lock")
        try:
            self.provenance = dict(provenance)
            self._units: dict[str, str] | None = None
            self._hessian: bool | None = None
            self.count = 0
            self._next_part = 0
            self._scan()
        except BaseException:
            self.close()
            raise

    def _scan(self) -> None:
        for leftover in self._folder.glob(".*.tmp"):
            leftover.unlink()
        for leftover in self.path.parent.glob(f".{self.path.name}.*.tmp"):
            leftover.unlink()
        parts = _part_files(self.path)
        for file in ([self.path] if self.path.exists() else []) + parts:
            header = read_header(file)
            self._require_fitting(header, file)
            _require_order(file, header.start, header.count, self.count)
            self.count = max(self.count, header.start + header.count)
        if parts:
            self._next_part = int(parts[-1].stem) + 1

    def _require_fitting(self, header: Header, file: Path) -> None:
        require_same_provenance(header.provenance, self.provenance, file)
        if self._units is None:
            self._units, self._hessian = header.units, header.hessian
        require_same_units(header.units, self._units, file)
        require_same_hessian(bool(self._hessian), header.hessian, file)

    def append(self, dataset: Dataset) -> None:
        """Store a batch; it is safe on disk when this returns.

        Raises:
            DatasetError: an empty batch, another provenance, Hessian products where the file has
                none or none where it has some, or a closed writer.
            UnitError: other units than those of the file.
        """
        if self._lock is None:
            raise DatasetError(f"{self.path}: this writer is closed; open a new DatasetWriter")
        require_same_provenance(self.provenance, dataset.provenance, self.path)
        if self._units is None:
            self._units, self._hessian = dataset.units, dataset.hessian is not None
        require_same_units(self._units, dataset.units, self.path)
        require_same_hessian(bool(self._hessian), dataset.hessian is not None, self.path)
        write_file(dataset, self._folder / f"{self._next_part:06d}.h5", self.count)
        self.count += len(dataset)
        self._next_part += 1

    def finish(self) -> Dataset:
        """Merge the parts into one file, close the writer and return the whole dataset.

        May be repeated after a kill at any moment. Needs memory for the whole dataset.
        """
        merged = load(self.path)
        parts = _part_files(self.path)
        if parts:
            write_file(merged, self.path, 0)
        for part in parts:
            part.unlink()
        self.close()
        return merged

    def close(self) -> None:
        """Release the path; parts stay for a later writer."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        if self._folder.is_dir() and not _part_files(self.path):
            (self._folder / "lock").unlink(missing_ok=True)
            self._folder.rmdir()

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _parts_folder(path: Path) -> Path:
    return path.with_name(path.name + ".parts")


def _part_files(path: Path) -> list[Path]:
    files = [file for file in _parts_folder(path).glob("*.h5") if file.stem.isdigit()]
    return sorted(files, key=lambda file: int(file.stem))


def _require_order(file: Path, start: int, length: int, count: int) -> None:
    if start != count and start + length > count:
        raise DatasetError(
            f"{file}: holds structures {start} to {start + length - 1}, but {count} precede it; a "
            "part is missing or belongs to another run: restore it, or delete this part and those "
            "after it and resume"
        )


def _lock(path: Path) -> IO[str]:
    """Hold `path` until the returned file is closed or the process ends, even by a kill."""
    handle = open(path, "a")
    try:
        import fcntl
    except ImportError:
        return handle
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        handle.close()
        raise DatasetError(
            f"{path.parent}: another process is writing this dataset; wait for it or stop it"
        ) from error
    except OSError:
        pass  # some network file systems know no locks; the parts stay valid without
    return handle
