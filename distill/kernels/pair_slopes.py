"""From the gradient by an atom's moments to that by its pairs, in two ways with one result.

A moment is a sum over pairs of a harmonic times a radial function. Its derivative by a pair needs
all harmonics weighted for each radial function and the reverse: as products of small matrices,
which automatic differentiation handles well, or as sums written out, which are twice as fast where
what they give is kept in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from distill.kernels.angular import enveloped, without_envelope
from distill.kernels.harmonics import harmonic_components, harmonics_slope
from distill.kernels.kept import kept
from distill.kernels.pair_terms import PairTerms, radial_functions, radial_slope, unstack

Slopes = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
"""Derivatives `[b, K]` by the distance, and by x, y, z of the unit vector as if independent."""


class PairBasis(NamedTuple):
    """Pairs of one group of slots.

    Attributes:
        terms: of the pairs, `[b, k]`.
        harmonics: `[b, M, k]`, `M = (max_l + 1)²`, with their envelope if there is one.
        radial: `[b, R, k]`.
    """

    terms: PairTerms
    harmonics: jax.Array
    radial: jax.Array


def pair_basis(terms: PairTerms, slots: slice, n_radial: int, max_l: int) -> PairBasis:
    """Harmonics and radial functions of the pairs in some slots."""
    own = jax.tree.map(lambda leaf: leaf[:, slots], terms)
    harmonics = enveloped(own, harmonic_components(own.x, own.y, own.z, max_l))
    radial = radial_functions(own, n_radial)
    return PairBasis(own, jnp.stack(harmonics, axis=1), jnp.stack(radial, axis=1))


def slopes_by_products(
    bases: Sequence[PairBasis], by_moments: Sequence[jax.Array], max_l: int
) -> Slopes:
    """Gradient by the pairs of all groups, from that by the moments `[b, M, R]` of each."""
    slopes = []
    for (own, harmonics, radial), by_group in zip(bases, by_moments, strict=True):
        # Sums over the last axis of the left factor are the fast ones.
        by_radial = jnp.einsum("brm,bmk->brk", jnp.swapaxes(by_group, 1, 2), harmonics)
        by_harmonics = jnp.einsum("bmr,brk->bmk", by_group, radial)
        slopes.append(_slopes(own, by_radial, by_harmonics, max_l))
    joined = [jnp.concatenate(each, axis=-1) for each in zip(*slopes, strict=True)]
    return joined[0], joined[1], joined[2], joined[3]


def slopes_by_sums(
    bases: Sequence[PairBasis], by_moments: Sequence[jax.Array], max_l: int
) -> Slopes:
    """As `slopes_by_products`, for blocks of rows that fit into the cache."""
    sums = []
    for (own, _, radial), by_group in zip(bases, by_moments, strict=True):

        def by_harmonics(own: PairTerms = own, weights: jax.Array = by_group) -> jax.Array:
            return weighted_sums(weights, radial_functions(own, weights.shape[2]))

        def by_radial(own: PairTerms = own, weights: jax.Array = by_group) -> jax.Array:
            components = enveloped(own, harmonic_components(own.x, own.y, own.z, max_l))
            return weighted_sums(jnp.swapaxes(weights, 1, 2), components)

        sums.append((kept(by_radial, radial[:, 0]), kept(by_harmonics, radial[:, 0])))
    # All groups at once from here on: a concatenation of formulas would not be vectorised.
    joined = [jnp.concatenate(each, axis=-1) for each in zip(*sums, strict=True)]
    terms = jax.tree.map(lambda *own: jnp.concatenate(own, axis=-1), *[b.terms for b in bases])
    return _slopes(terms, joined[0], joined[1], max_l)


def _slopes(terms: PairTerms, by_radial: jax.Array, by_harmonics: jax.Array, max_l: int) -> Slopes:
    """From the derivatives by radial functions `[b, R, K]` and by harmonics `[b, M, K]`."""
    along, by_components = radial_slope(terms, by_radial), unstack(by_harmonics)
    if terms.angular is not None:
        components = harmonic_components(terms.x, terms.y, terms.z, max_l)
        by_components, of_envelope = without_envelope(terms, components, by_components)
        along = along + of_envelope
    return (along, *harmonics_slope(terms.x, terms.y, terms.z, by_components, max_l))


def weighted_sums(weights: jax.Array, arrays: Sequence[jax.Array]) -> jax.Array:
    """`[b, out, k]`, sums of the arrays `[b, k]` with weights `[b, out, in]`."""
    parts = unstack(jnp.swapaxes(weights, 1, 2))
    total = parts[0][:, :, None] * arrays[0][:, None, :]
    for part, array in zip(parts[1:], arrays[1:], strict=True):
        total = total + part[:, :, None] * array[:, None, :]
    return total


def cartesian(terms: PairTerms, slopes: Slopes) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradient by the displacement, three components `[b, K]` in eV/Å."""
    radial, x, y, z = slopes
    along = x * terms.x + y * terms.y + z * terms.z
    common = radial - along * terms.inverse_distance
    return (
        x * terms.inverse_distance + common * terms.x,
        y * terms.inverse_distance + common * terms.y,
        z * terms.inverse_distance + common * terms.z,
    )
