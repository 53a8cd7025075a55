"""Means of what each frame has one number of."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms

from distill.observables.blocks import Blocks, Estimate, block_average
from distill.observables.molecules import Molecules
from distill.simulation.frames import Frames

AMU_PER_ANG3_TO_G_PER_CM3 = 1.66053906892
"""g/cm³ in one amu/Å³ (CODATA 2022)."""

MOST_BLOCKS = 1024
"""Blocks that are kept of a series, whose error is estimated from blocks of these."""


class ScalarMeans:
    """Temperature, energy, and where they are defined density, pressure and radii of gyration."""

    def __init__(self, atoms: Atoms, gyration: bool) -> None:
        self._molecules = Molecules(atoms) if gyration else None
        self._periodic, self._mass = bool(atoms.pbc.all()), float(atoms.get_masses().sum())
        self._blocks = Blocks(MOST_BLOCKS)
        self._names: list[str] = []

    def add(self, frames: Frames) -> None:
        """The next frames, with an axis for replicas."""
        series = self.series(frames)
        self._names = list(series)
        for sample in np.stack(list(series.values()), axis=-1):
            self._blocks.add(sample)

    def series(self, frames: Frames) -> dict[str, np.ndarray]:
        """`[T, R]` of each quantity; NaN where it is not known."""
        found = {
            "temperature_k": frames.temperature,
            "potential_energy_ev": frames.potential_energy,
            "total_energy_ev": frames.total_energy,
        }
        if self._periodic:
            volume = np.abs(np.linalg.det(frames.cell))
            found["density_g_per_cm3"] = self._mass / volume * AMU_PER_ANG3_TO_G_PER_CM3
            found["pressure_gpa"] = frames.pressure
        if self._molecules is not None:
            radii = self._molecules.radius_of_gyration(frames.positions, frames.cell)
            for k, formula in enumerate(self._molecules.formulas):
                found[f"gyration_{formula}_ang"] = radii[..., k]
        return {name: np.asarray(values, np.float64) for name, values in found.items()}

    def estimates(self, replicas: slice) -> dict[str, Estimate]:
        """By name; lengths of blocks are in frames."""
        means = self._blocks.means
        if means is None:
            return {}
        found = {}
        for k, name in enumerate(self._names):
            estimate = block_average(means[:, replicas, k].T)
            if np.isfinite(estimate.value):
                found[name] = estimate
        return found

    def mark(self) -> Any:
        """See `distill.simulation.Follower`."""
        return {"names": self._names, "blocks": self._blocks.mark()}

    def rewind(self, mark: Any) -> None:
        """See `distill.simulation.Follower`."""
        self._names = list(mark["names"])
        self._blocks.rewind(mark["blocks"])
