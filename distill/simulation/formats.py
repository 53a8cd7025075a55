"""Trajectory formats by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ase import Atoms

from distill.errors import ConfigError
from distill.simulation.ase_trajectory import AseTrajectoryWriter
from distill.simulation.h5md import H5MDWriter
from distill.simulation.trajectory import TrajectoryWriter

FORMATS: dict[str, type[TrajectoryWriter]] = {
    "extxyz": TrajectoryWriter,
    "h5md": H5MDWriter,
    "traj": AseTrajectoryWriter,
}
"""Writers; the names are also the suffixes of the files."""


def open_trajectory(
    path: str | Path, atoms: Atoms, format: str, *, timestep: float = 1.0, **options: Any
) -> TrajectoryWriter:
    """A writer, see `TrajectoryWriter`, for `run_md`.

    Args:
        path: file.
        atoms: elements and periodicity.
        format: one of `FORMATS`.
        timestep: fs, for formats that count steps.
        options: `reference_energy`, `append` and `replica`.

    Raises:
        ConfigError: no such format.
        FileExistsError: the file exists and is not to be appended to.
    """
    if format not in FORMATS:
        raise ConfigError(f"format must be one of {', '.join(FORMATS)}, not {format!r}")
    if format == "h5md":
        options["timestep"] = timestep
    return FORMATS[format](path, atoms, **options)
