"""Means of a run over all its parts, interrupted or not."""

from __future__ import annotations

from typing import Any

import numpy as np

from distill.simulation import Frames
from distill.simulation.drift import Drift


class Totals:
    """Adds up the frames of a run; a `Follower` for `run_md`."""

    def __init__(self, n_replicas: int, numbers: np.ndarray) -> None:
        self._numbers = numbers
        self._drift = Drift(n_replicas, len(numbers))
        # Count, T, T², potential energy, pressure, volume, density.
        self._sums = np.zeros(7)
        self._largest = -1.0

    def __call__(self, frames: Frames) -> None:
        """Add the next frames."""
        temperature = frames.temperature.astype(np.float64)
        energy = frames.potential_energy.astype(np.float64)
        self._sums += [
            temperature.size,
            temperature.sum(),
            (temperature**2).sum(),
            energy.sum(),
            frames.pressure.sum(),
            frames.volume.sum(),
            frames.density(self._numbers).sum(),
        ]
        self._largest = max(self._largest, float(frames.uncertainty.max(initial=-1.0)))
        self._drift.add(frames.time, frames.conserved_energy.reshape(len(frames.time), -1))

    def mark(self) -> dict[str, Any]:
        """See `distill.simulation.Follower`."""
        return {
            "sums": self._sums.tolist(),
            "largest": self._largest,
            "drift": self._drift.mark(),
        }

    def rewind(self, mark: dict[str, Any]) -> None:
        """See `distill.simulation.Follower`."""
        self._sums, self._largest = np.array(mark["sums"]), mark["largest"]
        self._drift.rewind(mark["drift"])

    def summary(self) -> dict[str, Any]:
        """Figures by name with their units; None for what is not known."""
        count, temperature, square, energy, pressure, volume, density = self._sums.tolist()
        mean = temperature / count
        slope, _ = self._drift.slopes()
        worst = slope[np.argmax(np.abs(slope))]
        return {
            "frames": int(count),
            "temperature_K": mean,
            "temperature_std_K": float(np.sqrt(max(square / count - mean**2, 0))),
            "potential_energy_ev": energy / count,
            "pressure_gpa": _known(pressure / count),
            "volume_ang3": volume / count if volume else None,
            "density_g_per_cm3": _known(density / count),
            "drift_mev_per_atom_ps": float(worst) if np.isfinite(worst) else None,
            "largest_uncertainty_ev_per_ang": self._largest if self._largest >= 0 else None,
        }


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None
