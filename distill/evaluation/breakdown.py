"""Where the errors of a student are: by element, by size of the force, by trajectory."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase.data import chemical_symbols

from distill.data import Dataset
from distill.evaluation.accuracy import Accuracy
from distill.students import reliability

QUANTILES = (0.0, 0.5, 0.75, 0.9, 0.99, 1.0)
"""Ends of the bins of force lengths: most atoms feel small forces, the large ones break runs."""

SHOWN = 4000
"""Most points kept of a parity plot."""


def error_breakdown(accuracy: Accuracy, dataset: Dataset, indices: np.ndarray) -> dict[str, Any]:
    """Errors of the structures at `indices` of `dataset`, which `accuracy` was measured on.

    Returns:
        The measures of `Accuracy.summary`; `energy_rmse_mev_per_atom`, `energy_r2`; and rows
        `by_element`, `by_force` (bins of the label's length, ends in eV/Å) and `by_trajectory`,
        each with `mae` and `rmse` of the components in meV/Å and `atoms`.
    """
    errors = 1e3 * accuracy.force_errors
    lengths = np.linalg.norm(accuracy.force_labels, axis=1)
    sizes = dataset.n_atoms[indices]
    names = np.repeat(dataset.trajectory[indices], sizes)
    ends = np.quantile(lengths, QUANTILES)
    bins = np.clip(np.searchsorted(ends, lengths, side="right") - 1, 0, len(ends) - 2)
    off = 1e3 * (accuracy.energy_predictions - accuracy.energy_labels)
    spread = 1e3 * (accuracy.energy_labels - accuracy.energy_labels.mean())
    return accuracy.summary() | {
        "energy_rmse_mev_per_atom": float(np.sqrt((off**2).mean())),
        "energy_r2": float(1 - (off**2).sum() / (spread**2).sum()) if spread.any() else None,
        "by_element": [
            {"element": chemical_symbols[z], **_row(errors[accuracy.numbers == z])}
            for z in np.unique(accuracy.numbers)
        ],
        "by_force": [
            {"from": float(ends[b]), "to": float(ends[b + 1]), **_row(errors[bins == b])}
            for b in range(len(ends) - 1)
            if (bins == b).any()
        ],
        "by_trajectory": [
            {"trajectory": str(name), **_row(errors[names == name])} for name in np.unique(names)
        ],
    }


def calibration(accuracy: Accuracy) -> dict[str, list[float]] | None:
    """Expected and real lengths of the force errors in ten bins of equal population, eV/Å.

    None for a student without uncertainty.
    """
    if accuracy.expected_errors is None:
        return None
    lengths = np.linalg.norm(accuracy.force_errors, axis=1)
    bins = reliability(accuracy.expected_errors, lengths)
    return {name: values.tolist() for name, values in bins.items()}


def shown_forces(accuracy: Accuracy, seed: int = 0) -> dict[str, list[float]]:
    """Force components for a parity plot, a random choice of them: `labels`, `predictions`."""
    labels, predictions = accuracy.force_labels.ravel(), accuracy.force_predictions.ravel()
    count = min(SHOWN, len(labels))
    chosen = np.random.default_rng(seed).choice(len(labels), count, replace=False)
    return {
        "labels": np.round(labels[chosen], 5).tolist(),
        "predictions": np.round(predictions[chosen], 5).tolist(),
    }


def _row(errors: np.ndarray) -> dict[str, Any]:
    return {
        "atoms": len(errors),
        "mae": float(np.abs(errors).mean()),
        "rmse": float(np.sqrt((errors**2).mean())),
    }
