"""Per-element reference energies, fitted once in float64 and added on the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distill.data.dataset import Dataset
from distill.neighbors import species_index


def reference_energies(
    dataset: Dataset, indices: np.ndarray, elements: tuple[int, ...]
) -> np.ndarray:
    """Reference energies for some structures, `[n_elements]` float64 in eV.

    Means of the teacher's per-atom energies where it gives them for all, so that they can be
    learnt one by one; else those of `fit_reference_energies`.
    """
    rows = [dataset.rows(int(i)) for i in indices]
    numbers = [dataset.numbers[r] for r in rows]
    atomic = np.concatenate([dataset.per_atom_energy[r] for r in rows])
    if np.isfinite(atomic).all():
        species = species_index(np.concatenate(numbers), elements)
        counts = np.bincount(species, minlength=len(elements))
        return np.bincount(species, atomic, len(elements)) / np.maximum(counts, 1)
    return fit_reference_energies(numbers, dataset.energy[indices], elements)


def fit_reference_energies(
    numbers: Sequence[np.ndarray], energies: np.ndarray, elements: tuple[int, ...]
) -> np.ndarray:
    """Least-squares energy of each element, `[n_elements]` float64 in eV.

    What is left after subtracting them fits float32. Where the compositions do not determine all
    of them (a single molecule, say) the smallest solution is taken: it reproduces the mean energy
    all the same.

    Args:
        numbers: atomic numbers of each structure.
        energies: `[n_structures]`, eV.
        elements: the model's element table.
    """
    counts = np.stack(
        [np.bincount(species_index(n, elements), minlength=len(elements)) for n in numbers]
    ).astype(np.float64)
    solution, *_ = np.linalg.lstsq(counts, np.asarray(energies, np.float64), rcond=None)
    return solution
