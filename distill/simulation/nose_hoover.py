"""Nosé-Hoover chains of jax-md, with our count of the degrees of freedom and a bath of one's own.

Units of `ensembles`: fs, eV, Å, masses in eV fs²/Å².
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill.potential import Potential
from distill.simulation.config import MDConfig
from distill.simulation.thermostats import without_net_momentum


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ChainState:
    """Atoms with a Nosé-Hoover chain.

    Attributes:
        position: `[n, 3]`, Å.
        momentum: `[n, 3]`.
        force: `[n, 3]`, eV/Å, at `position`.
        mass: `[n, 1]`.
        chain: of jax-md.
        thermal_energy: `[]`, kT of the bath in eV.
        heat: `[]`, eV, given by exchanges of temperature; the chain knows what it gave itself.
        heat_rest: `[]`, eV, as of `ThermostatState`.
    """

    position: jax.Array
    momentum: jax.Array
    force: jax.Array
    mass: jax.Array
    chain: Any
    thermal_energy: jax.Array
    heat: jax.Array
    heat_rest: jax.Array


def nose_hoover(
    potential: Potential, config: MDConfig, mass: jax.Array, freedom: int
) -> tuple[Callable[..., ChainState], Callable[..., ChainState]]:
    """`(init, step)`: `init(key, positions, momenta, neighbors, thermal_energy)`."""
    from jax_md import simulate, space

    def forces(positions: jax.Array, neighbors: Any, **_: Any) -> jax.Array:
        return potential.forces(positions, neighbors)  # jax-md hands kT to it too

    init, chain_step = simulate.nvt_nose_hoover(
        forces,
        space.free()[1],
        dt=config.timestep,
        kT=np.nan,  # each state brings its own
        chain_length=config.chain_length,
        # jax-md's masses kT tau² belong to a period of 2 pi tau.
        tau=config.thermostat_time / (2 * np.pi),
    )

    def start(
        key: Any, positions: Any, momenta: Any, neighbors: Any, thermal_energy: jax.Array
    ) -> ChainState:
        state = init(
            key, positions, mass=mass, momenta=momenta, neighbors=neighbors, kT=thermal_energy
        )
        # jax-md counts 3n; the masses follow from the count in the first step.
        chain = state.chain.set(degrees_of_freedom=freedom)
        zero = jnp.zeros((), positions.dtype)
        return ChainState(
            state.position,
            state.momentum,
            state.force,
            state.mass,
            chain,
            thermal_energy,
            zero,
            zero,
        )

    def step(state: ChainState, neighbors: Any) -> ChainState:
        inner = simulate.NVTNoseHooverState(
            state.position, state.momentum, state.force, state.mass, state.chain
        )
        # Without its jit, so that what `forces` evaluates is known outside too.
        new = inspect.unwrap(chain_step)(inner, neighbors=neighbors, kT=state.thermal_energy)
        # What rounding gives to the centre of mass a global thermostat would never take back.
        momentum = without_net_momentum(new.momentum, mass)
        return replace(
            state, position=new.position, momentum=momentum, force=new.force, chain=new.chain
        )

    return start, step


def chain_energy(state: ChainState) -> jax.Array:
    """`[]`, eV, of the chain's motion and position."""
    chain = state.chain
    freedom = jnp.ones_like(chain.position).at[0].set(chain.degrees_of_freedom)
    moving = 0.5 * (chain.momentum**2 / chain.mass).sum()
    return moving + state.thermal_energy * (freedom * chain.position).sum()


def scaled_chain(chain: Any, ratio: jax.Array) -> Any:
    """`chain` at another temperature, `ratio` times the old one, as probable there as before.

    The masses grow with kT and the squares of the momenta with mass times kT.
    """
    return chain.set(
        momentum=chain.momentum * ratio,
        mass=chain.mass * ratio,
        kinetic_energy=chain.kinetic_energy * ratio,
    )
