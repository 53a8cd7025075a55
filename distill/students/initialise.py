"""A fresh student from a spec and training data: parameters, statistics, reference energies."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill.data import Dataset, GraphLoader
from distill.graph import model_rows
from distill.students.reference_energies import reference_energies
from distill.students.spec import StudentSpec, passes_messages
from distill.students.student import Student

SCALE_FLOOR = 0.1
"""Smallest scale of an invariant, relative to the element's median scale.

Without a floor an invariant that hardly varies in the training data is divided by almost nothing,
and one rare environment explodes.
"""

MAX_STATISTICS_BATCHES = 16
"""Batches that the statistics are taken from; more change them little."""


def initialise_student(
    spec: StudentSpec, dataset: Dataset, indices: np.ndarray, seed: int = 0
) -> Student:
    """Student with random parameters and with statistics of the training structures.

    Args:
        spec: architecture; a missing `n_neighbors` option is set from the data.
        dataset: labelled, eV and Å.
        indices: training structures.
        seed: of the parameters.
    """
    reference = reference_energies(dataset, indices, spec.elements)
    loader = GraphLoader(
        dataset, indices, spec.cutoff, spec.elements, 32, seed=seed, atomic_energies=reference
    )
    batches = [loader.batch(i) for i in range(min(len(loader), MAX_STATISTICS_BATCHES))]
    if "n_neighbors" not in spec.options:
        pairs = sum(int(np.sum(b.graph.neighbors < len(b.graph.neighbors))) for b in batches)
        atoms = sum(int(b.graph.atom_mask.sum()) for b in batches)
        typical = float(max(round(pairs / atoms, 1), 1.0))
        spec = StudentSpec(
            spec.architecture,
            spec.elements,
            spec.cutoff,
            {**spec.options, "n_neighbors": typical},
        )
    module = spec.build()

    @jax.jit
    def rows_of(graph: Any) -> tuple[jax.Array, ...]:
        return model_rows(graph, passes_messages(module))

    variables = module.init(jax.random.PRNGKey(seed), *rows_of(batches[0].graph))
    params, statistics = variables["params"], dict(variables["statistics"])

    @jax.jit
    def intermediates(statistics: Any, graph: Any) -> Any:
        _, sown = module.apply(
            {"params": params, "statistics": statistics}, *rows_of(graph), mutable=["intermediates"]
        )
        return sown["intermediates"]

    species = np.concatenate([b.graph.species[b.graph.atom_mask] for b in batches])
    # One layer after the other: what a later layer sees depends on the scales of the earlier.
    for layer in sorted(name for name in statistics if name.startswith("layer_")):
        rows = [
            np.asarray(intermediates(statistics, b.graph)[layer]["invariants"][0], np.float64)
            for b in batches
        ]
        invariants = np.concatenate(
            [own[b.graph.atom_mask] for own, b in zip(rows, batches, strict=True)]
        )
        mean, scale = _standardisation(invariants, species, len(spec.elements))
        statistics[layer] = {
            "mean": jnp.asarray(mean, jnp.float32),
            "scale": jnp.asarray(scale, jnp.float32),
        }
    forces = np.concatenate([dataset.forces[dataset.rows(int(i))] for i in indices])
    # Forces of one unit of energy scale per Å: the network's outputs are then of order one.
    scale_of_forces = max(float(np.sqrt(np.mean(forces**2))), 1e-3)
    statistics["energy_scale"] = jnp.asarray(scale_of_forces, jnp.float32)
    return Student(spec, {"params": params, "statistics": statistics}, reference)


def _standardisation(
    invariants: np.ndarray, species: np.ndarray, n_elements: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and floored standard deviation per element, `[n_elements, n_invariants]`."""
    mean = np.tile(invariants.mean(0), (n_elements, 1))
    scale = np.tile(invariants.std(0), (n_elements, 1))
    for element in range(n_elements):
        own = invariants[species == element]
        if len(own) > 1:
            mean[element], scale[element] = own.mean(0), own.std(0)
        floor = SCALE_FLOOR * np.median(scale[element])
        scale[element] = np.maximum(scale[element], max(floor, 1e-3))
    return mean, scale
