"""Integrators of jax-md in our units: fs, eV, Å, and masses in eV fs²/Å²."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase.data import atomic_masses, atomic_numbers

from distill.potential import Potential
from distill.simulation.config import MDConfig
from distill.units import AMU_TO_EV_FS2_PER_ANG2, BOLTZMANN


def mass_of(numbers: np.ndarray) -> np.ndarray:
    """Masses `[n, 1]` in eV fs²/Å² for atomic numbers `[n]`."""
    if np.any(np.asarray(numbers) < 1) or np.any(
        np.asarray(numbers) > max(atomic_numbers.values())
    ):
        raise ValueError("atomic numbers must be those of real elements")
    return atomic_masses[numbers][:, None] * AMU_TO_EV_FS2_PER_ANG2


def make_integrator(
    potential: Potential, config: MDConfig
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`(init, step)` of the ensemble.

    `init(key, positions, neighbors, velocities=None)` gives jax-md's state,
    `step(state, neighbors)` the next one; velocities in Å/fs. Positions are never wrapped.
    """
    from jax_md import simulate, space

    _, shift = space.free()
    thermal_energy = config.temperature * BOLTZMANN
    if config.ensemble == "nve":
        init, step = simulate.nve(potential.forces, shift, dt=config.timestep)
    else:
        init, step = simulate.nvt_langevin(
            potential.forces,
            shift,
            dt=config.timestep,
            kT=thermal_energy,
            gamma=config.friction,
        )
    mass = jnp.asarray(mass_of(potential.numbers), potential.dtype)

    def start(key: jax.Array, positions: jax.Array, neighbors: Any, velocities: Any = None) -> Any:
        positions = jnp.asarray(positions, potential.dtype)
        momenta = None if velocities is None else jnp.asarray(velocities, positions.dtype) * mass
        arguments = {"mass": mass, "momenta": momenta, "neighbors": neighbors}
        if config.ensemble == "nve":
            return init(key, positions, thermal_energy, **arguments)
        return init(key, positions, **arguments)

    return start, step


def kinetic_energy(state: Any) -> jax.Array:
    """Kinetic energy in eV of a jax-md state with masses `[n, 1]`."""
    return 0.5 * (state.momentum**2 / state.mass).sum()
