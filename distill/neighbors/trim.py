"""Images out of reach of the box are left out where it is small, so that most are.

A periodic box of one grid cell has 26 images of each atom, or more. Only those within the search
radius of the box can be neighbours: seven of 26 in a cube of two search radii.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from distill.kernels.kept import kept
from distill.neighbors.bits import WORD, below, ones, set_bits
from distill.neighbors.candidates import Images, Layout, Rows
from distill.neighbors.cell import heights
from distill.neighbors.grid import Grid
from distill.neighbors.search import Geometry

MARGIN = 1e-3
"""Share of the search radius that is added to it, more than rounding can be."""


MOST_WORDS = 256
"""Images are left out only where their bits take at most so many words, whose loop is unrolled."""


def trims(grid: Grid, n_atoms: int) -> bool:
    """Whether images out of reach are left out: where there is one home cell with a small halo."""
    return grid.n_home == 1 and 0 < len(grid.halo) * -(-n_atoms // WORD) <= MOST_WORDS


def kept_images(geometry: Geometry, fractional: np.ndarray) -> np.ndarray:
    """`[n]` int, images of each atom that are kept; fractional coordinates `[n, 3]`, any cell."""
    beyond = _beyond(geometry)
    place = fractional - np.floor(fractional)
    along = np.floor(1 + beyond - place) - np.ceil(-beyond - place) + 1
    return np.where(geometry.pbc, along, 1).prod(axis=1).astype(np.int64) - 1


def usual_images(geometry: Geometry) -> float:
    """Images of an atom that are kept, on average over all places in the box."""
    return float(np.where(geometry.pbc, 1 + 2 * _beyond(geometry), 1).prod()) - 1


def trimmed_images(layout: Layout, rows: Rows) -> Images:
    """As `make_images`, for a grid of one home cell, without the images out of reach of it."""
    grid, n, n_species = layout.grid, len(rows.order), len(rows.starts)
    shifts = grid.halo_shifts
    near = jnp.ones((len(shifts), n), bool)
    for axis in np.flatnonzero(grid.geometry.pbc):
        beyond = float(_beyond(grid.geometry)[axis])
        place = rows.wrapped[:, axis] + shifts[:, axis, None].astype(rows.wrapped.dtype)
        near &= (place >= -beyond) & (place <= 1 + beyond)
    n_words = -(-n // WORD)
    near = jnp.pad(near, ((0, 0), (0, n_words * WORD - n))).reshape(-1, WORD)
    bit = jnp.arange(WORD, dtype=jnp.int32)
    words = jnp.where(near, jnp.uint32(1) << bit.astype(jnp.uint32), 0).sum(1, dtype=jnp.uint32)
    ends = n + jnp.cumsum(ones(words), dtype=jnp.int32)
    before = ends - ones(words)

    # Written once: fused, it would be looked for again by each of its users.
    chosen = kept(
        lambda: set_bits(words[None], before[None] - n, layout.images - n)[0], rows.local[0]
    )
    filled, chosen = chosen >= 0, jnp.maximum(chosen, 0)
    place = jax.lax.div(chosen, np.int32(n_words * WORD))
    image_rows = jnp.where(filled, chosen - place * (n_words * WORD), n)
    whole = jnp.asarray(shifts, rows.offsets.dtype)[place]
    whole = whole - rows.offsets.at[image_rows].get(mode="clip")

    numbers = (before[:, None] + ones(words[:, None] & below(bit))).reshape(len(shifts), -1)
    # One more than all rows, where the last species ends.
    numbers = jnp.concatenate([numbers[:, :n], ends[n_words - 1 :: n_words, None]], axis=1)
    first_rows = rows.starts[:, 0]
    starts = numbers[:, first_rows].T
    counts = numbers[:, first_rows + rows.counts[:, 0]].T - starts
    empty = jnp.zeros((n_species, 1), jnp.int32)
    all_numbers = jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32), (len(grid.steps), n))
    return Images(
        rows=jnp.concatenate([jnp.arange(n, dtype=jnp.int32), image_rows]),
        shifts=jnp.concatenate([-rows.offsets, jnp.where(filled[:, None], whole, 0)]),
        starts=jnp.concatenate([rows.starts, starts, empty], axis=1),
        counts=jnp.concatenate([rows.counts, counts, empty], axis=1),
        total=ends[-1],
        # The padded cells are the steps from the only home cell, in the same order.
        numbers=all_numbers.at[grid.halo].set(numbers[:, :n]),
    )


def _beyond(geometry: Geometry) -> np.ndarray:
    """How far beyond the cell an image may lie, `[3]`, in units of its heights."""
    return (1 + MARGIN) * geometry.radius / heights(geometry.matrix)
