"""A shorter cutoff for harmonics of l > 0: angles are seen by near neighbours only.

Each such harmonic is multiplied by an envelope of the distance. What many teachers know of angles
ends well before their radial terms do, and a student that looks further only fits noise there.
"""

from __future__ import annotations

import jax

from distill.kernels.pair_terms import PairTerms


def enveloped(terms: PairTerms, components: list[jax.Array]) -> list[jax.Array]:
    """Harmonics `[...]` of each (l, m), those of l > 0 times their envelope if there is one."""
    if terms.angular is None:
        return components
    return [components[0], *(own * terms.angular for own in components[1:])]


def without_envelope(
    terms: PairTerms, components: list[jax.Array], by_components: list[jax.Array]
) -> tuple[list[jax.Array], jax.Array | float]:
    """From the derivatives by what `enveloped` gives to those by its arguments.

    Args:
        terms: of the pairs.
        components: the harmonics as they were given to `enveloped`.
        by_components: derivatives by those that it gave, of the same shapes.

    Returns:
        Derivatives by the harmonics, and by the distance through the envelope.
    """
    if terms.angular is None or terms.angular_slope is None or len(components) == 1:
        return by_components, 0.0
    angular, slope = terms.angular, terms.angular_slope
    along = sum(by * own for by, own in zip(by_components[1:], components[1:], strict=True))
    return [by_components[0], *(by * angular for by in by_components[1:])], along * slope
