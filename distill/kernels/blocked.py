"""Rows in blocks that stay in cache: each block's gradient is taken at once.

Rows are independent, so the intermediate arrays of one block (a few hundred kB) never leave the
cache, whereas those of all rows would stream through memory several times. Where the slots are
grouped by element and the model is known by its weights, the gradient is the one written by hand
in `distill.kernels.moment`; atoms of one element that stand together share a block.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill.kernels.contract import AtomicEnergy, NeighborSpecies, RowModel, Species
from distill.kernels.moment import moment_rows
from distill.kernels.moment_blocks import (
    BLOCK_ROWS,
    Components,
    element_runs,
    in_blocks,
    moment_blocks,
)
from distill.kernels.reference import reference


def blocked(
    atomic_energy: AtomicEnergy,
    displacements: jax.Array,
    neighbor_species: NeighborSpecies,
    mask: jax.Array,
    species: Species,
) -> tuple[Any, jax.Array]:
    """Same results as `reference`, at less memory traffic for more than `BLOCK_ROWS` rows."""
    weights = atomic_energy.moments if isinstance(atomic_energy, RowModel) else None
    if weights is None or not isinstance(neighbor_species, np.ndarray):
        return _any_model(atomic_energy, displacements, neighbor_species, mask, species)
    weights = weights.astype(displacements.dtype)
    runs = element_runs(species)
    if runs is None:
        energies, features, gradients = moment_rows(
            weights, displacements, neighbor_species, species
        )
        return (energies, features), gradients
    energies, features, by_axis = moment_blocks(
        weights, _components, displacements, neighbor_species, runs
    )
    return (energies, features), jnp.stack(by_axis, axis=-1)


def _components(displacements: jax.Array) -> Components:
    return displacements[..., 0], displacements[..., 1], displacements[..., 2]


def _any_model(
    atomic_energy: AtomicEnergy,
    displacements: jax.Array,
    neighbor_species: NeighborSpecies,
    mask: jax.Array,
    species: Species,
) -> tuple[Any, jax.Array]:
    rows = displacements, neighbor_species, mask, species
    if len(displacements) <= BLOCK_ROWS:
        return reference(atomic_energy, *rows)
    others = jnp.broadcast_to(jnp.asarray(neighbor_species), mask.shape)
    return in_blocks(
        lambda block: reference(atomic_energy, *block),
        (displacements, others, mask, jnp.asarray(species)),
        BLOCK_ROWS,
    )
