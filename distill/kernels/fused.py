"""The fused kernel: energy and gradient of a block of rows, from displacements to the end.

It runs under Pallas and is written for its Triton backend: rows stand along the last axis, where
neighbouring threads read neighbouring numbers; sizes are powers of two; nothing is sliced or
joined but by loads and stores; no index depends on data. The formulas are those of
`distill.kernels.moment`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill.kernels.angular import enveloped, without_envelope
from distill.kernels.fused_weights import FusedWeights
from distill.kernels.harmonics import harmonic_components, harmonics_slope
from distill.kernels.invariants import triple_products, triples_gradient
from distill.kernels.pair_slopes import cartesian
from distill.kernels.pair_terms import PairTerms, component_terms, next_function, next_slope

Groups = tuple[tuple[tuple[int, int], ...], ...]
"""For each group of slots its pieces `(start, size)`; sizes are powers of two."""


class Densities(NamedTuple):
    """Densities of a block of `b` rows, or the derivatives by them.

    Attributes:
        singles: `[S, b]`, l = 0.
        pairs: for each (l, m) `[P, b]`.
        triples: for each (l, m) `[T, b]`; empty if there are none.
    """

    singles: jax.Array
    pairs: list[jax.Array]
    triples: list[jax.Array]


def fused(
    vectors: Any, weights: FusedWeights, energy: Any, features: Any, gradient: Any, groups: Groups
) -> None:
    """Body of the kernel; all arguments but the last are references.

    Args:
        vectors: `[3, K, b]`, Å; read.
        weights: read.
        energy: `[1, b]`, eV; written.
        features: `[H, b]`, of the last hidden layer; written.
        gradient: `[3, K, b]`, eV/Å; written.
        groups: slots of each element.
    """
    densities = _zeros(weights, vectors)
    for number, pieces in enumerate(groups):
        densities = _add_densities(densities, weights, number, _terms(vectors, weights, pieces))
    energy[0, :], features[...], by_densities = _network(weights, densities)
    for number, pieces in enumerate(groups):
        terms = _terms(vectors, weights, pieces)
        slopes = _pair_slopes(by_densities, weights, number, terms)
        for (start, size), own, slope in zip(pieces, terms, slopes, strict=True):
            for axis, component in enumerate(cartesian(own, slope)):
                gradient[axis, start : start + size, :] = component


def _terms(vectors: Any, weights: FusedWeights, pieces: Any) -> list[PairTerms]:
    found = []
    for start, size in pieces:
        x, y, z = (vectors[axis, start : start + size, :] for axis in range(3))
        found.append(component_terms(x, y, z, weights.cutoff, weights.angular_cutoff))
    return found


def _components(own: PairTerms, weights: FusedWeights) -> list[jax.Array]:
    return harmonic_components(own.x, own.y, own.z, weights.max_l)


def _zeros(weights: FusedWeights, vectors: Any) -> Densities:
    rows, components = vectors.shape[-1], (weights.max_l + 1) ** 2

    def zeros(channels: int) -> jax.Array:
        return jnp.zeros((channels, rows), vectors.dtype)

    return Densities(
        zeros(weights.singles.shape[-1]),
        [zeros(weights.pairs.shape[-1])] * components,
        [] if weights.triples is None else [zeros(weights.triples.shape[-1])] * components,
    )


def _maps(weights: FusedWeights, group: int, radial: Any) -> Densities:
    """From one moment `[b]` of a group to the densities: columns `[channels, 1]`."""
    degrees = range(weights.max_l + 1)
    by_component = [degree for degree in degrees for _ in range(2 * degree + 1)]
    pairs = [weights.pairs[degree, group, radial][:, None] for degree in degrees]
    triples: list[jax.Array] = []
    if weights.triples is not None:
        triples = [weights.triples[degree, group, radial][:, None] for degree in degrees]
    return Densities(
        weights.singles[group, radial][:, None],
        [pairs[degree] for degree in by_component],
        [triples[degree] for degree in by_component if triples],
    )


def _loop(weights: FusedWeights, step: Any, start: Any) -> Any:
    # A loop over the radial functions keeps the program short; int32 is what Triton indexes with.
    count = np.int32(weights.singles.shape[1])
    return jax.lax.fori_loop(np.int32(0), count, step, start)


def _add_densities(
    densities: Densities, weights: FusedWeights, group: int, terms: list[PairTerms]
) -> Densities:
    harmonics = [enveloped(own, _components(own, weights)) for own in terms]

    def step(radial: Any, carry: Any) -> Any:
        before, now, densities = carry
        moments = [
            sum((part * own).sum(0) for part, own in zip(parts, now, strict=True))[None, :]
            for parts in zip(*harmonics, strict=True)
        ]
        maps = _maps(weights, group, radial)
        densities = Densities(
            densities.singles + maps.singles * moments[0],
            _add_products(densities.pairs, maps.pairs, moments),
            _add_products(densities.triples, maps.triples, moments if maps.triples else []),
        )
        following = [next_function(*each) for each in zip(terms, before, now, strict=True)]
        return now, following, densities

    before = [jnp.zeros_like(own.first) for own in terms]
    first = [own.first for own in terms]
    result: Densities = _loop(weights, step, (before, first, densities))[-1]
    return result


def _add_products(totals: Any, columns: Any, moments: Any) -> list[jax.Array]:
    return [
        total + column * moment
        for total, column, moment in zip(totals, columns, moments, strict=True)
    ]


def _pair_slopes(
    by_densities: Densities, weights: FusedWeights, group: int, terms: list[PairTerms]
) -> list[Any]:
    """For each piece the derivatives by distance and unit vector; see `pair_slopes.Slopes`."""
    harmonics = [enveloped(own, _components(own, weights)) for own in terms]

    def step(radial: Any, carry: Any) -> Any:
        maps = _maps(weights, group, radial)
        columns = [
            (column * d).sum(0) for column, d in zip(maps.pairs, by_densities.pairs, strict=True)
        ]
        columns[0] = columns[0] + (maps.singles * by_densities.singles).sum(0)
        if maps.triples:
            of_three = zip(columns, maps.triples, by_densities.triples, strict=True)
            columns = [own + (column * d).sum(0) for own, column, d in of_three]
        return [
            _radial_step(own, parts, [column[None, :] for column in columns], state)
            for own, parts, state in zip(terms, harmonics, carry, strict=True)
        ]

    zeros = [jnp.zeros_like(own.first) for own in terms]
    start = [
        (zero, own.first, zero, own.first_slope, zero, [zero] * len(parts))
        for zero, own, parts in zip(zeros, terms, harmonics, strict=True)
    ]
    slopes = []
    for own, (*_, along, by_harmonics) in zip(terms, _loop(weights, step, start), strict=True):
        by_components, of_envelope = without_envelope(own, _components(own, weights), by_harmonics)
        of_directions = harmonics_slope(own.x, own.y, own.z, by_components, weights.max_l)
        slopes.append((along + of_envelope, *of_directions))
    return slopes


def _radial_step(own: PairTerms, harmonics: Any, columns: Any, state: Any) -> Any:
    before, now, slope_before, slope, by_distance, by_harmonics = state
    along = sum(column * part for column, part in zip(columns, harmonics, strict=True))
    return (
        now,
        next_function(own, before, now),
        slope,
        next_slope(own, slope_before, slope, now),
        by_distance + along * slope,
        [total + column * now for total, column in zip(by_harmonics, columns, strict=True)],
    )


def _network(weights: FusedWeights, densities: Densities) -> tuple[Any, Any, Densities]:
    """Energies `[b]`, last features `[H, b]`, derivatives by the densities."""
    max_l = weights.max_l
    singles_mean = weights.singles_mean[...][:, None]
    before = weights.biases[0][...][:, None] + _dot(
        weights.singles_in[...], densities.singles - singles_mean
    )
    for degree in range(max_l + 1):
        own = densities.pairs[degree**2 : (degree + 1) ** 2]
        outer = sum(d[:, None, :] * d[None, :, :] for d in own) * (2 * degree + 1) ** -0.5
        flat = outer.reshape(-1, outer.shape[-1])
        mean = weights.pairs_mean[degree][:, None]
        before = before + _dot(weights.pairs_in[degree], flat - mean)
    products = triple_products(densities.triples, max_l) if densities.triples else []
    for number, product in enumerate(products):
        mean = weights.triples_mean[number][:, None]  # type: ignore[index]
        before = before + _dot(weights.triples_in[number], product - mean)  # type: ignore[index]

    inputs = [before]
    for layer, bias in zip(weights.layers, weights.biases[1:], strict=True):
        inputs.append(bias[...][:, None] + _dot(layer[...], _silu(inputs[-1])))
    features = _silu(inputs[-1])
    column = weights.energy[...][:, None]
    by_inputs = column * _silu_slope(inputs[-1])
    for layer, before in zip(weights.layers[::-1], inputs[-2::-1], strict=True):
        by_inputs = _transposed_dot(layer[...], by_inputs) * _silu_slope(before)
    return (column * features).sum(0), features, _by_densities(weights, densities, by_inputs)


def _by_densities(weights: FusedWeights, densities: Densities, by_inputs: jax.Array) -> Densities:
    by_pairs = []
    size = weights.pairs.shape[-1]
    for degree in range(weights.max_l + 1):
        flat = _transposed_dot(weights.pairs_in[degree], by_inputs)
        # The weights are symmetric in both channels: twice the derivative by one of them.
        by_outer = flat.reshape(size, size, -1) * (2 * (2 * degree + 1) ** -0.5)
        for own in densities.pairs[degree**2 : (degree + 1) ** 2]:
            by_pairs.append((by_outer * own[None, :, :]).sum(1))
    by_triples: list[jax.Array] = []
    if weights.triples_in is not None:
        by_products = [
            _transposed_dot(weights.triples_in[number], by_inputs)
            for number in range(weights.triples_in.shape[0])
        ]
        by_triples = triples_gradient(densities.triples, by_products, weights.max_l)
    return Densities(_transposed_dot(weights.singles_in[...], by_inputs), by_pairs, by_triples)


def _silu(x: jax.Array) -> jax.Array:
    return x * jax.lax.logistic(x)


def _silu_slope(x: jax.Array) -> jax.Array:
    share = jax.lax.logistic(x)
    return share * (1 + x * (1 - share))


def _dot(matrix: jax.Array, columns: jax.Array) -> jax.Array:
    """`[o, i], [i, b] -> [o, b]` in full precision: TF32 has three digits."""
    return jax.lax.dot(matrix, columns, precision=jax.lax.Precision.HIGHEST)


def _transposed_dot(matrix: jax.Array, columns: jax.Array) -> jax.Array:
    """`[o, i], [o, b] -> [i, b]`."""
    over_first = (((0,), (0,)), ((), ()))
    return jax.lax.dot_general(matrix, columns, over_first, precision=jax.lax.Precision.HIGHEST)
