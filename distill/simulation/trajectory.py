"""Trajectories as extended XYZ, readable by ASE, OVITO and many more."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import ase.io
import ase.units
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from distill.simulation.run import Frames


class TrajectoryWriter:
    """Appends the frames of a run to an extxyz file, one write per block.

    Args:
        path: file; an existing one is refused unless `append`.
        atoms: elements, cell and periodicity.
        reference_energy: eV, added to the potential energy (see `Student.reference_energy`).
        append: continue an existing file.
    """

    def __init__(
        self, path: str | Path, atoms: Atoms, reference_energy: float = 0.0, append: bool = False
    ):
        self.path = Path(path)
        if self.path.exists() and not append:
            raise FileExistsError(f"{self.path} exists: choose another file or append to it")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._atoms = atoms
        self._reference = reference_energy

    def write(self, frames: Frames) -> None:
        """Append `frames` (of a single replica)."""
        images = []
        for i, time in enumerate(frames.time):
            image = Atoms(
                self._atoms.numbers,
                positions=frames.positions[i],
                cell=self._atoms.cell,
                pbc=self._atoms.pbc,
                info={"time_fs": float(time)},
            )
            image.set_velocities(frames.velocities[i].astype(np.float64) / ase.units.fs)
            energy = float(frames.potential_energy[i]) + self._reference
            image.calc = SinglePointCalculator(image, energy=energy)
            images.append(image)
        ase.io.write(self.path, images, format="extxyz", append=True)

    def __enter__(self) -> TrajectoryWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None


def read_trajectory(path: str | Path, **options: Any) -> list[Atoms]:
    """All frames of an extxyz trajectory as ASE atoms."""
    return ase.io.read(path, index=":", **options)
