"""Frames from trajectory files, a few at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import ase.io
import ase.units
import h5py
import numpy as np
from ase import Atoms

from distill.errors import DatasetError
from distill.simulation.ensembles import mass_of
from distill.simulation.frames import Frames, temperature_of
from distill.simulation.h5md import GROUP


class TrajectoryReader:
    """Reads a trajectory of one run; its frames are equally far apart.

    Attributes:
        atoms: the first frame.
        interval: fs between frames.

    Args:
        path: H5MD as `H5MDWriter` writes it, or any trajectory that ASE reads.
        interval: fs, for files that do not hold times (as `time_fs`).

    Raises:
        DatasetError: the file cannot be read, holds fewer than two frames, or no times.
    """

    def __init__(self, path: str | Path, interval: float | None = None) -> None:
        self.path, self._given = Path(path), interval
        start = next(self._blocks(2), None)
        if start is None or len(start[1].time) < 2:
            raise DatasetError(f"{self.path} holds fewer than two frames")
        self.atoms, frames = start
        self.interval = float(frames.time[1] - frames.time[0])

    def frames(self, at_once: int = 100) -> Iterator[Frames]:
        """All frames; NaN for energies and velocities that the file does not hold.

        Raises:
            DatasetError: a frame is missing or twice, or the composition changes.
        """
        last = None
        for atoms, frames in self._blocks(at_once):
            if len(atoms) != len(self.atoms) or (atoms.numbers != self.atoms.numbers).any():
                raise DatasetError(f"{self.path} holds frames of other atoms than its first")
            times = frames.time if last is None else np.concatenate([[last], frames.time])
            bad = np.abs(np.diff(times) - self.interval) > 0.01 * self.interval
            if bad.any():
                where = times[int(np.argmax(bad))]
                raise DatasetError(
                    f"{self.path}: the frame after {where:g} fs is not {self.interval:g} fs later"
                )
            last = float(frames.time[-1])
            yield frames

    def _blocks(self, at_once: int) -> Iterator[tuple[Atoms, Frames]]:
        try:
            yield from self._h5md(at_once) if h5py.is_hdf5(self.path) else self._ase(at_once)
        except DatasetError:
            raise
        except Exception as error:  # every reader of ASE has its own errors
            raise DatasetError(f"{self.path} cannot be read as a trajectory: {error}") from error

    def _ase(self, at_once: int) -> Iterator[tuple[Atoms, Frames]]:
        images = ase.io.iread(self.path, index=":")
        count = 0
        while batch := list(islice(images, at_once)):
            if len({len(image) for image in batch}) > 1:
                raise DatasetError(f"{self.path} holds frames of different numbers of atoms")
            if self._given is not None:
                time = self._given * np.arange(count + 1, count + len(batch) + 1)
            elif all("time_fs" in image.info for image in batch):
                time = np.array([image.info["time_fs"] for image in batch], float)
            else:
                raise DatasetError(f"{self.path} holds no times: give the interval of its frames")
            count += len(batch)
            moving = all(image.has("momenta") for image in batch)
            velocities = np.array([image.get_velocities() for image in batch]) * ase.units.fs
            yield (
                batch[0],
                _frames(
                    batch[0],
                    time,
                    np.array([image.positions for image in batch]),
                    velocities if moving else np.full_like(velocities, np.nan),
                    np.array([image.cell.array for image in batch]),
                    np.array([_energy(image) for image in batch]),
                ),
            )

    def _h5md(self, at_once: int) -> Iterator[tuple[Atoms, Frames]]:
        with h5py.File(self.path) as file:
            own = file[GROUP]
            boundary = own["box"].attrs["boundary"]
            pbc = [text in ("periodic", b"periodic") for text in boundary]
            for begin in range(0, len(own["position/value"]), at_once):
                rows = slice(begin, begin + at_once)
                positions = own["position/value"][rows]
                cells = np.zeros((len(positions), 3, 3))
                if "edges" in own["box"]:
                    cells = own["box/edges/value"][rows]
                atoms = Atoms(own["species"][:], positions[0], cell=cells[0], pbc=pbc)
                observables = file["observables"]
                known = {
                    name: observables[f"{name}/value"][rows]
                    for name in ("pressure", "walker")
                    if name in observables
                }
                yield (
                    atoms,
                    _frames(
                        atoms,
                        own["position/time"][rows],
                        positions,
                        own["velocity/value"][rows],
                        cells,
                        observables["potential_energy/value"][rows],
                        **known,
                    ),
                )


def _frames(
    atoms: Atoms,
    time: np.ndarray,
    positions: np.ndarray,
    velocities: np.ndarray,
    cells: np.ndarray,
    energy: np.ndarray,
    pressure: np.ndarray | None = None,
    walker: np.ndarray | None = None,
) -> Frames:
    mass = mass_of(atoms.numbers)
    exact = velocities.astype(np.float64)
    kinetic = 0.5 * (mass * exact**2).sum((-2, -1))
    unknown = np.full(len(time), np.nan)
    return Frames(
        time=time,
        positions=positions,
        velocities=velocities,
        potential_energy=energy,
        kinetic_energy=kinetic,
        temperature=temperature_of(exact, mass),
        conserved_energy=unknown,
        uncertainty=np.zeros((len(time), 0)),
        cell=cells,
        pressure=unknown if pressure is None else pressure,
        walker=np.zeros(len(time), np.int32) if walker is None else walker,
    )


def _energy(image: Atoms) -> float:
    results = {} if image.calc is None else image.calc.results
    return float(results.get("energy", np.nan))
