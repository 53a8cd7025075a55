"""From densities to energies, and back to the gradient by densities: two ways with one result.

One keeps rows along the first axis, which automatic differentiation and large arrays like; the
other puts them along the last one, for blocks of rows that fit into the cache.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from distill.kernels.column_invariants import column_invariants, column_invariants_gradient
from distill.kernels.contract import Species
from distill.kernels.element_weights import (
    affine,
    by_element,
    column_affine,
    column_affine_transposed,
)
from distill.kernels.invariants import Densities, invariants, invariants_gradient
from distill.kernels.kept import kept
from distill.kernels.moment_weights import MomentWeights

Energies = tuple[jax.Array, jax.Array, Densities]
"""Energies `[b]` (eV), last features `[b, H]`, and the gradient of the energies by densities."""


def energies_by_rows(weights: MomentWeights, densities: Densities, species: Species) -> Energies:
    """Energies, features and gradient of densities `[b, 2l + 1, channels]`."""
    raw = invariants(densities, weights.n_channels)

    mean, scale = (by_element(own, species, raw) for own in (weights.mean, weights.scale))

    def network(raw: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = (raw - mean) / scale
        for layer in weights.layers[:-1]:
            x = jax.nn.silu(affine(x, species, layer))
        return affine(x, species, weights.layers[-1])[:, 0] * weights.energy_scale, x

    energies, back, features = jax.vjp(network, raw, has_aux=True)
    (by_invariants,) = back(jnp.ones_like(energies))
    gradient = invariants_gradient(densities, weights.n_channels, by_invariants)
    return energies, features, gradient


def energies_by_columns(
    weights: MomentWeights, densities: Densities, species: Species, like: jax.Array
) -> Energies:
    """The same for blocks of rows that fit into the cache; for `like` see `kept`."""
    columns = kept(lambda: [jnp.moveaxis(own, 0, -1) for own in densities], like)
    raw = column_invariants(columns, weights.n_channels, like)

    mean, scale = (by_element(own, species, raw.T).T for own in (weights.mean, weights.scale))
    x = kept(lambda: (raw - mean) / scale, like)
    energies, features, gradient = _column_network(weights, x, species)
    by_densities = column_invariants_gradient(columns, weights.n_channels, gradient / scale, like)
    return energies, features.T, [jnp.moveaxis(own, -1, 0) for own in by_densities]


def _column_network(
    weights: MomentWeights, x: jax.Array, species: Species
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Energies `[b]`, last features `[H, b]` and the gradient by standardised invariants `[I, b]`.

    Written out, because the transpose that differentiation makes of a product is a slower one.
    """
    *hidden, last = weights.layers
    slopes = []
    for layer in hidden:
        own = column_affine(x, species, layer)
        logistic = jax.nn.sigmoid(own)
        slopes.append(logistic * (1 + own * (1 - logistic)))
        x = own * logistic
    energies = column_affine(x, species, last)[0] * weights.energy_scale
    by_last = jnp.broadcast_to(weights.energy_scale, (1, x.shape[1]))
    gradient = column_affine_transposed(by_last, species, last)
    for layer, slope in zip(reversed(hidden), reversed(slopes), strict=True):
        gradient = column_affine_transposed(gradient * slope, species, layer)
    return energies, x, gradient
