"""Invariants of densities and their gradient, written by hand.

Automatic differentiation of the same formulas turns slices into padded sums and small products
into scatters, which cost twice as much on a CPU; a test holds the two against each other.
"""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from distill.kernels.harmonics import coupling, coupling_paths
from distill.kernels.pair_terms import unstack

Densities = list[jax.Array]
"""For each degree l `[b, 2l + 1, channels]`."""


def invariants(densities: Densities, n_channels: int) -> jax.Array:
    """`[b, I]`: densities of l = 0, products of two channels of equal l, products of three.

    Args:
        densities: the first `n_channels` channels are multiplied in pairs, the others in triples.
        n_channels: see there.
    """
    found = [densities[0][:, 0, :n_channels]]
    rows, columns = np.triu_indices(n_channels)
    # int32: an int64 index fails in traces that mix both settings of jax_enable_x64.
    upper = (rows * n_channels + columns).astype(np.int32)
    for density in densities:
        own = density[..., :n_channels]
        outer = (own[..., :, None] * own[..., None, :]).sum(1) / own.shape[1] ** 0.5
        found.append(outer.reshape(len(own), -1)[:, upper])
    components = _components(densities, n_channels)
    if components[0].shape[-1]:
        found += triple_products(components, len(densities) - 1)
    return jnp.concatenate(found, axis=-1)


def invariants_gradient(densities: Densities, n_channels: int, weights: jax.Array) -> Densities:
    """Derivative of `sum_I weights[:, I] invariants[:, I]` by the densities, of their shapes."""
    n_pairs = n_channels * (n_channels + 1) // 2
    index = symmetric_index(n_channels)
    # Equal channels count twice: their product is a square.
    twice = jnp.asarray(1.0 + np.eye(n_channels), weights.dtype)
    gradients = []
    for degree, density in enumerate(densities):
        own = density[..., :n_channels]
        start = n_channels + degree * n_pairs
        mixed = weights[:, start : start + n_pairs][:, index] * (twice / (2 * degree + 1) ** 0.5)
        gradients.append(jnp.einsum("bmc,bcd->bmd", own, mixed))
    gradients[0] = gradients[0] + weights[:, None, :n_channels]
    components, max_l = _components(densities, n_channels), len(densities) - 1
    width, start = components[0].shape[-1], n_channels + len(densities) * n_pairs
    triples = triples_gradient(
        components,
        [weights[:, at : at + width] for at in range(start, weights.shape[1], max(width, 1))],
        max_l,
    )
    return [
        jnp.concatenate([pair, jnp.stack(triples[l**2 : (l + 1) ** 2], axis=1)], axis=-1)
        for l, pair in enumerate(gradients)  # noqa: E741
    ]


def triple_products(components: list[jax.Array], max_l: int) -> list[jax.Array]:
    """Invariants of three densities, from their components of each (l, m), all of one shape."""
    found = []
    for terms in triple_terms(max_l):
        by_last: dict[int, list[jax.Array]] = {}
        for i, j, k, value in terms:
            by_last.setdefault(k, []).append(value * components[i] * components[j])
        products = [components[k] * sum(own[1:], own[0]) for k, own in by_last.items()]
        found.append(sum(products[1:], products[0]))
    return found


def triples_gradient(
    components: list[jax.Array], weights: list[jax.Array], max_l: int
) -> list[jax.Array]:
    """Derivative of the sum of `weights` times `triple_products` by each of the components."""
    gradients: list[jax.Array] = [jnp.zeros_like(own) for own in components]
    for own, terms in zip(weights, triple_terms(max_l), strict=bool(weights)):
        collected: dict[int, dict[tuple[int, int], float]] = {}
        for i, j, k, value in terms:
            for target, others in ((i, (j, k)), (j, (i, k)), (k, (i, j))):
                pairs = collected.setdefault(target, {})
                pairs[others] = pairs.get(others, 0.0) + value
        for target, pairs in collected.items():
            products = [v * components[i] * components[j] for (i, j), v in pairs.items()]
            gradients[target] = gradients[target] + own * sum(products[1:], products[0])
    return gradients


def _components(densities: Densities, n_channels: int) -> list[jax.Array]:
    """Channels of the triples for each (l, m), `[b, n_triples]` each."""
    return [own for density in densities for own in unstack(density[..., n_channels:])]


@lru_cache
def triple_terms(max_l: int) -> list[list[tuple[int, int, int, float]]]:
    """For each invariant of three: components (counted over all l, sorted) and their constants."""
    found = []
    for path in coupling_paths(max_l):
        constants = coupling(path)
        starts = [degree**2 for degree in path]
        # Components of equal degrees change places without a change of the product.
        summed: dict[tuple[int, int, int], float] = {}
        for place in zip(*np.nonzero(constants), strict=True):
            i, j, k = sorted(s + int(own) for s, own in zip(starts, place, strict=True))
            summed[i, j, k] = summed.get((i, j, k), 0.0) + float(constants[place])
        found.append([(*components, value) for components, value in summed.items()])
    return found


@lru_cache
def symmetric_index(n_channels: int) -> np.ndarray:
    """Where the product of channels (c, d) stands among those with c <= d, `[C, C]`."""
    rows, columns = np.triu_indices(n_channels)
    index = np.zeros((n_channels, n_channels), np.int32)
    index[rows, columns] = index[columns, rows] = np.arange(len(rows))
    return index
