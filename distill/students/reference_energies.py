"""Per-element reference energies, fitted once in float64 and added on the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distill.neighbors import species_index


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
