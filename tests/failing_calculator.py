"""A calculator for tests of failures: `atoms.info["fate"]` says what happens to a structure."""

from __future__ import annotations

import os
import time
from typing import Any, ClassVar

import numpy as np
from ase.calculators.calculator import Calculator, all_changes


class Springs(Calculator):
    """Harmonic springs of strength `k` to the origin; E = k/2 Σ r²."""

    implemented_properties: ClassVar[list[str]] = ["energy", "forces"]

    def __init__(self, k: float = 1.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.k = k

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        fate = atoms.info.get("fate")
        if fate == "raise":
            raise RuntimeError("did not converge")
        if fate == "die":
            os._exit(3)
        if fate == "sleep":
            time.sleep(60)
        forces = -self.k * atoms.positions
        if fate == "nan":
            forces = forces * np.nan
        self.results = {"energy": 0.5 * self.k * (atoms.positions**2).sum(), "forces": forces}
