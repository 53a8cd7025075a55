"""Energies of many structures by anything that labels them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from ase import Atoms

from distill.data import Dataset, Labels, label_structures
from distill.errors import DatasetError, TeacherError
from distill.progress import progress_bar
from distill.teachers import Teacher


def energies_of(
    label: Callable[[Sequence[Atoms]], Labels],
    structures: Sequence[Atoms],
    batch_size: int = 32,
    *,
    whose: str = "energies",
    progress: bool = False,
) -> np.ndarray:
    """`[S]`, eV.

    Args:
        label: labels a batch, as `Teacher.label` and `Student.label` do.
        structures: of any sizes.
        batch_size: structures per call.
        whose: for the bar and the error.
        progress: show a bar.

    Raises:
        TeacherError: an energy is NaN or infinite.
    """
    parts = [np.zeros(0)]
    with progress_bar(len(structures), whose, unit="structure", disable=not progress) as bar:
        for first in range(0, len(structures), batch_size):
            parts.append(np.asarray(label(structures[first : first + batch_size]).energy))
            bar.update(len(parts[-1]))
    found = np.concatenate(parts)
    bad = np.flatnonzero(~np.isfinite(found))
    if len(bad):
        raise TeacherError(
            f"{whose}: the energy of structure {bad[0]} (and of {len(bad) - 1} others) is NaN or "
            "infinite: atoms may be too close together"
        )
    return found


def label_frames(
    teacher: Teacher,
    structures: Sequence[Atoms],
    trajectories: Sequence[str],
    origin: str,
    path: Path,
    batch_size: int = 16,
) -> Dataset:
    """Frames of runs with the teacher's labels, kept in `path`: goes on where it was interrupted.

    Raises:
        DatasetError: the teacher gave no energy for some of them; or see `label_structures`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = Dataset.from_structures(structures, trajectories, origin)
    labelled = label_structures(teacher, frames, path, batch_size=batch_size)
    failed = np.flatnonzero(~np.isfinite(labelled.energy))
    if len(failed):
        raise DatasetError(
            f"the teacher gives no energy for {len(failed)} of the frames (the first is number "
            f"{failed[0]} of {path}): without them the average is another"
        )
    return labelled
