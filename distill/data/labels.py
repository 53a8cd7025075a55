"""What a teacher hands back for a batch of structures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Labels:
    """Labels of `B` structures, in eV, Å and ASE's stress sign, as float64 numpy arrays.

    Attributes:
        energy: `[B]`, eV.
        forces: one `[n_i, 3]` array per structure, eV/Å.
        stress: `[B, 3, 3]`, eV/Å³, NaN where it is undefined (no periodicity); None if unknown.
        per_atom_energy: one `[n_i]` array per structure, eV, or None.
        uncertainty: one `[n_i]` array per structure, teacher-defined, or None.
    """

    energy: np.ndarray
    forces: list[np.ndarray]
    stress: np.ndarray | None = None
    per_atom_energy: list[np.ndarray] | None = None
    uncertainty: list[np.ndarray] | None = None
