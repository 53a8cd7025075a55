"""`moment`: a strictly local student made of density moments and a network per element.

The neighbours of an atom make densities `A_clm = sum_k R_cl(r_k) Y_lm(r_k)`, whose radial parts
depend on l and on both elements (R. Drautz, Phys. Rev. B 99, 014104 (2019)). Invariants are the
densities of l = 0, all products of two densities of equal l, and products of three in a channel
of its own. They are standardised with a floor, so that a rare environment cannot blow one up, and
fed to a small network of the element.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from distill.kernels.contract import Species
from distill.students.harmonics import coupling, coupling_paths, spherical_harmonics
from distill.students.per_element import PerElementDense
from distill.students.radial import bessel_basis

TINY_DISTANCE_SQUARED = 1e-12
"""Å²; keeps the norm of a zero-length pair differentiable, invisible at any real distance."""


class MomentStudent(nn.Module):
    """Energy of each atom from the displacements to its neighbours.

    Attributes:
        n_elements: size of the model's element table.
        cutoff: Å.
        n_radial: Bessel functions per pair of elements.
        n_channels: densities per l.
        max_l: largest degree of the spherical harmonics, at most 3.
        n_triples: channels whose products of three densities are used; 0 leaves them out, and
            `max_l` of 1 has none.
        hidden: widths of the network's hidden layers.
        n_neighbors: typical number of neighbours, sets the scale of the densities.
    """

    n_elements: int
    cutoff: float
    n_radial: int = 10
    n_channels: int = 10
    max_l: int = 3
    n_triples: int = 8
    hidden: tuple[int, ...] = (64, 64)
    n_neighbors: float = 10.0

    @nn.compact
    def __call__(
        self,
        displacements: jax.Array,
        neighbor_species: jax.Array,
        mask: jax.Array,
        species: Species,
    ) -> jax.Array:
        """Energies `[N]` in eV (without reference energies).

        Args:
            displacements: `[N, K, 3]`, Å; anything beyond the cutoff in padding slots.
            neighbor_species: `[N, K]` int32.
            mask: `[N, K]` bool, False in padding slots.
            species: `[N]` int32; as a numpy array it is static and the networks are evaluated on
                the atoms of their element only.
        """
        invariants = self._invariants(displacements, neighbor_species, mask, species)
        self.sow("intermediates", "invariants", invariants)
        dtype = displacements.dtype
        shape = (self.n_elements, invariants.shape[-1])
        mean = self.variable("statistics", "mean", jnp.zeros, shape)
        scale = self.variable("statistics", "scale", jnp.ones, shape)
        energy_scale = self.variable("statistics", "energy_scale", jnp.ones, ())
        x = (invariants - mean.value.astype(dtype)[species]) / scale.value.astype(dtype)[species]
        for width in self.hidden:
            x = nn.silu(PerElementDense(self.n_elements, width)(x, species))
        energy = PerElementDense(self.n_elements, 1)(x, species)[:, 0]
        return energy * energy_scale.value.astype(dtype)

    def _invariants(
        self,
        displacements: jax.Array,
        neighbor_species: jax.Array,
        mask: jax.Array,
        species: Species,
    ) -> jax.Array:
        """Rotation-invariant descriptors `[N, n_invariants]`, before standardisation."""
        densities = self._densities(displacements, neighbor_species, mask, species)
        pairs = [density[..., : self.n_channels] for density in densities]
        triples = [density[..., self.n_channels :] for density in densities]
        invariants = [pairs[0][:, 0], self._products_of_two(pairs)]
        if self.n_triples and coupling_paths(self.max_l):
            invariants.append(self._products_of_three(triples))
        return jnp.concatenate(invariants, axis=-1)

    def _products_of_two(self, densities: list[jax.Array]) -> jax.Array:
        """Scalar products of all pairs of channels of equal l, `[N, (max_l + 1) * pairs]`."""
        # Sums over m of outer products: small matrix products cost more than they compute.
        products = jnp.stack(
            [
                (density[..., :, None] * density[..., None, :]).sum(1) / density.shape[1] ** 0.5
                for density in densities
            ],
            axis=1,
        )
        n_atoms, n_degrees = products.shape[:2]
        rows, columns = np.triu_indices(self.n_channels)
        upper = rows * self.n_channels + columns
        return products.reshape(n_atoms, n_degrees, -1)[..., upper].reshape(n_atoms, -1)

    def _products_of_three(self, densities: list[jax.Array]) -> jax.Array:
        """Invariants of three densities of one channel each, `[N, paths * n_triples]`."""
        densities = [jnp.swapaxes(density, 1, 2) for density in densities]
        results = []
        for path in coupling_paths(self.max_l):
            first, second, third = (densities[degree] for degree in path)
            outer = (first[..., :, None] * second[..., None, :]).reshape(*first.shape[:2], -1)
            constants = coupling(path).reshape(-1, third.shape[-1])
            coupled = outer @ jnp.asarray(constants, third.dtype)
            results.append((coupled * third).sum(-1))
        return jnp.concatenate(results, axis=-1)

    def _densities(
        self,
        displacements: jax.Array,
        neighbor_species: jax.Array,
        mask: jax.Array,
        species: Species,
    ) -> list[jax.Array]:
        """Densities `[N, 2l + 1, n_channels + n_triples]` for each l."""
        dtype = displacements.dtype
        distances = jnp.sqrt((displacements**2).sum(-1) + TINY_DISTANCE_SQUARED)
        harmonics = spherical_harmonics(displacements / distances[..., None], self.max_l)
        radial = bessel_basis(distances, self.cutoff, self.n_radial)
        of_element = jax.nn.one_hot(neighbor_species, self.n_elements, dtype=dtype)
        of_element = of_element * (mask / self.n_neighbors**0.5).astype(dtype)[..., None]
        n_atoms, n_slots = neighbor_species.shape
        radial = (of_element[..., None] * radial[..., None, :]).reshape(n_atoms, n_slots, -1)
        # A batched product is three times faster on CPU when it sums over the last axis of its
        # left factor; without the barrier XLA would undo the transposition.
        harmonics = jax.lax.optimization_barrier(jnp.swapaxes(harmonics, 1, 2))
        moments = harmonics @ radial
        densities = []
        for degree in range(self.max_l + 1):
            weights = self.param(
                f"radial_{degree}",
                _smooth_initializer(self.n_radial),
                (
                    self.n_elements,
                    self.n_elements * self.n_radial,
                    self.n_channels + self.n_triples,
                ),
            ).astype(dtype)
            own = moments[:, degree**2 : (degree + 1) ** 2]
            densities.append(own @ weights[species])
        return densities


def _smooth_initializer(n_radial: int) -> Any:
    """Normal, with a standard deviation that falls as 1/n² with the order n of a radial function.

    High orders oscillate within a bond length. Starting near zero they stay small where the data
    do not ask for them, which makes the student smoother between the training structures.
    """

    def initialize(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        falloff = jnp.arange(1, n_radial + 1, dtype=dtype) ** -2.0
        falloff = jnp.tile(falloff / jnp.linalg.norm(falloff), shape[1] // n_radial)
        return jax.random.normal(key, shape, dtype) * falloff[:, None]

    return initialize
