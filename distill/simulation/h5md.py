"""Trajectories in H5MD 1.1, readable by MDAnalysis and everything that reads HDF5.

The format: de Buyl, Colberg and Höfling, Comput. Phys. Commun. 185, 1546 (2014).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from ase import Atoms

from distill import __version__
from distill.simulation.frames import Frames
from distill.simulation.trajectory import TrajectoryWriter

GROUP = "particles/trajectory"
"""The name that MDAnalysis expects."""

COPIED = 256
"""Frames that are in memory at once where a file is copied."""

SIGNATURE = b"\x89HDF\r\n\x1a\n"
END = slice(28, 36)
"""Where the superblock of version 3 of HDF5 says how long the file is."""


class H5MDWriter(TrajectoryWriter):
    """Appends frames to an H5MD file: positions, velocities, cell, energies, temperature, pressure.

    Files are open for a block only, in HDF5's single-writer mode, in which a process that is killed
    leaves a file that can be read.

    Args:
        path: see `TrajectoryWriter`.
        atoms: see `TrajectoryWriter`.
        timestep: fs; steps are counted in it.
        options: see `TrajectoryWriter`.
    """

    def __init__(
        self, path: str | Path, atoms: Atoms, *, timestep: float = 1.0, **options: Any
    ) -> None:
        super().__init__(path, atoms, **options)
        self._timestep = timestep

    def _append(self, frames: Frames) -> None:
        columns = self._columns(frames)
        if not self.path.exists():
            draft = self._draft()
            with h5py.File(draft, "w", libver="latest") as file:
                self._create(file, columns)
            os.replace(draft, self.path)
        with h5py.File(self.path, "r+", libver="latest") as file:
            file.swmr_mode = True
            for name, values in columns.items():
                _extend(file[name], values)
        self._sync()

    def _columns(self, frames: Frames) -> dict[str, np.ndarray]:
        """Values by their places in the file."""
        energy = frames.potential_energy.astype(np.float64) + self._reference
        columns = {
            f"{GROUP}/position/step": np.round(frames.time / self._timestep).astype(np.int64),
            f"{GROUP}/position/time": np.asarray(frames.time, np.float64),
            f"{GROUP}/position/value": frames.positions,
            f"{GROUP}/velocity/value": frames.velocities,
            "observables/potential_energy/value": energy,
            "observables/kinetic_energy/value": frames.kinetic_energy,
            "observables/temperature/value": frames.temperature,
            "observables/walker/value": frames.walker,
        }
        if self._atoms.pbc.any():
            columns[f"{GROUP}/box/edges/value"] = frames.cell
            columns["observables/pressure/value"] = frames.pressure
        return columns

    def _create(self, file: h5py.File, columns: dict[str, np.ndarray]) -> None:
        """All groups, with datasets of no frames yet."""
        about = file.create_group("h5md")
        about.attrs["version"] = np.array([1, 1])
        about.create_group("author").attrs["name"] = "not given"
        creator = about.create_group("creator").attrs
        creator["name"], creator["version"] = "distill", __version__
        about.create_group("modules/units").attrs["version"] = np.array([1, 0])
        box = file.create_group(f"{GROUP}/box")
        box.attrs["dimension"] = 3
        kinds = ["periodic" if periodic else "none" for periodic in self._atoms.pbc]
        box.attrs["boundary"] = np.array(kinds, h5py.string_dtype())
        file[f"{GROUP}/species"] = self._atoms.numbers.astype(np.int32)
        mass = file.create_dataset(f"{GROUP}/mass", data=self._atoms.get_masses())
        mass.attrs["unit"] = "u"
        for name, values in columns.items():
            per_chunk = max(1, min(1024, 2**18 // max(values[:1].nbytes, 1)))
            dataset = file.create_dataset(
                name,
                (0, *values.shape[1:]),
                values.dtype,
                maxshape=(None, *values.shape[1:]),
                chunks=(per_chunk, *values.shape[1:]),
            )
            unit = UNITS.get(name.removesuffix("/value").split("/")[-1])
            if unit:
                dataset.attrs["unit"] = unit
            group = dataset.parent
            for shared in ("step", "time"):
                if shared not in group and name.endswith("/value"):
                    group[shared] = file[f"{GROUP}/position/{shared}"]

    def mark(self) -> int:
        """Frames in the file."""
        return min(self._lengths(), default=0)

    def rewind(self, mark: int) -> None:
        """Cut off the frames since `mark`, and mend what a killed process left.

        Raises:
            CheckpointError: the file holds fewer frames, or cannot be read.
        """
        if mark == 0:
            self.path.unlink(missing_ok=True)
            return
        try:
            lengths = self._lengths()
        except OSError as error:
            raise self._too_short(f"nothing that HDF5 can read ({error})", mark) from error
        if min(lengths, default=0) < mark:
            raise self._too_short(f"{min(lengths, default=0)} frames", mark)
        if set(lengths) != {mark} or not self._is_closed():
            self._copy(mark)

    def _copy(self, n_frames: int) -> None:
        """Replace the file by a copy of its first frames."""
        draft = self._draft()
        with (
            h5py.File(self.path, "r", libver="latest", swmr=True) as old,
            h5py.File(draft, "w", libver="latest") as new,
        ):
            names = [name for name, _ in _datasets(old)]
            self._create(new, {name: old[name][:1] for name in names})
            for name in names:
                for begin in range(0, n_frames, COPIED):
                    _extend(new[name], old[name][begin : min(begin + COPIED, n_frames)])
        os.replace(draft, self.path)
        self._sync()

    def _lengths(self) -> list[int]:
        if not self.path.exists():
            return []
        self._require_whole()
        with h5py.File(self.path, "r", libver="latest", swmr=True) as file:
            return [len(dataset) for _, dataset in _datasets(file)]

    def _require_whole(self) -> None:
        """Raise OSError for a file cut short, of which HDF5 would try to read the rest for ever."""
        with self.path.open("rb") as file:
            head = file.read(END.stop)
        end = int.from_bytes(head[END], "little")
        if not head.startswith(SIGNATURE) or self._size() < end:
            raise OSError(f"it has {self._size()} bytes and should have {end}")

    def _is_closed(self) -> bool:
        """Whether no process left the file open."""
        try:
            with h5py.File(self.path, "r+", libver="latest"):
                return True
        except OSError:
            return False

    def _draft(self) -> Path:
        return self.path.with_name(f".{self.path.name}.draft")

    def _sync(self) -> None:
        with self.path.open("rb") as file:
            os.fsync(file.fileno())


UNITS: dict[str, str] = {
    "position": "Angstrom",
    "velocity": "Angstrom fs-1",
    "edges": "Angstrom",
    "time": "fs",
    "potential_energy": "eV",
    "kinetic_energy": "eV",
    "temperature": "K",
    "pressure": "GPa",
}
"""As in the units module of H5MD."""


def _datasets(file: h5py.File) -> list[tuple[str, h5py.Dataset]]:
    """Those with an axis of frames; the steps and times that all share first, once."""
    names = [f"{GROUP}/position/step", f"{GROUP}/position/time"]
    for group in (GROUP, "observables"):
        found: list[str] = []
        file[group].visit(found.append)
        names += [f"{group}/{name}" for name in found if name.endswith("/value")]
    return [(name, file[name]) for name in names]


def _extend(dataset: h5py.Dataset, values: np.ndarray) -> None:
    n = len(dataset)
    dataset.resize(n + len(values), axis=0)
    dataset[n:] = values
    dataset.flush()
