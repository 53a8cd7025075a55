"""Energies of many structures by anything that labels them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from ase import Atoms

from distill.data import Labels
from distill.errors import TeacherError
from distill.progress import progress_bar


def energies_of(
    label: Callable[[Sequence[Atoms]], Labels],
    structures: Sequence[Atoms],
    batch_size: int = 32,
    *,
    progress: bool = False,
    description: str = "energies",
) -> np.ndarray:
    """`[S]`, eV.

    Args:
        label: labels a batch, as `Teacher.label` and `Student.label` do.
        structures: of any sizes.
        batch_size: structures per call.
        progress: show a bar.
        description: of the bar.

    Raises:
        TeacherError: an energy is NaN or infinite.
    """
    parts = [np.zeros(0)]
    with progress_bar(len(structures), description, unit="structure", disable=not progress) as bar:
        for first in range(0, len(structures), batch_size):
            parts.append(np.asarray(label(structures[first : first + batch_size]).energy))
            bar.update(len(parts[-1]))
    found = np.concatenate(parts)
    bad = np.flatnonzero(~np.isfinite(found))
    if len(bad):
        raise TeacherError(
            f"the energy of structure {bad[0]} is NaN or infinite, and of {len(bad) - 1} others"
        )
    return found
