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

    Other formats are subclasses, see `open_trajectory`.

    Args:
        path: file; an existing one is refused unless `append`.
        atoms: elements and periodicity; the cell is that of each frame.
        reference_energy: eV, added to the potential energy (see `Student.reference_energy`).
        append: continue an existing file.
        replica: which one of a run of replicas is written (which temperature, if they are
            exchanged: `walker` of each frame says who was there); None for a single run.
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
        if self._replica is not None:
            own = {k: v if k == "time" else v[:, self._replica] for k, v in vars(frames).items()}
            frames = Frames(**own)
        if len(frames.time):
            self._append(frames)

    def _append(self, frames: Frames) -> None:
        """Append frames without an axis for replicas; on disk when this returns."""
        text = io.StringIO()
        ase.io.write(text, self._images(frames), format="extxyz")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text.getvalue())
            file.flush()
            os.fsync(file.fileno())

    def _images(self, frames: Frames) -> list[Atoms]:
        images = []
        for i, time in enumerate(frames.time):
            info: dict[str, Any] = {"time_fs": float(time)}
            if self._replica is not None:
                info["walker"] = int(frames.walker[i])
            image = Atoms(
                self._atoms.numbers,
                positions=frames.positions[i],
                cell=frames.cell[i],
                pbc=self._atoms.pbc,
                info=info,
            )
            image.set_velocities(frames.velocities[i].astype(np.float64) / ase.units.fs)
            energy = float(frames.potential_energy[i]) + self._reference
            image.calc = SinglePointCalculator(image, energy=energy)
            images.append(image)
        return images

    def __call__(self, frames: Frames) -> None:
        """`write`, for `run_md`, which takes the file back to a checkpoint."""
        self.write(frames)

    def mark(self) -> Any:
        """Bytes in the file."""
        return self._size()

    def rewind(self, mark: Any) -> None:
        """Cut off what was written since `mark`.

        Raises:
            CheckpointError: the file is shorter than it was.
        """
        self._cut(mark)

    def _size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def _cut(self, n_bytes: int) -> None:
        size = self._size()
        if size < n_bytes:
            raise self._too_short(f"{size} bytes", n_bytes)
        if size > n_bytes:
            os.truncate(self.path, n_bytes)

    def _too_short(self, holds: str, marked: int) -> CheckpointError:
        return CheckpointError(
            f"{self.path} holds {holds}, but {marked} at the checkpoint: it was changed or moved; "
            "restore it, or start anew in another folder"
        )

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
