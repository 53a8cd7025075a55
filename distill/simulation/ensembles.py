"""Ensembles in our units: fs, eV, Å, and masses in eV fs²/Å².

NVE and Nosé-Hoover chains are those of jax-md, with our count of the degrees of freedom. Velocities
and the stochastic thermostats are our own: jax-md draws momenta and takes their mean off, which
heats the light atoms of small molecules, and its CSVR uses one random key twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase.data import atomic_masses, atomic_numbers

from distill.potential import Potential
from distill.simulation.barostat import BarostatState, require_barostat, scr_step
from distill.simulation.bath import Bath, bath_of
from distill.simulation.config import BAROSTATS, MDConfig
from distill.simulation.nose_hoover import ChainState, chain_energy, nose_hoover
from distill.simulation.thermostats import (
    ThermostatState,
    csvr_step,
    langevin_step,
    without_net_momentum,
)
from distill.units import AMU_TO_EV_FS2_PER_ANG2, GPA


def mass_of(numbers: np.ndarray) -> np.ndarray:
    """Masses `[n, 1]` in eV fs²/Å² for atomic numbers `[n]`."""
    if np.any(np.asarray(numbers) < 1) or np.any(
        np.asarray(numbers) > max(atomic_numbers.values())
    ):
        raise ValueError("atomic numbers must be those of real elements")
    return atomic_masses[numbers][:, None] * AMU_TO_EV_FS2_PER_ANG2


def degrees_of_freedom(n_atoms: int) -> int:
    """3n - 3, of the motion relative to the centre of mass; 3 for a single atom."""
    return 3 * n_atoms - 3 if n_atoms > 1 else 3


def make_integrator(
    potential: Potential, config: MDConfig
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`(init, step)` of the ensemble.

    `init(key, positions, neighbors, velocities=None, bath=None, cell=None)` gives a state with
    `position`, `momentum`, `force` and `mass`, `step(state, neighbors)` the next one; velocities in
    Å/fs, drawn from Maxwell-Boltzmann without net momentum if there are none. The `Bath` is by
    default that of `config`; all but NVE keep its `thermal_energy` in the state. Positions
    are never wrapped. In NPT `init` takes the `cell` `[3, 3]` at the start besides, by default that
    of the potential, whose lists then leave no room for a smaller one (see
    `distill.simulation.strain`).

    Raises:
        UnsupportedStructureError: NPT is not defined for the potential.
    """
    mass = jnp.asarray(mass_of(potential.numbers), potential.dtype)
    freedom = degrees_of_freedom(len(potential.numbers))
    init: Any = None
    if config.ensemble == "nvt_langevin":
        step: Any = langevin_step(potential.forces, config.timestep, config.friction)
    elif config.ensemble == "nvt_csvr":
        step = csvr_step(potential.forces, config.timestep, config.thermostat_time, freedom)
    elif config.ensemble == "nvt_nose_hoover":
        init, step = nose_hoover(potential, config, mass, freedom)
    elif config.ensemble in BAROSTATS:
        require_barostat(potential)
        step = scr_step(
            potential,
            config.timestep,
            config.thermostat_time,
            config.barostat_time,
            config.compressibility / GPA,
            freedom,
        )
    else:
        init, step = _nve(potential, config, mass)

    def start(
        key: jax.Array,
        positions: jax.Array,
        neighbors: Any,
        velocities: Any = None,
        bath: Bath | None = None,
        cell: Any = None,
    ) -> Any:
        positions = jnp.asarray(positions, potential.dtype)
        bath = bath_of(config, None) if bath is None else bath
        thermal_energy = jnp.asarray(bath.thermal_energy, positions.dtype)
        key, own = jax.random.split(key)
        if velocities is None:
            draw = jax.random.normal(own, positions.shape, positions.dtype)
            momenta = without_net_momentum(jnp.sqrt(mass * thermal_energy) * draw, mass)
        else:
            momenta = jnp.asarray(velocities, positions.dtype) * mass
        if config.ensemble in ("nvt_nose_hoover", "nvt_csvr", *BAROSTATS):
            momenta = without_net_momentum(momenta, mass)
        if init is not None:
            return init(key, positions, momenta, neighbors, thermal_energy)
        zero = jnp.zeros((), positions.dtype)
        if config.ensemble in BAROSTATS:
            assert potential.evaluate is not None
            shape = jnp.asarray(potential.cell if cell is None else cell, positions.dtype)
            found = potential.evaluate(positions, neighbors, shape)
            return BarostatState(
                positions,
                momenta,
                found.forces,
                mass,
                key,
                heat=zero,
                heat_rest=zero,
                shape=shape,
                stretch=zero + 1,
                virial=found.virial[0],
                thermal_energy=thermal_energy,
                pressure=jnp.asarray(bath.pressure, positions.dtype),
            )
        force = potential.forces(positions, neighbors=neighbors)
        return ThermostatState(positions, momenta, force, mass, key, thermal_energy, zero, zero)

    return start, step


def _nve(
    potential: Potential, config: MDConfig, mass: jax.Array
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    from jax_md import simulate, space

    shift = space.free()[1]
    init, _ = simulate.nve(potential.forces, shift, dt=config.timestep)

    def start(
        key: Any, positions: Any, momenta: Any, neighbors: Any, thermal_energy: jax.Array
    ) -> Any:
        return init(key, positions, thermal_energy, mass=mass, momenta=momenta, neighbors=neighbors)

    def step(state: Any, neighbors: Any) -> Any:
        return simulate.velocity_verlet(
            potential.forces, shift, config.timestep, state, neighbors=neighbors
        )

    return start, step


def kinetic_energy(state: Any) -> jax.Array:
    """Kinetic energy in eV of a state with masses `[n, 1]`."""
    return 0.5 * (state.momentum**2 / state.mass).sum()


def bath_energy(state: Any) -> jax.Array:
    """`[]`, eV: what added to the total energy gives the conserved quantity.

    Energy of the Nosé-Hoover chain; pressure times volume in NPT; less the heat given by a bath or
    an exchange; 0 in NVE.
    """
    if isinstance(state, ChainState):
        return chain_energy(state) - state.heat
    if isinstance(state, BarostatState):
        return state.pressure * state.volume - state.heat
    if isinstance(state, ThermostatState):
        return -state.heat
    return jnp.zeros((), state.momentum.dtype)
