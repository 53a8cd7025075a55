"""One layer of densities: from displacements and features of the neighbours to invariants.

The neighbours of an atom make densities `A_clm = sum_k R_cl(r_k) s_k Y_lm(r_k)`, in which `s_k`
are features of the neighbour: its element, or what an earlier layer learnt about it (R. Drautz,
Phys. Rev. B 99, 014104 (2019)). Invariants are the densities of l = 0, all products of two
densities of equal l, and products of three in channels of their own. They are standardised with a
floor, so that a rare environment cannot blow one up.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from distill.kernels.contract import Species
from distill.kernels.harmonics import coupling, coupling_paths, spherical_harmonics
from distill.kernels.pair_terms import TINY_DISTANCE_SQUARED
from distill.kernels.radial import bessel_basis, smooth_cutoff


def pair_basis(
    displacements: jax.Array,
    cutoff: float,
    n_radial: int,
    max_l: int,
    angular_cutoff: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Radial functions `[N, K, n_radial]` and spherical harmonics `[N, (max_l + 1)², K]`.

    With an `angular_cutoff` in Å the harmonics of l > 0 end there.
    """
    distances = jnp.sqrt((displacements**2).sum(-1) + TINY_DISTANCE_SQUARED)
    harmonics = spherical_harmonics(displacements / distances[..., None], max_l)
    # A batched product is three times faster on CPU when it sums over the last axis of its
    # left factor; without the barrier XLA would undo the transposition.
    harmonics = jax.lax.optimization_barrier(jnp.swapaxes(harmonics, 1, 2))
    if angular_cutoff:
        envelope = smooth_cutoff(distances, angular_cutoff)[:, None]
        harmonics = jnp.concatenate([harmonics[:, :1], harmonics[:, 1:] * envelope], axis=1)
    return bessel_basis(distances, cutoff, n_radial), harmonics


class DensityLayer(nn.Module):
    """Densities of one layer and their standardised invariants.

    Attributes:
        n_elements: size of the model's element table.
        n_channels: densities per l whose products of two are taken.
        n_triples: further densities whose products of three are taken.
        max_l: largest degree.
        per_element: radial weights of its own for every element of the central atom; otherwise
            elements share them up to a factor per channel.
    """

    n_elements: int
    n_channels: int
    n_triples: int
    max_l: int
    per_element: bool = True

    @nn.compact
    def __call__(
        self, radial: jax.Array, harmonics: jax.Array, features: jax.Array, species: Species
    ) -> tuple[list[jax.Array], jax.Array]:
        """Densities `[N, 2l + 1, n_channels + n_triples]` per l, and invariants `[N, I]`.

        Args:
            radial: `[N, K, n_radial]`.
            harmonics: `[N, (max_l + 1)², K]`.
            features: `[N, K, F]`, zero in padding slots, scaled so that sums over the neighbours
                are of order one.
            species: `[N]`.
        """
        densities = self._densities(radial, harmonics, features, species)
        pairs = [density[..., : self.n_channels] for density in densities]
        triples = [density[..., self.n_channels :] for density in densities]
        invariants = [pairs[0][:, 0], products_of_two(pairs)]
        if self.n_triples and coupling_paths(self.max_l):
            invariants.append(products_of_three(triples))
        raw = jnp.concatenate(invariants, axis=-1)
        self.sow("intermediates", "invariants", raw)
        shape = (self.n_elements, raw.shape[-1])
        mean = self.variable("statistics", "mean", jnp.zeros, shape).value.astype(raw.dtype)
        scale = self.variable("statistics", "scale", jnp.ones, shape).value.astype(raw.dtype)
        return densities, (raw - mean[species]) / scale[species]

    def _densities(
        self, radial: jax.Array, harmonics: jax.Array, features: jax.Array, species: Species
    ) -> list[jax.Array]:
        n_atoms, n_slots, n_features = features.shape
        n_radial = radial.shape[-1]
        weighted = (features[..., None] * radial[..., None, :]).reshape(n_atoms, n_slots, -1)
        moments = harmonics @ weighted
        width = self.n_channels + self.n_triples
        densities = []
        for degree in range(self.max_l + 1):
            shape: tuple[int, ...] = (n_features * n_radial, width)
            if self.per_element:
                shape = (self.n_elements, *shape)
            weights = self.param(f"radial_{degree}", _smooth_initializer(n_radial), shape)
            weights = weights.astype(radial.dtype)
            own = moments[:, degree**2 : (degree + 1) ** 2]
            if self.per_element:
                densities.append(own @ weights[species])
                continue
            factor = self.param(f"factor_{degree}", nn.initializers.ones, (self.n_elements, width))
            densities.append((own @ weights) * factor.astype(radial.dtype)[species][:, None])
        return densities


def products_of_two(densities: list[jax.Array]) -> jax.Array:
    """Scalar products of all pairs of channels of equal l, `[N, (max_l + 1) * pairs]`."""
    # Sums over m of outer products: small matrix products cost more than they compute.
    products = jnp.stack(
        [
            (density[..., :, None] * density[..., None, :]).sum(1) / density.shape[1] ** 0.5
            for density in densities
        ],
        axis=1,
    )
    n_atoms, n_degrees, n_channels, _ = products.shape
    rows, columns = np.triu_indices(n_channels)
    upper = rows * n_channels + columns
    return products.reshape(n_atoms, n_degrees, -1)[..., upper].reshape(n_atoms, -1)


def products_of_three(densities: list[jax.Array]) -> jax.Array:
    """Invariants of three densities of one channel each, `[N, paths * channels]`."""
    densities = [jnp.swapaxes(density, 1, 2) for density in densities]
    results = []
    for path in coupling_paths(len(densities) - 1):
        first, second, third = (densities[degree] for degree in path)
        outer = (first[..., :, None] * second[..., None, :]).reshape(*first.shape[:2], -1)
        constants = coupling(path).reshape(-1, third.shape[-1])
        coupled = outer @ jnp.asarray(constants, third.dtype)
        results.append((coupled * third).sum(-1))
    return jnp.concatenate(results, axis=-1)


def _smooth_initializer(n_radial: int) -> Any:
    """Normal, with a standard deviation that falls as 1/n² with the order n of a radial function.

    High orders oscillate within a bond length. Starting near zero they stay small where the data
    do not ask for them, which makes the student smoother between the training structures.
    """

    def initialize(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        falloff = jnp.arange(1, n_radial + 1, dtype=dtype) ** -2.0
        falloff = jnp.tile(falloff / jnp.linalg.norm(falloff), shape[-2] // n_radial)
        return jax.random.normal(key, shape, dtype) * falloff[:, None]

    return initialize
