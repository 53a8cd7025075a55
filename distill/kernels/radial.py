"""Radial functions: Bessel functions under a smooth cutoff.

J. Gasteiger, J. Groß, S. Günnemann, "Directional Message Passing for Molecular Graphs",
ICLR 2020 (arXiv:2003.03123), eqs. 7 and 8.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def smooth_cutoff(distance: jax.Array, cutoff: float, power: int = 5) -> jax.Array:
    """Polynomial that is 1 at 0 and 0 from `cutoff` on, with two continuous derivatives.

    Args:
        distance: `[...]`, Å.
        cutoff: Å.
        power: the larger, the longer it stays near 1.
    """
    x = jnp.minimum(distance / cutoff, 1.0)
    p = power
    bracket = (p + 1) * (p + 2) / 2 - p * (p + 2) * x + p * (p + 1) / 2 * x**2
    return 1.0 - x**p * bracket


def bessel_basis(distance: jax.Array, cutoff: float, n_radial: int) -> jax.Array:
    """Functions `sqrt(2/cutoff) sin(n pi r / cutoff) / r` times the cutoff, `[..., n_radial]`.

    Args:
        distance: `[...]`, Å, larger than zero.
        cutoff: Å.
        n_radial: number of functions.
    """
    angle = jnp.pi * jnp.minimum(distance / cutoff, 1.0)
    waves = jnp.sin(angle[..., None] * jnp.arange(1, n_radial + 1, dtype=distance.dtype))
    scale = (2.0 / cutoff) ** 0.5 * smooth_cutoff(distance, cutoff) / distance
    return waves * scale[..., None]
