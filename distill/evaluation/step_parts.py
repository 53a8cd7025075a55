"""The parts of an MD step of a strictly local student, as functions that can be timed alone.

The dense parts (gather, kernel, assembly) work on a grouped list of the same structure, each at
once; in a simulation gather and kernel share chunks of rows. All else is the potential's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms

from distill.evaluation.roofline import Work, count_flops, size_in_bytes
from distill.grouped_potential import gathered_forces
from distill.kernels import Kernel, RowModel
from distill.kernels.packed import Packed, pack, unpack
from distill.neighbors.grouped import extended_positions, grouped_list
from distill.potential import Potential
from distill.simulation import MDConfig, make_block, make_integrator
from distill.students import Student

BLOCK = 64
"""Rows of which XLA counts the operations; small enough for every kernel to have no loop."""


@dataclass(frozen=True)
class Part:
    """A part of a step.

    Attributes:
        name: for tables.
        function: to be compiled.
        arguments: of it.
        work: what it asks for; None where that is not counted.
        per_step: how often a step needs it.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    work: Work | None
    per_step: float = 1.0


def dense_parts(student: Student, atoms: Atoms, kernel: Kernel) -> list[Part]:
    """Gather of the displacements, kernel, and assembly of the forces, in float32."""
    cell, n = np.asarray(atoms.cell.array), len(atoms)
    lists = grouped_list(cell, atoms.pbc, student.species(atoms.numbers), student.cutoff)
    positions = jnp.asarray(atoms.positions, jnp.float32)
    nbrs = lists.allocate(positions)
    rows = np.sort(lists.species)
    slots = np.repeat(np.arange(len(nbrs.groups), dtype=np.int32), nbrs.groups)

    def gather(positions: jax.Array, nbrs: Any) -> Packed:
        level, z = (
            part.at[nbrs.neighbors].get(mode="promise_in_bounds") - part[:n, None]
            for part in pack(*extended_positions(nbrs, positions, cell).T)
        )
        return level, z

    packed = jax.jit(gather)(positions, nbrs)
    vectors = jnp.stack(unpack(packed), axis=-1)
    filled = nbrs.neighbors < len(extended_positions(nbrs, positions, cell)) - 1
    model = _row_model(student)

    def evaluate(vectors: jax.Array, filled: jax.Array, species: np.ndarray) -> Any:
        (energies, _), gradients = kernel(model, vectors, slots, filled, species)
        return energies, gradients

    flops = 0.0
    for element in np.unique(rows):
        own = np.full(BLOCK, element, np.int32)
        shapes = (
            jax.ShapeDtypeStruct((BLOCK, *vectors.shape[1:]), vectors.dtype),
            jax.ShapeDtypeStruct((BLOCK, filled.shape[1]), filled.dtype),
        )
        per_block = count_flops(lambda v, f, own=own: evaluate(v, f, own), *shapes)
        flops += per_block / BLOCK * int((rows == element).sum())
    size = size_in_bytes(vectors)
    return [
        Part(
            "displacement gather",
            gather,
            (positions, nbrs),
            Work(vectors.size, size_in_bytes(positions, nbrs.neighbors) + size),
        ),
        Part(
            "kernel",
            lambda vectors, filled: evaluate(vectors, filled, rows),
            (vectors, filled),
            Work(flops, 2 * size + 4 * n),
        ),
        Part(
            "force assembly",
            gathered_forces,
            (packed, nbrs.reverse),
            Work(2 * vectors.size, size + size_in_bytes(nbrs.reverse, positions)),
        ),
    ]


def _row_model(student: Student) -> RowModel:
    module: Any = student.module
    weights = module.weights(student.variables) if hasattr(module, "weights") else None
    return RowModel(student.energy_and_features, weights)


def loop_parts(
    potential: Potential, positions: np.ndarray, config: MDConfig, steps_per_rebuild: float
) -> list[Part]:
    """Energy and forces, the check and the rebuild of the list, and the integrator.

    Energy, forces and uncertainty too, where the potential has one.
    """
    where = jnp.asarray(positions, potential.dtype)
    lists = potential.allocate(where)
    # The lists of a place far away: every atom has moved, so that the update must rebuild.
    away = jax.jit(potential.update)(lists, where + 2.0)
    n = len(positions)
    free = Potential(
        numbers=potential.numbers,
        dtype=potential.dtype,
        allocate=lambda positions, previous=None: jnp.zeros(()),
        update=lambda lists, positions: lists,
        overflow=lambda lists, positions: jnp.zeros((), bool),
        energy_and_forces=lambda positions, lists: (jnp.zeros(()), 0.0 * positions),
    )
    start, step = make_integrator(free, config)
    state = start(jax.random.PRNGKey(0), where, jnp.zeros(()))
    evaluated = [Part("energy and forces", potential.energy_and_forces, (where, lists), None)]
    if potential.with_uncertainty is not None:
        # Asked for when a frame is recorded only.
        often = 1.0 / config.record_every
        known = potential.with_uncertainty
        evaluated.append(Part("the same and uncertainty", known, (where, lists), None, often))
    return [
        *evaluated,
        Part(
            "list check",
            potential.update,
            (lists, where),
            Work(8 * n, 2 * size_in_bytes(where)),
        ),
        Part("list rebuild", potential.update, (away, where), None, 1.0 / steps_per_rebuild),
        Part(
            "integrator",
            lambda state: step(state, neighbors=jnp.zeros(())),
            (state,),
            Work(12 * n, 2 * size_in_bytes(state.position, state.momentum, state.force)),
        ),
    ]


def block_memory(potential: Potential, positions: np.ndarray, config: MDConfig) -> dict[str, int]:
    """Bytes of the compiled block of steps: `arguments`, `results`, `temporary`."""
    start, block = make_block(potential, config)
    where = jnp.asarray(positions, potential.dtype)
    lists = potential.allocate(where)
    state = start(jax.random.PRNGKey(0), where, lists)
    records = config.block_steps // config.record_every
    analysis: Any = block.lower(state, lists, records).compile().memory_analysis()  # type: ignore[attr-defined]
    return {
        "arguments": int(analysis.argument_size_in_bytes),
        "results": int(analysis.output_size_in_bytes),
        "temporary": int(analysis.temp_size_in_bytes),
    }
