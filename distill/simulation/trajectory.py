"""Trajectories as extended XYZ, readable by ASE, OVITO and many more."""

from __future__ import annotations

import io
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import ase.io
import ase.units
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from distill.errors import CheckpointError
from distill.simulation.frames import Frames


class TrajectoryWriter:
    """Appends the frames of a run to an extxyz file, one write per block, on disk when it returns.

    Args:
        path: file; an existing one is refused unless `append`.
        atoms: elements and periodicity; the cell is that of each frame.
        reference_energy: eV, added to the potential energy (see `Student.reference_energy`).
        append: continue an existing file.
        replica: which one of a run of replicas is written; None for a single run.
    """

    def __init__(
        self,
        path: str | Path,
        atoms: Atoms,
        reference_energy: float = 0.0,
        append: bool = False,
        replica: int | None = None,
    ):
        self.path = Path(path)
        if self.path.exists() and not append:
            raise FileExistsError(f"{self.path} exists: choose another file or append to it")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._atoms = atoms
        self._reference = reference_energy
        self._replica = replica

    def write(self, frames: Frames) -> None:
        """Append `frames`."""
        own = slice(None) if self._replica is None else (slice(None), self._replica)
        positions, velocities = frames.positions[own], frames.velocities[own]
        energies, cells = frames.potential_energy[own], frames.cell[own]
        images = []
        for i, time in enumerate(frames.time):
            image = Atoms(
                self._atoms.numbers,
                positions=positions[i],
                cell=cells[i],
                pbc=self._atoms.pbc,
                info={"time_fs": float(time)},
            )
            image.set_velocities(velocities[i].astype(np.float64) / ase.units.fs)
            energy = float(energies[i]) + self._reference
            image.calc = SinglePointCalculator(image, energy=energy)
            images.append(image)
        text = io.StringIO()
        ase.io.write(text, images, format="extxyz")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text.getvalue())
            file.flush()
            os.fsync(file.fileno())

    def __call__(self, frames: Frames) -> None:
        """`write`, for `run_md`, which takes the file back to a checkpoint."""
        self.write(frames)

    def mark(self) -> int:
        """Bytes in the file."""
        return self.path.stat().st_size if self.path.exists() else 0

    def rewind(self, mark: int) -> None:
        """Cut off what was written since `mark`.

        Raises:
            CheckpointError: the file is shorter than it was.
        """
        size = self.mark()
        if size < mark:
            raise CheckpointError(
                f"{self.path} holds {size} bytes, but {mark} at the checkpoint: it was changed or "
                "moved; restore it, or start anew in another folder"
            )
        if size > mark:
            os.truncate(self.path, mark)

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
