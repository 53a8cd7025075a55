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
from distill.simulation.config import BAROSTATS, MDConfig
from distill.simulation.thermostats import (
    ThermostatState,
    csvr_step,
    langevin_step,
    without_net_momentum,
)
from distill.units import AMU_TO_EV_FS2_PER_ANG2, BOLTZMANN, GPA


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

    `init(key, positions, neighbors, velocities=None)` gives a state with `position`, `momentum`,
    `force` and `mass`, `step(state, neighbors)` the next one; velocities in Å/fs, drawn from
    Maxwell-Boltzmann without net momentum if there are none. Positions are never wrapped. In NPT
    `init` takes the `cell` `[3, 3]` at the start besides, by default that of the potential, whose
    lists then leave no room for a smaller one (see `distill.simulation.strain`).

    Raises:
        UnsupportedStructureError: NPT is not defined for the potential.
    """
    thermal_energy = config.temperature * BOLTZMANN
    mass = jnp.asarray(mass_of(potential.numbers), potential.dtype)
    freedom = degrees_of_freedom(len(potential.numbers))
    if config.ensemble == "nvt_langevin":
        step: Any = langevin_step(
            potential.forces, config.timestep, thermal_energy, config.friction
        )
    elif config.ensemble == "nvt_csvr":
        step = csvr_step(
            potential.forces, config.timestep, thermal_energy, config.thermostat_time, freedom
        )
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
        init, step = _of_jax_md(potential, config, mass, freedom)

    def start(
        key: jax.Array,
        positions: jax.Array,
        neighbors: Any,
        velocities: Any = None,
        cell: Any = None,
    ) -> Any:
        positions = jnp.asarray(positions, potential.dtype)
        key, own = jax.random.split(key)
        if velocities is None:
            draw = jax.random.normal(own, positions.shape, positions.dtype)
            momenta = without_net_momentum(jnp.sqrt(mass * thermal_energy) * draw, mass)
        else:
            momenta = jnp.asarray(velocities, positions.dtype) * mass
        if config.ensemble in ("nvt_nose_hoover", "nvt_csvr", *BAROSTATS):
            momenta = without_net_momentum(momenta, mass)
        if config.ensemble in ("nve", "nvt_nose_hoover"):
            return init(key, positions, momenta, neighbors)
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
                thermal_energy=zero + thermal_energy,
                pressure=zero + config.pressure * GPA,
            )
        force = potential.forces(positions, neighbors=neighbors)
        return ThermostatState(positions, momenta, force, mass, key, zero, zero)

    return start, step


def _of_jax_md(
    potential: Potential, config: MDConfig, mass: jax.Array, freedom: int
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    from jax_md import simulate, space

    _, shift = space.free()
    thermal_energy = config.temperature * BOLTZMANN
    if config.ensemble == "nve":
        init, step = simulate.nve(potential.forces, shift, dt=config.timestep)

        def start_nve(key: Any, positions: Any, momenta: Any, neighbors: Any) -> Any:
            return init(
                key, positions, thermal_energy, mass=mass, momenta=momenta, neighbors=neighbors
            )

        return start_nve, step

    init, chain_step = simulate.nvt_nose_hoover(
        potential.forces,
        shift,
        dt=config.timestep,
        kT=thermal_energy,
        chain_length=config.chain_length,
        # jax-md's masses kT tau² belong to a period of 2 pi tau.
        tau=config.thermostat_time / (2 * np.pi),
    )

    def start_chain(key: Any, positions: Any, momenta: Any, neighbors: Any) -> Any:
        state = init(key, positions, mass=mass, momenta=momenta, neighbors=neighbors)
        # jax-md counts 3n; the masses follow from the count in the first step.
        return state.set(chain=state.chain.set(degrees_of_freedom=freedom))

    def step_chain(state: Any, neighbors: Any) -> Any:
        state = chain_step(state, neighbors=neighbors)
        # What rounding gives to the centre of mass a global thermostat would never take back.
        return state.set(momentum=without_net_momentum(state.momentum, mass))

    return start_chain, step_chain


def kinetic_energy(state: Any) -> jax.Array:
    """Kinetic energy in eV of a state with masses `[n, 1]`."""
    return 0.5 * (state.momentum**2 / state.mass).sum()


def bath_energy(state: Any, config: MDConfig) -> jax.Array:
    """`[]`, eV: what added to the total energy gives the conserved quantity.

    Energy of the Nosé-Hoover chain; less the heat given by a stochastic bath, and pressure times
    volume in NPT; 0 in NVE.
    """
    if config.ensemble == "nvt_nose_hoover":
        chain, thermal_energy = state.chain, config.temperature * BOLTZMANN
        freedom = jnp.ones_like(chain.position).at[0].set(chain.degrees_of_freedom)
        moving = 0.5 * (chain.momentum**2 / chain.mass).sum()
        return moving + thermal_energy * (freedom * chain.position).sum()
    if config.ensemble == "nve":
        return jnp.zeros((), state.momentum.dtype)
    if config.ensemble in BAROSTATS:
        return state.pressure * state.volume - state.heat
    return -state.heat
