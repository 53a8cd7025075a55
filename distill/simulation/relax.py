"""Partial relaxation of many replicas at once, by capped steps along the forces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill.errors import CapacityError, SimulationError
from distill.potential import Potential
from distill.simulation.blocks import MAX_REALLOCATIONS, allocate_lists, over_replicas

BLOCK_STEPS = 10
"""Steps between looks at the neighbour lists."""


@dataclass(frozen=True)
class Relaxed:
    """Result of `relax`.

    Attributes:
        positions: `[R, n, 3]`, Å.
        energy: `[R]`, eV, without reference energies.
        largest_force: `[R]`, eV/Å.
    """

    positions: np.ndarray
    energy: np.ndarray
    largest_force: np.ndarray


def relax(potential: Potential, positions: np.ndarray, steps: int, **sizes: float) -> Relaxed:
    """Walk downhill for some steps once; see `make_relaxer`."""
    return make_relaxer(potential, **sizes)(positions, steps)


def make_relaxer(
    potential: Potential, *, step_size: float = 0.01, max_step: float = 0.05
) -> Callable[[np.ndarray, int], Relaxed]:
    """A function that walks downhill for some steps; the cell stays. It compiles once.

    Meant for sampling and for removing the worst contacts of a start, where a robust walk counts
    and a converged minimum does not. For minima use the optimisers of ASE with a calculator.

    Args:
        potential: see `distill.potential.Potential`.
        step_size: Å²/eV, displacement per force.
        max_step: Å, longest displacement of an atom in one step.

    Returns:
        `(positions [R, n, 3] in Å, steps) -> Relaxed`, for one or more replicas; 0 steps only
        evaluate. It raises `SimulationError` when positions or energies become NaN or infinite
        and `CapacityError` when the neighbour list keeps overflowing.
    """

    def walk(x: jax.Array, lists: Any, n_steps: int) -> Any:
        def step(_: Any, carry: Any) -> Any:
            x, lists, overflow = carry
            lists = potential.update(lists, x)
            force = potential.forces(x, lists)
            overflow = overflow | potential.overflow(lists, x)
            length = jnp.linalg.norm(force, axis=-1, keepdims=True)
            move = force * jnp.minimum(step_size, max_step / jnp.maximum(length, 1e-9))
            return x + move, lists, overflow

        x, lists, overflow = jax.lax.fori_loop(0, n_steps, step, (x, lists, jnp.zeros((), bool)))
        lists = potential.update(lists, x)
        energy, force = potential.energy_and_forces(x, lists)
        overflow = overflow | potential.overflow(lists, x)
        return x, lists, overflow, energy, jnp.linalg.norm(force, axis=-1).max()

    block = jax.jit(
        lambda x, lists, n: over_replicas(
            lambda own, _: walk(own[0], own[1], n), (x, lists), len(potential.numbers)
        ),
        static_argnums=2,
    )

    def run(positions: np.ndarray, steps: int) -> Relaxed:
        return _walk(potential, block, positions, steps)

    return run


def _walk(potential: Potential, block: Any, positions: np.ndarray, steps: int) -> Relaxed:
    current = jnp.asarray(positions, potential.dtype)
    lists = allocate_lists(potential, current, None, True)
    done, first = 0, True
    while first or done < steps:
        n_steps, first = min(BLOCK_STEPS, steps - done), False
        for growth in range(MAX_REALLOCATIONS):
            new, new_lists, overflow, energy, force = block(current, lists, n_steps)
            finite = np.isfinite(np.asarray(new)).all((1, 2)) & np.isfinite(np.asarray(energy))
            # Lost atoms make every list look too old: if the first larger one does not help,
            # none will, and what really happened is said below.
            if not bool(jnp.any(overflow)) or (growth and not finite.all()):
                break
            lists = allocate_lists(potential, current, new_lists, True)
        else:
            raise CapacityError(
                f"the neighbour list still overflows after {MAX_REALLOCATIONS} growths: the atoms "
                "collapse, because the potential is outside its range; check the start"
            )
        if not finite.all():
            raise SimulationError(
                f"replicas {np.flatnonzero(~finite)[:10].tolist()} became NaN or infinite while "
                "being relaxed: their start is outside the range of the potential"
            )
        current, lists, done = new, new_lists, done + n_steps
    return Relaxed(
        np.asarray(current, np.float64), np.asarray(energy, np.float64), np.asarray(force)
    )
