"""From densities to energies, and back to the gradient by densities: two ways with one result.

One keeps rows along the first axis, which automatic differentiation and large arrays like; the
other puts them along the last one, for blocks of rows that fit into the cache.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from distill.kernels.column_invariants import column_invariants, column_invariants_gradient
from distill.kernels.contract import Species
from distill.kernels.element_weights import affine, by_element
from distill.kernels.invariants import Densities, invariants, invariants_gradient
from distill.kernels.kept import kept
from distill.kernels.moment_weights import MomentWeights

Energies = tuple[jax.Array, jax.Array, Densities]
"""Energies `[b]` (eV), last features `[b, H]`, and the gradient of the energies by densities."""


def energies_by_rows(weights: MomentWeights, densities: Densities, species: Species) -> Energies:
    """Energies, features and gradient of densities `[b, 2l + 1, channels]`."""
    raw = invariants(densities, weights.n_channels)

    def network(raw: jax.Array) -> tuple[jax.Array, jax.Array]:
        mean, scale = (by_element(own, species, raw) for own in (weights.mean, weights.scale))
        return _network(weights, (raw - mean) / scale, species)

    energies, features, by_invariants = _with_gradient(network, raw)
    gradient = invariants_gradient(densities, weights.n_channels, by_invariants)
    return energies, features, gradient


def energies_by_columns(
    weights: MomentWeights, densities: Densities, species: Species, like: jax.Array
) -> Energies:
    """The same for blocks of rows that fit into the cache; for `like` see `kept`."""
    columns = kept(lambda: [jnp.moveaxis(own, 0, -1) for own in densities], like)
    raw = column_invariants(columns, weights.n_channels, like)

    def network(raw: jax.Array) -> tuple[jax.Array, jax.Array]:
        mean, scale = (by_element(own, species, raw.T).T for own in (weights.mean, weights.scale))
        return _network(weights, ((raw - mean) / scale).T, species)

    energies, features, by_invariants = _with_gradient(network, raw)
    gradient = column_invariants_gradient(columns, weights.n_channels, by_invariants, like)
    return energies, features, [jnp.moveaxis(own, -1, 0) for own in gradient]


def _with_gradient(
    network: Callable[[jax.Array], tuple[jax.Array, jax.Array]], raw: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Energies, features, and the gradient of the energies by what the network is given."""
    energies, back, features = jax.vjp(network, raw, has_aux=True)
    (by_invariants,) = back(jnp.ones_like(energies))
    return energies, features, by_invariants


def _network(weights: MomentWeights, x: jax.Array, species: Species) -> tuple[jax.Array, jax.Array]:
    """Energies and last features from standardised invariants `[b, I]`."""
    for layer in weights.layers[:-1]:
        x = jax.nn.silu(affine(x, species, layer))
    return affine(x, species, weights.layers[-1])[:, 0] * weights.energy_scale, x
