"""One rebuild of a grouped list, from positions to slots: a pure function of fixed shape."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill.neighbors.candidates import (
    Candidates,
    Images,
    Layout,
    Rows,
    find_candidates,
    make_images,
    sort_rows,
)
from distill.neighbors.pairs import Reach, fill_slots, find_reach, find_reverse

BLOCK_ROWS = 128
"""Rows handled together on a CPU, so that what they need stays in its caches."""


class Found(NamedTuple):
    """Result of a rebuild; see `GroupedList` for the first five.

    Attributes:
        overflow: `()` bool, a buffer was too small.
    """

    order: jax.Array
    source: jax.Array
    shift: jax.Array
    neighbors: jax.Array
    reverse: jax.Array
    overflow: jax.Array


class Searched(NamedTuple):
    """What is known before slots are filled."""

    rows: Rows
    images: Images
    candidates: list[Candidates]
    reach: Reach
    lost: jax.Array


def search(
    layout: Layout, species: np.ndarray, positions: jax.Array, center: jax.Array
) -> Searched:
    """Which candidates are within reach of each row; the groups of the layout are not used.

    Args:
        species: `[n]`, of the atoms.
        positions: `[n, 3]`, Å.
        center: `[3]`, Å, middle of the grid along free directions.
    """
    n_species = len(layout.words)
    rows = sort_rows(layout.grid, species, n_species, positions, center)
    images = make_images(layout, rows)
    candidates = [find_candidates(layout, rows, images, kind) for kind in range(n_species)]
    reach = find_reach(layout, np.sort(species), rows, candidates)
    lost = (images.total >= layout.images) | (reach.filling > layout.rows_per_cell)
    for found, words in zip(candidates, layout.words, strict=True):
        lost |= (found.counts > 32 * words).any()
    return Searched(rows, images, candidates, reach, lost)


def build(
    layout: Layout, species: np.ndarray, positions: jax.Array, center: jax.Array
) -> Found:
    """Find all pairs; arguments as for `search`."""
    rows, images, candidates, reach, lost = search(layout, species, positions, center)
    block = BLOCK_ROWS if jax.default_backend() == "cpu" else len(species)
    packed = fill_slots(layout, rows, candidates, reach, block)
    reverse = find_reverse(layout, np.sort(species), rows, images, candidates, reach, packed)
    order = jnp.append(rows.order, np.int32(len(species)))
    return Found(
        order=rows.order,
        source=order[images.rows],
        shift=images.shifts,
        neighbors=packed >> layout.bits,
        reverse=reverse,
        overflow=lost | (reach.needed > np.asarray(layout.groups)).any(),
    )
