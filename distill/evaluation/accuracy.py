"""Errors of a student against its teacher's labels on held-out structures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from distill.data import Dataset, Labels
from distill.errors import DatasetError


@dataclass(frozen=True)
class Accuracy:
    """Predictions beside labels, and the usual error measures.

    Attributes:
        force_labels: `[n, 3]`, eV/Å, all atoms of all structures.
        force_predictions: `[n, 3]`, eV/Å.
        energy_labels: `[S]`, eV/atom.
        energy_predictions: `[S]`, eV/atom.
        numbers: `[n]`, atomic number of each row of the forces.
        expected_errors: `[n]`, eV/Å, the predictor's own uncertainty; None if it has none.
    """

    force_labels: np.ndarray
    force_predictions: np.ndarray
    energy_labels: np.ndarray
    energy_predictions: np.ndarray
    numbers: np.ndarray
    expected_errors: np.ndarray | None = None

    @property
    def force_errors(self) -> np.ndarray:
        """`[n, 3]`, eV/Å."""
        return self.force_predictions - self.force_labels

    @property
    def force_r2(self) -> float:
        """Coefficient of determination over force components."""
        residual = (self.force_errors**2).sum()
        total = ((self.force_labels - self.force_labels.mean()) ** 2).sum()
        return float(1.0 - residual / total)

    def summary(self) -> dict[str, Any]:
        """Measures under the names that certificates use; meV, Å."""
        errors = 1e3 * self.force_errors
        by_element = {
            chemical_symbols[z]: float(np.abs(errors[self.numbers == z]).mean())
            for z in np.unique(self.numbers)
        }
        return {
            "force_mae_mev_per_ang": float(np.abs(errors).mean()),
            "force_rmse_mev_per_ang": float(np.sqrt((errors**2).mean())),
            "force_r2": self.force_r2,
            "energy_mae_mev_per_atom": float(
                1e3 * np.abs(self.energy_predictions - self.energy_labels).mean()
            ),
            "force_label_std_mev_per_ang": float(1e3 * self.force_labels.std()),
            "force_mae_by_element_mev_per_ang": by_element,
            "structures": len(self.energy_labels),
        }


def measure_accuracy(
    predict: Callable[[Sequence[Atoms]], Labels],
    dataset: Dataset,
    indices: np.ndarray,
    batch_size: int = 64,
) -> Accuracy:
    """Compare `predict` (e.g. `Student.label`) with the labels of some structures.

    Raises:
        DatasetError: no structures, or flagged ones.
    """
    indices = np.asarray(indices)
    if len(indices) == 0:
        raise DatasetError("there are no structures to measure the accuracy on")
    if not dataset.usable[indices].all():
        raise DatasetError("flagged structures cannot be used to measure accuracy: leave them out")
    energies, forces, expected = [], [], []
    for first in range(0, len(indices), batch_size):
        batch = [dataset.structure(int(i)) for i in indices[first : first + batch_size]]
        labels = predict(batch)
        energies.append(labels.energy)
        forces.extend(labels.forces)
        expected.extend(labels.uncertainty or [])
    sizes = dataset.n_atoms[indices]
    rows = [dataset.rows(int(i)) for i in indices]
    return Accuracy(
        force_labels=np.concatenate([dataset.forces[r] for r in rows]),
        force_predictions=np.concatenate(forces),
        energy_labels=dataset.energy[indices] / sizes,
        energy_predictions=np.concatenate(energies) / sizes,
        numbers=np.concatenate([dataset.numbers[r] for r in rows]),
        expected_errors=np.concatenate(expected) if expected else None,
    )
