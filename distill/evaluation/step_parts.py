"""The parts of an MD step of a strictly local student, as functions that can be timed alone.

The dense parts (gather, kernel, assembly) work on a graph of the same structure whose rows and
slots are grouped by element, as the kernel wants them; everything else is the potential's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms

from distill.evaluation.roofline import Work, count_flops, size_in_bytes
from distill.graph import displacements
from distill.kernels import Kernel, RowModel
from distill.neighbors import batch_graphs, bucket, element_counts, group_slots
from distill.potential import Potential, assemble_forces
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
    order = np.argsort(student.species(atoms.numbers), kind="stable")
    graph = batch_graphs([atoms[order]], student.cutoff, student.elements, dtype=np.float32)
    counts = element_counts(graph.neighbors, graph.species, len(student.elements))
    groups = [bucket(int(count)) if count else 0 for count in counts]
    # Without the padding atom, which comes last: the rows are then sorted by element.
    n = len(atoms)
    graph = jax.tree.map(jnp.asarray, group_slots(graph, groups))
    species = student.species(atoms.numbers)[order].astype(np.int32)
    slots = np.repeat(np.arange(len(groups), dtype=np.int32), groups)
    module: Any = student.module
    weights = module.weights(student.variables) if hasattr(module, "weights") else None

    def energy(*rows: Any) -> Any:
        energies, sown = module.apply(student.variables, *rows, mutable=["intermediates"])
        return energies, sown["intermediates"]["last_features"][0]

    model = RowModel(energy, weights)
    vectors, mask = displacements(graph)[:n], graph.pair_mask[:n]

    def evaluate(rows: jax.Array, mask: jax.Array, species: np.ndarray) -> Any:
        (energies, _), gradients = kernel(model, rows, slots, mask, species)
        return energies, gradients

    flops = 0.0
    for element in np.unique(species):
        own = np.full(BLOCK, element, np.int32)
        rows = jax.ShapeDtypeStruct((BLOCK, *vectors.shape[1:]), vectors.dtype)
        kept = jax.ShapeDtypeStruct((BLOCK, mask.shape[1]), mask.dtype)
        per_block = count_flops(lambda r, m, own=own: evaluate(r, m, own), rows, kept)
        flops += per_block / BLOCK * int((species == element).sum())
    neighbors, gradient = graph.neighbors[:n], vectors
    forces = 4 * 3 * n
    return [
        Part(
            "displacement gather",
            lambda positions: displacements(replace(graph, positions=positions)),
            (graph.positions,),
            Work(
                3 * vectors.size,
                size_in_bytes(graph.positions, graph.neighbors, graph.shifts, vectors),
            ),
        ),
        Part(
            "kernel",
            lambda rows, kept: evaluate(rows, kept, species),
            (vectors, mask),
            Work(flops, 2 * size_in_bytes(vectors) + 4 * n),
        ),
        Part(
            "force assembly",
            assemble_forces,
            (gradient, neighbors),
            Work(2 * vectors.size, size_in_bytes(gradient, neighbors) + forces),
        ),
    ]


def loop_parts(
    potential: Potential, positions: np.ndarray, config: MDConfig, steps_per_rebuild: float
) -> list[Part]:
    """Energy and forces, the check and the rebuild of the list, and the integrator."""
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
    return [
        Part("energy and forces", potential.energy_and_forces, (where, lists), None),
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
