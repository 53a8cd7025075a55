"""The plain kernel: all rows at once, one call of `jax.value_and_grad`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill.kernels.contract import AtomicEnergy, NeighborSpecies, Species


def reference(
    atomic_energy: AtomicEnergy,
    displacements: jax.Array,
    neighbor_species: NeighborSpecies,
    mask: jax.Array,
    species: Species,
) -> tuple[Any, jax.Array]:
    """Energies `[b]` (eV) and gradient `[b, K, 3]` (eV/Å); see `distill.kernels`."""

    if isinstance(neighbor_species, np.ndarray):
        neighbor_species = jnp.broadcast_to(jnp.asarray(neighbor_species, jnp.int32), mask.shape)

    def total(vectors: jax.Array) -> tuple[jax.Array, Any]:
        output = atomic_energy(vectors, neighbor_species, mask, species)
        return jax.tree.leaves(output)[0].sum(), output

    (_, output), gradients = jax.value_and_grad(total, has_aux=True)(displacements)
    return output, gradients
