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
from distill.gathered_forces import gathered_forces
from distill.kernels import Kernel, RowModel
from distill.kernels.packed import Packed, pack, unpack
from distill.neighbors.grouped import extended_positions, grouped_list
from distill.neighbors.parts import split_rows
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
    parts = nbrs.layout.parts
    slots = [part.neighbor_species for part in parts]

    def gather(positions: jax.Array, nbrs: Any) -> list[Packed]:
        extended = pack(*extended_positions(nbrs, positions, cell).T)
        counts = [part.count for part in parts]
        own = [split_rows(every[nbrs.rows], counts) for every in extended]
        found = []
        for number, others in enumerate(nbrs.neighbors):
            level, z = (
                every.at[others].get(mode="promise_in_bounds") - here[number][:, None]
                for every, here in zip(extended, own, strict=True)
            )
            found.append((level, z))
        return found

    packed = jax.jit(gather)(positions, nbrs)
    vectors = [jnp.stack(unpack(own), axis=-1) for own in packed]
    none = len(extended_positions(nbrs, positions, cell)) - 1
    filled = [others < none for others in nbrs.neighbors]
    model = _row_model(student)

    def evaluate(vectors: Any, slots: np.ndarray, filled: Any, species: np.ndarray) -> Any:
        (energies, _), gradients = kernel(model, vectors, slots, filled, species)
        return energies, gradients

    def every_part(vectors: list[jax.Array], filled: list[jax.Array]) -> list[Any]:
        species = [part.species for part in parts]
        return [evaluate(*own) for own in zip(vectors, slots, filled, species, strict=True)]

    flops = 0.0
    for part, own_slots in zip(parts, slots, strict=True):
        for element in np.unique(part.species):
            own = np.full(BLOCK, element, np.int32)
            shapes = (
                jax.ShapeDtypeStruct((BLOCK, part.slots, 3), np.float32),
                jax.ShapeDtypeStruct((BLOCK, part.slots), bool),
            )
            per_block = count_flops(
                lambda v, f, s=own_slots, own=own: evaluate(v, s, f, own), *shapes
            )
            flops += per_block / BLOCK * part.rows[element]
    flat = tuple(jnp.concatenate([own[axis].reshape(-1) for own in packed]) for axis in range(2))
    size, count = size_in_bytes(vectors), sum(own.size for own in vectors)
    return [
        Part(
            "displacement gather",
            gather,
            (positions, nbrs),
            Work(count, size_in_bytes(positions, nbrs.neighbors) + size),
        ),
        Part(
            "kernel",
            every_part,
            (vectors, filled),
            Work(flops, 2 * size + 4 * n),
        ),
        Part(
            "force assembly",
            lambda gradient, reverse: gathered_forces(gradient, reverse, parts),
            (flat, nbrs.reverse),
            Work(2 * count, size + size_in_bytes(nbrs.reverse, positions)),
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
        # Instead of the other, in the step before a frame is recorded.
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
