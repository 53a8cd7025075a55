"""Isotropic NPT: stochastic cell rescaling with velocity rescaling as the thermostat.

Bernetti and Bussi, J. Chem. Phys. 153, 114107 (2020), with the root of the volume as the variable,
whose noise is additive. The cell keeps its shape: only its size moves. Units of `ensembles`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from distill.errors import UnsupportedStructureError
from distill.potential import Potential
from distill.simulation.thermostats import csvr_factor, heated, without_net_momentum


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BarostatState:
    """Atoms in a cell that breathes, with a bath of their own.

    Attributes:
        position: `[n, 3]`, Å; scaled about the origin together with the cell.
        momentum: `[n, 3]`, scaled by the inverse.
        force: `[n, 3]`, eV/Å, at `position`.
        mass: `[n, 1]`.
        rng: key of the noise to come.
        heat: `[]`, eV, given by thermostat and barostat since the start.
        heat_rest: `[]`, eV, see `ThermostatState`.
        shape: `[3, 3]`, Å, the cell at the start.
        stretch: `[]`, length of the cell in units of `shape`.
        virial: `[3, 3]`, eV, dE/dstrain at `position`.
        thermal_energy: `[]`, eV, kT of the bath.
        pressure: `[]`, eV/Å³, of the bath.
    """

    position: jax.Array
    momentum: jax.Array
    force: jax.Array
    mass: jax.Array
    rng: jax.Array
    heat: jax.Array
    heat_rest: jax.Array
    shape: jax.Array
    stretch: jax.Array
    virial: jax.Array
    thermal_energy: jax.Array
    pressure: jax.Array

    @property
    def cell(self) -> jax.Array:
        """`[(R,) 3, 3]`, Å, rows are lattice vectors."""
        return self.stretch[..., None, None] * self.shape

    @property
    def volume(self) -> jax.Array:
        """`[(R)]`, Å³."""
        return self.stretch**3 * jnp.abs(jnp.linalg.det(self.shape))


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


def require_barostat(potential: Potential) -> None:
    """Raises UnsupportedStructureError where a pressure or a cell that moves is not defined."""
    if not potential.pbc.all():
        raise UnsupportedStructureError(
            "ensemble npt_scr needs a cell that is periodic in all three directions, not "
            f"pbc={potential.pbc.tolist()}; use an ensemble of fixed volume"
        )
    if potential.evaluate is None or potential.with_cell is None:
        raise UnsupportedStructureError(
            "ensemble npt_scr needs a potential that gives a virial in any cell: students and "
            "teachers with stress do, this potential does not; use one of those or an ensemble "
            "of fixed volume"
        )


def scr_step(
    potential: Potential,
    timestep: float,
    thermostat_time: float,
    barostat_time: float,
    compressibility: float,
    freedom: int,
) -> Callable[..., BarostatState]:
    """`step(state, neighbors)`: velocity Verlet, rescaled in its middle, then the thermostat.

    With l the root of the volume, `A = E + P V` and `D = kT compressibility / (4 barostat_time)`,
    l diffuses in `A - kT ln l`: `dl = -(D / kT) (dA/dl - kT / l) dt + sqrt(2 D) dW`, where dA/dl
    is taken along the scaling of positions and momenta. The step and its reverse define the heat
    by the ratio of their probabilities, so that `A` less the heat is conserved but for the error
    of the timestep.

    Args:
        potential: with `evaluate`.
        timestep: fs.
        thermostat_time: fs.
        barostat_time: fs.
        compressibility: Å³/eV.
        freedom: degrees of freedom of the atoms.
    """
    assert potential.evaluate is not None
    evaluate = potential.evaluate
    mobility = timestep * compressibility / (4 * barostat_time)  # D dt / kT

    def slope(state: BarostatState) -> jax.Array:
        """Derivative of `A - kT ln l` by l."""
        root = jnp.sqrt(state.volume)
        inner = internal_pressure(state.momentum, state.mass, state.virial, state.volume)
        return 2 * root * (state.pressure - inner) - state.thermal_energy / root

    def step(state: BarostatState, neighbors: Any) -> BarostatState:
        half, mass = 0.5 * timestep, state.mass
        key, own, bath = jax.random.split(state.rng, 3)
        before = slope(state)
        noise = jax.random.normal(own, (), state.position.dtype)
        change = jnp.sqrt(2 * mobility * state.thermal_energy) * noise - mobility * before
        root = jnp.sqrt(state.volume)
        stretch = state.stretch * jnp.cbrt(jnp.maximum((root + change) / root, 0) ** 2)
        # As rounded, so that positions go with the cell.
        factor = stretch / state.stretch
        kicked = state.momentum + half * state.force
        position = (state.position + half * kicked / mass) * factor
        kicked = kicked / factor
        position = position + half * kicked / mass
        found = evaluate(position, neighbors, stretch * state.shape)
        moved = replace(
            state,
            position=position,
            momentum=without_net_momentum(kicked + half * found.forces, mass),
            force=found.forces,
            virial=found.virial[0],
            stretch=stretch,
            rng=key,
        )
        after = slope(moved)
        gain = (
            state.thermal_energy * jnp.log1p(change / root)
            + 0.5 * change * (before + after)
            - 0.25 * mobility * (after - before) * (after + before)
        )
        kinetic = 0.5 * (moved.momentum**2 / mass).sum()
        ratio = timestep / thermostat_time
        rescaled = csvr_factor(bath, kinetic, state.thermal_energy, ratio, freedom)
        gain = gain + (rescaled - 1) * (rescaled + 1) * kinetic
        return heated(replace(moved, momentum=moved.momentum * rescaled), gain)

    return step
