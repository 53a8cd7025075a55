"""How far atoms of each species may move until a list is made anew: heavy ones are slow.

At one temperature, atoms move in inverse proportion to the square root of their mass. So lists of
pairs of heavy atoms serve as long with a smaller skin, and have fewer pairs out of reach.
"""

from __future__ import annotations

import numpy as np
from ase.data import atomic_masses

LEAST_MARGIN = 0.06
"""Å, of every species where half the skin is more: relaxations move heavy atoms as far as light
ones, by up to 0.05 Å in a step."""


def thermal_margins(numbers: np.ndarray, species: np.ndarray, skin: float) -> tuple[float, ...]:
    """Å that atoms of each species may move, `[S]`: half the skin for the lightest atoms.

    Args:
        numbers: `[n]`, atomic numbers.
        species: `[n]`, in `0 ... S - 1`; species that do not occur move as the lightest atoms.
        skin: Å.
    """
    half = 0.5 * skin
    lightest = np.full(int(np.max(species)) + 1, np.inf)
    np.minimum.at(lightest, species, atomic_masses[numbers])
    slowness = np.sqrt(np.where(np.isfinite(lightest), lightest, 0.0) / lightest.min())
    margins = half / np.maximum(slowness, 1.0)
    return tuple(np.maximum(margins, min(half, LEAST_MARGIN)).tolist())
