"""What the surroundings impose on a run, one value for each replica."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np

from distill.simulation.config import MDConfig
from distill.units import BOLTZMANN, GPA


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bath:
    """Values that a compiled run takes as data, with a leading axis for replicas.

    Attributes:
        thermal_energy: `[(R)]`, kT in eV.
        pressure: `[(R)]`, eV/Å³; of no meaning where the cell is fixed.
    """

    thermal_energy: jax.Array | np.ndarray
    pressure: jax.Array | np.ndarray


def bath_of(config: MDConfig, n_replicas: int | None) -> Bath:
    """The bath of a run of `n_replicas` side by side, None for a single one.

    Raises:
        ValueError: there are not as many `config.temperatures` or `config.pressures` as replicas.
    """
    temperatures = _one_each("temperature", config.temperatures, config.temperature, n_replicas)
    pressures = _one_each("pressure", config.pressures, config.pressure, n_replicas)
    bath = Bath(temperatures * BOLTZMANN, pressures * GPA)
    return bath if n_replicas is not None else jax.tree.map(lambda values: values[0], bath)


def _one_each(
    name: str, several: tuple[float, ...], one: float, n_replicas: int | None
) -> np.ndarray:
    values = several or (one,) * (n_replicas or 1)
    if len(values) != (n_replicas or 1):
        raise ValueError(
            f"{name}s has {len(values)} values for {n_replicas or 1} replicas: give one for each, "
            f"or {name} for all of them"
        )
    return np.array(values)
