"""Invariants and their gradient for few rows at a time: formulas of `invariants`, another layout.

Rows stand along the last axis here, so that every product and sum is one of whole registers,
however few channels there are. That is twice as fast where all arrays stay in the cache.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from distill.kernels.invariants import symmetric_index, triple_products, triples_gradient
from distill.kernels.kept import kept

Columns = list[jax.Array]
"""For each degree l `[2l + 1, channels, b]`."""


def column_invariants(densities: Columns, n_channels: int, like: jax.Array) -> jax.Array:
    """`[I, b]`, in the order of `invariants`.

    Args:
        densities: the first `n_channels` channels are multiplied in pairs, the others in triples.
        n_channels: see there.
        like: see `kept`.
    """

    def products() -> tuple[list[jax.Array], list[jax.Array]]:
        outer = []
        for own in densities:
            components = _components([own[:, :n_channels]])
            every = [one[:, None] * one[None] for one in components]
            outer.append(sum(every[1:], every[0]) / len(own) ** 0.5)
        return outer, triple_products(_triples(densities, n_channels), len(densities) - 1)

    outer, triples = kept(products, like)
    upper = [own[channel, channel:] for own in outer for channel in range(n_channels)]
    return jnp.concatenate([densities[0][0, :n_channels], *upper, *triples])


def column_invariants_gradient(
    densities: Columns, n_channels: int, weights: jax.Array, like: jax.Array
) -> Columns:
    """Derivative of `sum_I weights[I] column_invariants[I]` by the densities, of their shapes."""
    n_pairs = n_channels * (n_channels + 1) // 2
    index = symmetric_index(n_channels)
    # Equal channels count twice: their product is a square.
    twice = jnp.asarray(1.0 + np.eye(n_channels), weights.dtype)[..., None]
    components = _triples(densities, n_channels)
    width, start = len(components[0]), n_channels + len(densities) * n_pairs

    def sums() -> tuple[list[jax.Array], list[jax.Array]]:
        gradients = []
        for degree, own in enumerate(densities):
            first = n_channels + degree * n_pairs
            mixed = weights[first : first + n_pairs][index] * (twice / (2 * degree + 1) ** 0.5)
            gradients.append((own[:, :n_channels, None] * mixed).sum(axis=1))
        gradients[0] = gradients[0] + weights[None, :n_channels]
        by_products = [weights[at : at + width] for at in range(start, len(weights), max(width, 1))]
        return gradients, triples_gradient(components, by_products, len(densities) - 1)

    pairs, triples = kept(sums, like)
    return [
        jnp.concatenate([pair, jnp.stack(triples[l**2 : (l + 1) ** 2])], axis=1)
        for l, pair in enumerate(pairs)  # noqa: E741
    ]


def _components(arrays: Columns) -> list[jax.Array]:
    """Channels of each (l, m), `[channels, b]` each."""
    return [part.squeeze(0) for own in arrays for part in jnp.split(own, len(own))]


def _triples(densities: Columns, n_channels: int) -> list[jax.Array]:
    return _components([own[:, n_channels:] for own in densities])
