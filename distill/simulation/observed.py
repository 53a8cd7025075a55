"""Steps that tell what was evaluated in them, so that a program evaluates in one place only.

Where a frame is recorded, energy, virial and uncertainty are those of the last evaluation of
forces; and forces at the start of a run are found by a step that stands still. A program with one
evaluation is compiled in half the time of one with three.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from distill.potential import Evaluation, Potential
from distill.simulation.barostat import BarostatState
from distill.simulation.config import MDConfig
from distill.simulation.ensembles import make_integrator
from distill.simulation.measure import Seen, observe, seen_of


def make_start(potential: Potential, config: MDConfig) -> Callable[..., Any]:
    """`init` of `make_integrator`, but that forces are NaN, to be found by the first block."""

    def unknown(positions: jax.Array, *_: Any) -> tuple[jax.Array, jax.Array]:
        return jnp.full((), jnp.nan, positions.dtype), jnp.full_like(positions, jnp.nan)

    def unknown_in_cell(positions: jax.Array, *_: Any) -> Evaluation:
        energy, forces = unknown(positions)
        return Evaluation(energy[None], forces, jnp.full((1, 3, 3), energy), forces[:, 0])

    evaluate = None if potential.evaluate is None else unknown_in_cell
    return make_integrator(
        replace(potential, energy_and_forces=unknown, evaluate=evaluate), config
    )[0]


def lacks_forces(states: Any) -> jax.Array:
    """`()` bool: states of one or several systems are those of `make_start`."""
    lost: jax.Array = jnp.isnan(states.force).all()
    return lost


def make_observed_step(potential: Potential, config: MDConfig) -> Callable[..., tuple[Any, Seen]]:
    """`step(state, neighbors, wanted, stands) -> (state, seen)` of an ensemble.

    Virial and uncertainty of `seen` mean nothing unless they are `wanted` `()`. If `stands` `()`
    is true, nothing but the forces changes: they are evaluated where the atoms are.
    """

    def step(state: Any, neighbors: Any, wanted: jax.Array, stands: jax.Array) -> tuple[Any, Seen]:
        seen: list[Evaluation] = []

        def energy_and_forces(positions: jax.Array, lists: Any) -> tuple[jax.Array, jax.Array]:
            positions = jnp.where(stands, state.position, positions)
            seen.append(observe(potential, positions, lists, wanted))
            return seen[-1].energy[0], seen[-1].forces

        def evaluate(positions: jax.Array, lists: Any, cell: jax.Array) -> Evaluation:
            positions = jnp.where(stands, state.position, positions)
            cell = jnp.where(stands, state.cell, cell)
            if potential.observe is not None:
                seen.append(potential.observe(positions, lists, cell, wanted))
            else:
                assert potential.evaluate is not None
                seen.append(potential.evaluate(positions, lists, cell))
            return seen[-1]

        own = replace(
            potential,
            energy_and_forces=energy_and_forces,
            evaluate=None if potential.evaluate is None else evaluate,
        )
        new = make_integrator(own, config)[1](state, neighbors=neighbors)
        found = seen[-1]  # before, jax-md asks for shapes
        stood = {"force": found.forces}
        if isinstance(state, BarostatState):
            stood["virial"] = found.virial[0]
        chosen = jax.tree.map(
            lambda before, after: jnp.where(stands, before, after), replace(state, **stood), new
        )
        return chosen, seen_of(potential, found)

    return step
