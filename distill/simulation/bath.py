"""What the surroundings impose on a run, one value for each replica."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np

from distill.simulation.config import MDConfig
from distill.units import BOLTZMANN


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bath:
    """Values that a compiled run takes as data, with a leading axis for replicas.

    Attributes:
        thermal_energy: `[(R)]`, kT in eV.
    """

    thermal_energy: jax.Array | np.ndarray


def bath_of(config: MDConfig, n_replicas: int | None) -> Bath:
    """The bath of a run of `n_replicas` side by side, None for a single one.

    Raises:
        ValueError: there are not as many `config.temperatures` as replicas.
    """
    temperatures = config.temperatures or (config.temperature,) * (n_replicas or 1)
    if len(temperatures) != (n_replicas or 1):
        raise ValueError(
            f"temperatures has {len(temperatures)} values for {n_replicas or 1} replicas: give one "
            "for each, or temperature for all of them"
        )
    thermal_energy = np.array(temperatures) * BOLTZMANN
    return Bath(thermal_energy[0] if n_replicas is None else thermal_energy)
