"""The plain kernel: all rows at once, one call of `jax.value_and_grad`."""

from __future__ import annotations

import jax

from distill.kernels.contract import AtomicEnergy, Species


def reference(
    atomic_energy: AtomicEnergy,
    displacements: jax.Array,
    neighbor_species: jax.Array,
    mask: jax.Array,
    species: Species,
) -> tuple[jax.Array, jax.Array]:
    """Energies `[b]` (eV) and gradient `[b, K, 3]` (eV/Å); see `distill.kernels`."""

    def total(vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
        energies = atomic_energy(vectors, neighbor_species, mask, species)
        return energies.sum(), energies

    (_, energies), gradients = jax.value_and_grad(total, has_aux=True)(displacements)
    return energies, gradients
