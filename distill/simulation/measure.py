"""What is measured of a state when a frame is recorded; pure functions."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from distill.potential import Potential
from distill.simulation.thermostats import without_net_momentum


def knows_pressure(potential: Potential) -> bool:
    """Whether there is a virial and a volume, so that a pressure is defined."""
    return potential.evaluate is not None and bool(potential.pbc.all())


def internal_pressure(
    momentum: jax.Array, mass: jax.Array, virial: jax.Array, volume: jax.Array
) -> jax.Array:
    """Instantaneous pressure `[]` in eV/Å³ of the motion relative to the centre of mass.

    Args:
        momentum: `[n, 3]`.
        mass: `[n, 1]`.
        virial: `[3, 3]`, eV, dE/dstrain.
        volume: `[]`, Å³.
    """
    inner = without_net_momentum(momentum, mass)
    return ((inner**2 / mass).sum() - jnp.trace(virial)) / (3 * volume)


def measure(
    potential: Potential, state: Any, neighbors: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Potential energy `[]` in eV, expected force errors `[n]` in eV/Å, pressure `[]` in eV/Å³.

    No atoms (`[0]`) without uncertainty; NaN for a pressure that is not defined.
    """
    nothing = jnp.zeros(0, potential.dtype)
    if knows_pressure(potential):
        assert potential.evaluate is not None
        cell = jnp.asarray(potential.cell, potential.dtype)
        found = potential.evaluate(state.position, neighbors, cell)
        volume = jnp.abs(jnp.linalg.det(cell))
        pressure = internal_pressure(state.momentum, state.mass, found.virial[0], volume)
        return found.energy[0], found.beside[0] if found.beside else nothing, pressure
    undefined = jnp.full((), jnp.nan, potential.dtype)
    if potential.with_uncertainty is None:
        energy, _ = potential.energy_and_forces(state.position, neighbors)
        return energy, nothing, undefined
    energy, _, uncertainty = potential.with_uncertainty(state.position, neighbors)
    return energy, uncertainty, undefined
