"""The structure from which a simulation starts."""

from __future__ import annotations

from pathlib import Path

import ase.io
from ase import Atoms
from ase.build import molecule
from ase.collections import g2

from distill.data import load
from distill.errors import DatasetError


def read_start(name: str) -> Atoms:
    """The last frame of a file or dataset (`.h5`), or a molecule that ASE knows.

    Raises:
        DatasetError: it is no structure.
    """
    path = Path(name)
    if path.is_file() and path.suffix == ".h5":
        dataset = load(path)
        atoms = dataset.structure(len(dataset) - 1) if len(dataset) else Atoms()
    elif path.is_file():
        try:
            atoms = ase.io.read(name, index=-1)
        except Exception as error:  # every reader of ASE has its own errors
            raise DatasetError(f"{name} cannot be read by ASE: {error}") from error
    elif name in g2.names:
        atoms = molecule(name)
    else:
        raise DatasetError(f"{name} is neither a file nor a molecule that ASE knows")
    if not len(atoms):
        raise DatasetError(f"{name} holds no atoms")
    return atoms
