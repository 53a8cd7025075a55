"""What a density model needs of each pair, with derivatives, from nothing but products and sums.

All Bessel functions of a pair follow from a sine and a cosine by the recurrence of Chebyshev
polynomials, `B_(n+1) = 2 cos(pi r / cutoff) B_n - B_(n-1)`; both are polynomials here, because the
argument never leaves half a period and library functions cost more than everything else together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

TINY_DISTANCE_SQUARED = 1e-12
"""Å²; keeps the norm of a zero-length pair differentiable, invisible at any real distance."""

CUTOFF_POWER = 5
"""Of the polynomial that ends the radial functions, see `radial.smooth_cutoff`."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PairTerms:
    """Per pair, arrays of one shape `[...]`; derivatives are with respect to the distance.

    Attributes:
        twice_cosine: 2 cos(pi r / cutoff), with which the recurrence is made.
        first: the first radial function.
        twice_cosine_slope: derivative of `twice_cosine`.
        first_slope: derivative of `first`.
        x, y, z: components of the unit vector.
        inverse_distance: 1/Å.
        angular: envelope of the harmonics of l > 0, None where they end with the radial functions.
        angular_slope: its derivative.
    """

    twice_cosine: jax.Array
    first: jax.Array
    twice_cosine_slope: jax.Array
    first_slope: jax.Array
    x: jax.Array
    y: jax.Array
    z: jax.Array
    inverse_distance: jax.Array
    angular: jax.Array | None = None
    angular_slope: jax.Array | None = None


def _as_it_is(function: Callable[[], Any]) -> Any:
    return function()


def pair_terms(displacements: jax.Array, cutoff: float, angular_cutoff: float = 0.0) -> PairTerms:
    """Terms of pairs with displacements `[..., 3]` in Å."""
    x, y, z = (displacements[..., axis] for axis in range(3))
    return component_terms(x, y, z, cutoff, angular_cutoff)


def component_terms(
    x: jax.Array,
    y: jax.Array,
    z: jax.Array,
    cutoff: float,
    angular_cutoff: float = 0.0,
    keep: Callable[[Callable[[], Any]], Any] = _as_it_is,
) -> PairTerms:
    """Terms of pairs with displacements `x`, `y`, `z`, of one shape each, in Å.

    `angular_cutoff` is that of the harmonics of l > 0; 0 for none of their own. `keep` gives what a
    function gives; it may see to it that arrays with several users are written, see `kept`.
    """

    def distances() -> tuple[jax.Array, jax.Array]:
        squared = x * x + y * y + z * z + TINY_DISTANCE_SQUARED
        inverse = jax.lax.rsqrt(squared)
        return squared * inverse, inverse

    distance, inverse = keep(distances)

    def functions() -> tuple[Any, ...]:
        share = jnp.minimum(distance * (1.0 / cutoff), 1.0)
        angular: tuple[jax.Array | None, ...] = None, None
        if angular_cutoff:
            near = jnp.minimum(distance * (1.0 / angular_cutoff), 1.0)
            angular = _envelope(near, angular_cutoff)
        return half_angle(share), _envelope(share, cutoff), angular

    half, (envelope, slope), angular = keep(functions)

    def terms() -> tuple[tuple[jax.Array, ...], ...]:
        sine, cosine = doubled(*half)
        norm, wave = (2.0 / cutoff) ** 0.5, math.pi / cutoff
        scale = norm * envelope * inverse
        scale_slope = norm * slope * inverse - scale * inverse
        first_slope = scale_slope * sine + scale * wave * cosine
        waves = 2.0 * cosine, scale * sine, -2.0 * wave * sine, first_slope
        return waves, (x * inverse, y * inverse, z * inverse)

    waves, directions = keep(terms)
    every = (*waves, *directions, inverse, *angular)
    return PairTerms(*every)


def _envelope(share: jax.Array, cutoff: float) -> tuple[jax.Array, jax.Array]:
    """The polynomial of `radial.smooth_cutoff` and its derivative, for distances over `cutoff`."""
    p = CUTOFF_POWER
    bracket = (p + 1) * (p + 2) / 2 - share * (p * (p + 2) - share * (p * (p + 1) / 2))
    fourth = (share * share) ** 2
    slope = -(p * (p + 1) * (p + 2) / 2 / cutoff) * fourth * (1.0 - share) ** 2
    return 1.0 - fourth * share * bracket, slope


def half_angle(share: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sine and cosine of `pi / 2 share` for shares from 0 to 1, to the precision of the dtype.

    The Taylor series of half the angle converge at once; see `doubled`.
    """
    terms = 12 if share.dtype == jnp.float64 else 7
    square = share * share
    sine = share * _series([_half_turn(2 * k + 1) * (-1) ** k for k in range(terms)], square)
    return sine, _series([_half_turn(2 * k) * (-1) ** k for k in range(terms + 1)], square)


def doubled(sine: jax.Array, cosine: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sine and cosine of twice an angle."""
    return 2.0 * sine * cosine, 1.0 - 2.0 * sine * sine


def radial_functions(terms: PairTerms, n_radial: int) -> list[jax.Array]:
    """The radial functions, `n_radial` arrays `[...]`."""
    before, now = jnp.zeros_like(terms.first), terms.first
    functions = [now]
    for _ in range(n_radial - 1):
        before, now = now, next_function(terms, before, now)
        functions.append(now)
    return functions


def radial_slope(terms: PairTerms, weights: jax.Array) -> jax.Array:
    """`sum_n weights[:, n] dB_n/dr`, `[b, K]`, for weights `[b, n_radial, K]`."""
    before, now = jnp.zeros_like(terms.first), terms.first
    slope_before, slope = jnp.zeros_like(terms.first), terms.first_slope
    own, *others = unstack(weights)
    total = own * slope
    for own in others:
        slope_before, slope = slope, next_slope(terms, slope_before, slope, now)
        before, now = now, next_function(terms, before, now)
        total = total + own * slope
    return total


def next_function(terms: PairTerms, before: jax.Array, now: jax.Array) -> jax.Array:
    """The radial function after `now`, from it and the one before."""
    return terms.twice_cosine * now - before


def next_slope(
    terms: PairTerms, slope_before: jax.Array, slope: jax.Array, now: jax.Array
) -> jax.Array:
    """Derivative of `next_function` by the distance."""
    return terms.twice_cosine * slope - slope_before + terms.twice_cosine_slope * now


def unstack(array: jax.Array) -> list[jax.Array]:
    """Parts along axis 1, which is left out.

    The transpose of a split is a concatenation; that of a slice is a sum of padded arrays.
    """
    return [part.squeeze(1) for part in jnp.split(array, array.shape[1], axis=1)]


def _half_turn(power: int) -> float:
    return float((np.pi / 2) ** power / math.factorial(power))


def _series(coefficients: list[float], x: jax.Array) -> jax.Array:
    total = jnp.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total = total * x + coefficient
    return total
