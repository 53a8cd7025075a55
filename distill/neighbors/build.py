"""One rebuild of a grouped list, from positions to slots: a pure function of fixed shape."""

from __future__ import annotations

from functools import partial
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
from distill.neighbors.division import UNDIVIDED, Division
from distill.neighbors.pairs import Reach, fill_slots, find_reach, find_reverse
from distill.neighbors.parts import Part, place_rows, split_rows
from distill.neighbors.trim import trimmed_images, trims


class Found(NamedTuple):
    """Result of a rebuild; see `GroupedList` for the others.

    Attributes:
        lacking: `[3 + 2 S]` bool, which buffers were too small: images, rows of a grid cell,
            candidates, slots of each group, widest rows of each species. If any was, the list is
            without pairs.
    """

    order: jax.Array
    rows: jax.Array
    source: jax.Array
    shift: jax.Array
    neighbors: tuple[jax.Array, ...]
    reverse: tuple[jax.Array, ...]
    lacking: jax.Array


class Searched(NamedTuple):
    """What is known before slots are filled; `lacking` `[3]` as the first three of `Found`'s."""

    rows: Rows
    images: Images
    candidates: Candidates
    reach: Reach
    lacking: jax.Array


def search(
    layout: Layout,
    species: np.ndarray,
    positions: jax.Array,
    center: jax.Array,
    division: Division = UNDIVIDED,
) -> Searched:
    """Which candidates are within reach of each row; the groups of the layout are not used.

    Args:
        species: `[n]`, of the atoms.
        positions: `[n, 3]`, Å.
        center: `[3]`, Å, middle of the grid along free directions.
        division: of the work among devices.
    """
    n_species = len(layout.words)
    rows = sort_rows(layout.grid, species, n_species, positions, center)
    few = trims(layout.grid, len(species))
    images = trimmed_images(layout, rows) if few else make_images(layout, rows)
    candidates = find_candidates(layout, images)
    reach = find_reach(layout, np.sort(species), rows, candidates, division)
    lacking = jnp.stack(
        [
            images.total >= layout.images,
            reach.filling > layout.rows_per_cell,
            candidates.overflow,
        ]
    )
    return Searched(rows, images, candidates, reach, lacking)


def build(
    layout: Layout,
    species: np.ndarray,
    positions: jax.Array,
    center: jax.Array,
    division: Division = UNDIVIDED,
) -> Found:
    """Find all pairs; arguments as for `search`."""
    found = search(layout, species, positions, center, division)
    rows, images, _, reach, lacking = found
    kinds = np.sort(species)
    placed = place_rows(layout.parts, reach.counts(layout.words))
    # Without all candidates the counts mean nothing.
    crowded = jnp.concatenate([reach.needed > np.asarray(layout.groups), placed.lacking])
    lacking = jnp.concatenate([lacking, crowded & ~lacking.any()])
    neighbors, reverse = [], []
    places = split_rows(placed.rows, [part.count for part in layout.parts])
    for part, own in zip(layout.parts, places, strict=True):
        share = division.of(part.species)
        mine = _Own(share.rows(own), share.elements, part)
        others, mirrored = _filled(layout, kinds, found, placed.starts, lacking.any(), mine)
        neighbors.append(share.all_rows(others))
        reverse.append(share.all_rows(mirrored))
    order = jnp.append(rows.order, np.int32(len(species)))
    return Found(
        order=rows.order[placed.rows],
        rows=placed.rows,
        source=order[images.rows],
        shift=images.shifts,
        neighbors=tuple(neighbors),
        reverse=tuple(reverse),
        lacking=lacking,
    )


class _Own(NamedTuple):
    """Rows that a device fills.

    Attributes:
        rows: `[b]` int32.
        species: `[b]`, of each, static.
        part: to which they belong.
    """

    rows: jax.Array
    species: np.ndarray
    part: Part


def _filled(
    layout: Layout,
    kinds: np.ndarray,
    found: Searched,
    starts: jax.Array,
    lost: jax.Array,
    own: _Own,
) -> tuple[jax.Array, jax.Array]:
    """Neighbours and mirrored pairs of some rows, `[b, K]`; none where all is `lost`."""
    rows, images, candidates, reach, _ = found
    shape = len(own.species), own.part.slots

    def nothing() -> jax.Array:
        return jnp.full(shape, (layout.images - 1) << layout.bits, jnp.int32)

    # Branches end fused loops, in which XLA would otherwise search for each slot several times.
    fill = partial(fill_slots, layout, rows, candidates, reach, own.part.groups, own.rows)
    packed = jax.lax.cond(lost, nothing, fill)

    def mirrored() -> tuple[jax.Array, jax.Array]:
        pairs = packed, own.rows, own.species
        there = find_reverse(layout, kinds, rows, images, candidates, reach, starts, *pairs)
        return packed >> layout.bits, there

    def unpaired() -> tuple[jax.Array, jax.Array]:
        return packed >> layout.bits, jnp.full(shape, layout.slots, jnp.int32)

    neighbors, reverse = jax.lax.cond(lost, unpaired, mirrored)
    return neighbors, reverse
