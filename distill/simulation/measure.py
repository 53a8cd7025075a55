"""What is measured of a state when a frame is recorded; pure functions."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from distill.potential import Evaluation, Potential
from distill.simulation.barostat import BarostatState, internal_pressure


class Seen(NamedTuple):
    """What an evaluation of the potential tells besides the forces.

    Attributes:
        energy: `[]`, eV.
        virial: `[3, 3]`, eV, dE/dstrain; of no meaning where a pressure is not defined.
        uncertainty: `[n]`, expected force errors in eV/Å; no atoms (`[0]`) without uncertainty.
    """

    energy: jax.Array
    virial: jax.Array
    uncertainty: jax.Array


def nothing_seen(potential: Potential) -> Seen:
    """What stands for the sight of a step before the first."""
    atoms = 0 if potential.with_uncertainty is None else len(potential.numbers)
    shapes: tuple[tuple[int, ...], ...] = ((), (3, 3), (atoms,))
    return Seen(*(jnp.zeros(shape, potential.dtype) for shape in shapes))


def seen_of(potential: Potential, found: Evaluation) -> Seen:
    """From an evaluation of one system."""
    nothing = nothing_seen(potential)
    uncertainty = found.beside[0] if nothing.uncertainty.size else nothing.uncertainty
    seen = Seen(found.energy[0], found.virial[0], uncertainty)
    return jax.tree.map(lambda leaf: leaf.astype(potential.dtype), seen)


def knows_pressure(potential: Potential) -> bool:
    """Whether there is a virial and a volume, so that a pressure is defined."""
    return potential.evaluate is not None and bool(potential.pbc.all())


def observe(
    potential: Potential, positions: jax.Array, neighbors: Any, wanted: jax.Array
) -> Evaluation:
    """Evaluation in the cell of `potential`, of one system.

    Virial and uncertainty mean nothing unless they are `wanted` `()`.
    """
    if potential.observe is not None:
        return potential.observe(positions, neighbors, None, wanted)
    known = nothing_seen(potential)

    def plain(uncertainty: jax.Array = known.uncertainty) -> Evaluation:
        energy, forces = potential.energy_and_forces(positions, neighbors)
        return _evaluation(energy, forces, known.virial, uncertainty)

    def full() -> Evaluation:
        if knows_pressure(potential):
            assert potential.evaluate is not None
            cell = jnp.asarray(potential.cell, potential.dtype)
            found = potential.evaluate(positions, neighbors, cell)
            beside = found.beside[0] if found.beside else known.uncertainty
            return _evaluation(found.energy[0], found.forces, found.virial[0], beside)
        assert potential.with_uncertainty is not None
        energy, forces, uncertainty = potential.with_uncertainty(positions, neighbors)
        return _evaluation(energy, forces, known.virial, uncertainty)

    if not knows_pressure(potential) and potential.with_uncertainty is None:
        return plain()
    found: Evaluation = jax.lax.cond(wanted, full, plain)
    return found


def _evaluation(
    energy: jax.Array, forces: jax.Array, virial: jax.Array, uncertainty: jax.Array
) -> Evaluation:
    return Evaluation(energy[None], forces, virial[None], forces[:, 0], (uncertainty,))


def pressure_of(potential: Potential, state: Any, seen: Seen) -> jax.Array:
    """`[]`, eV/Å³; NaN for a pressure that is not defined."""
    if not knows_pressure(potential):
        return jnp.full((), jnp.nan, potential.dtype)
    moves = isinstance(state, BarostatState)
    cell = state.cell if moves else jnp.asarray(potential.cell, potential.dtype)
    volume = jnp.abs(jnp.linalg.det(cell))
    return internal_pressure(state.momentum, state.mass, seen.virial, volume)
