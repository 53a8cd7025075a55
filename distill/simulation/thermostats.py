"""Stochastic thermostats as pure steps on arrays, with the heat that they give.

Units of `ensembles`: fs, eV, Å, masses in eV fs²/Å².
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ThermostatState:
    """Atoms with a stochastic bath.

    Attributes:
        position: `[n, 3]`, Å.
        momentum: `[n, 3]`.
        force: `[n, 3]`, eV/Å, at `position`.
        mass: `[n, 1]`.
        rng: key of the noise to come.
        heat: `[]`, eV, given by the bath since the start.
        heat_rest: `[]`, eV, what rounding left out of `heat` (Kahan's sum: millions of small
            numbers are added).
    """

    position: jax.Array
    momentum: jax.Array
    force: jax.Array
    mass: jax.Array
    rng: jax.Array
    heat: jax.Array
    heat_rest: jax.Array


def langevin_step(
    forces: Callable[..., jax.Array], timestep: float, thermal_energy: float, friction: float
) -> Callable[..., ThermostatState]:
    """`step(state, neighbors)` of BAOAB: kick, drift, bath, drift, kick."""

    def step(state: ThermostatState, neighbors: Any) -> ThermostatState:
        half = 0.5 * timestep
        key, own = jax.random.split(state.rng)
        kicked = state.momentum + half * state.force
        position = state.position + half * kicked / state.mass
        kept = jnp.exp(jnp.asarray(-friction * timestep, kicked.dtype))
        width = jnp.sqrt(thermal_energy * (1 - kept**2) * state.mass)
        momentum = kept * kicked + width * jax.random.normal(own, kicked.shape, kicked.dtype)
        gain = 0.5 * ((momentum - kicked) * (momentum + kicked) / state.mass).sum()
        position = position + half * momentum / state.mass
        force = forces(position, neighbors=neighbors)
        moved = replace(state, position=position, force=force, rng=key)
        return heated(replace(moved, momentum=momentum + half * force), gain)

    return step


def csvr_step(
    forces: Callable[..., jax.Array],
    timestep: float,
    thermal_energy: float,
    relaxation: float,
    freedom: int,
) -> Callable[..., ThermostatState]:
    """`step(state, neighbors)`: velocity Verlet, then one factor for all momenta."""

    def step(state: ThermostatState, neighbors: Any) -> ThermostatState:
        half = 0.5 * timestep
        kicked = state.momentum + half * state.force
        position = state.position + timestep * kicked / state.mass
        force = forces(position, neighbors=neighbors)
        momentum = without_net_momentum(kicked + half * force, state.mass)
        kinetic = 0.5 * (momentum**2 / state.mass).sum()
        key, own = jax.random.split(state.rng)
        factor = csvr_factor(own, kinetic, thermal_energy, timestep / relaxation, freedom)
        moved = replace(state, position=position, force=force, rng=key)
        gain = (factor - 1) * (factor + 1) * kinetic
        return heated(replace(moved, momentum=momentum * factor), gain)

    return step


def csvr_factor(
    key: jax.Array,
    kinetic: jax.Array,
    thermal_energy: float | jax.Array,
    ratio: float,
    freedom: int,
) -> jax.Array:
    """Factor of the momenta, eq. A7 of Bussi, Donadio and Parrinello, with the sign of eq. A8.

    Args:
        key: of the noise.
        kinetic: `[]`, eV.
        thermal_energy: kT in eV.
        ratio: timestep over relaxation time.
        freedom: degrees of freedom of `kinetic`.
    """
    dtype = kinetic.dtype
    first_key, rest_key = jax.random.split(key)
    first = jax.random.normal(first_key, (), dtype)
    # A sum of squares of f - 1 normal numbers is twice a gamma number of shape (f - 1) / 2.
    others = 2 * jax.random.gamma(rest_key, 0.5 * (freedom - 1), (), dtype) if freedom > 1 else 0.0
    kept = jnp.exp(jnp.asarray(-ratio, dtype))
    # Atoms at rest cannot be scaled to a temperature: they stay as they are.
    share = 0.5 * thermal_energy / jnp.where(kinetic > 0, kinetic, 1)
    given = -jnp.expm1(jnp.asarray(-ratio, dtype)) * share
    square = kept + given * (first**2 + others) + 2 * first * jnp.sqrt(kept * given)
    sign = jnp.where(first + jnp.sqrt(kept / given) < 0, -1, 1)
    factor = sign * jnp.sqrt(jnp.maximum(square, 0))
    return jnp.where(kinetic > 0, factor, 1).astype(dtype)


def without_net_momentum(momentum: jax.Array, mass: jax.Array) -> jax.Array:
    """`momentum` `[n, 3]` relative to the centre of mass; as it is for a single atom."""
    if len(momentum) == 1:
        return momentum
    return momentum - mass * (momentum.sum(0) / mass.sum())


def heated(state: Any, gain: jax.Array) -> Any:
    """`state` with `gain` `[]` eV added to its `heat`."""
    added = gain - state.heat_rest
    heat = state.heat + added
    return replace(state, heat=heat, heat_rest=(heat - state.heat) - added)
