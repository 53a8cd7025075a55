"""Temperatures for replica exchange, from the fluctuation of the energy.

Kofke, J. Chem. Phys. 117, 6911 (2002).
"""

from __future__ import annotations

import numpy as np
from scipy.special import betainc

from distill.units import BOLTZMANN

MOST_REPLICAS = 1000
"""A longer ladder is refused."""


def expected_acceptance(cold: float, hot: float, heat_capacity: float) -> float:
    """Mean acceptance of exchanges between two temperatures in K.

    Exact where the heat capacity of the potential energy, in units of Boltzmann's constant, is the
    same at all temperatures, as of a harmonic system: half the number of its degrees of freedom.
    """
    return float(2 * betainc(heat_capacity, heat_capacity, 1 / (1 + hot / cold)))


def propose_ladder(
    lowest: float,
    highest: float,
    potential_energy: np.ndarray,
    temperature: float,
    acceptance: float = 0.3,
) -> list[float]:
    """The fewest temperatures in geometric steps whose neighbours exchange often enough.

    The heat capacity comes from the fluctuation of the energy and is taken to be the same at all
    temperatures; the run itself tells what it was.

    Args:
        lowest: K.
        highest: K.
        potential_energy: frames of an equilibrated run at `temperature`, eV.
        temperature: K.
        acceptance: wanted, between 0 and 1.

    Raises:
        ValueError: the arguments make no sense, or more than `MOST_REPLICAS` would be needed.
    """
    if not 0 < lowest < highest < np.inf:
        raise ValueError(
            f"lowest and highest must be above zero and rising, got {lowest} and {highest}"
        )
    if not 0 < acceptance < 1:
        raise ValueError(f"acceptance must lie between 0 and 1, got {acceptance}")
    if not temperature > 0:
        raise ValueError(f"temperature must be larger than zero, got {temperature}")
    energies = np.asarray(potential_energy, np.float64)
    heat_capacity = (
        energies.var(ddof=1) / (BOLTZMANN * temperature) ** 2 if energies.size > 1 else 0
    )
    if not 0 < heat_capacity < np.inf:
        raise ValueError("potential_energy must hold at least two different and finite energies")
    for n_replicas in range(2, MOST_REPLICAS + 1):
        ladder = np.geomspace(lowest, highest, n_replicas)
        if expected_acceptance(ladder[0], ladder[1], heat_capacity) >= acceptance:
            return [float(value) for value in ladder]
    raise ValueError(
        f"an acceptance of {acceptance} needs more than {MOST_REPLICAS} temperatures from {lowest} "
        f"to {highest} K at a heat capacity of {heat_capacity:.3g} k: ask for less"
    )
