"""Pairs from candidates: distances as bits, slots by selecting bits, mirrored pairs by ranks.

Whether a pair is within reach is decided from places relative to grid cells, in a formula that is
exactly odd under exchange. So a pair and its mirrored pair are found together or not at all,
whatever the rounding, and the slot of the mirrored pair follows by counting bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill.kernels.kept import kept
from distill.neighbors.bits import SHIFT, WORD, below, ones, set_bits
from distill.neighbors.candidates import FAR, Candidates, Images, Layout, Rows
from distill.neighbors.division import UNDIVIDED, Division

FEW = 2**16
"""Words of bits, up to which no loop is made over them."""


class Reach(NamedTuple):
    """Which candidates are within reach of each row; `Q` words for all species, one by one.

    Attributes:
        words: `[Q, C * A]` uint32, a bit for each candidate of the cell.
        before: `[Q, C * A]` int32, bits set in the words before, of the same species.
        places: `[n]` int32, where each row is in the second axis.
        needed: `[S]` int32, most neighbours of each species that a row has.
        filling: `()` int32, most rows in a cell.
    """

    words: jax.Array
    before: jax.Array
    places: jax.Array
    needed: jax.Array
    filling: jax.Array

    def counts(self, words: Sequence[int]) -> jax.Array:
        """Neighbours of each row, by species, `[S, n]` int32; `words` as in `Layout`."""
        return _counts(self.words, self.before, np.asarray(words))[:, self.places]


def find_reach(
    layout: Layout,
    species: np.ndarray,
    rows: Rows,
    candidates: Candidates,
    division: Division = UNDIVIDED,
) -> Reach:
    """Compare every row with all candidates of its cell.

    Args:
        species: `[n]` species of each row (sorted).
        division: of the cells among devices.
    """
    n, n_cells, width = len(species), layout.grid.n_home, layout.rows_per_cell
    words = np.asarray(layout.words)
    first_word = np.cumsum(words) - words
    filled = jnp.cumsum(rows.counts, axis=0, dtype=jnp.int32) - rows.counts
    in_cell = jnp.arange(n, dtype=jnp.int32) - rows.starts[species, rows.cells]
    slot = jnp.minimum(filled[species, rows.cells] + in_cell, width - 1)

    # Rows of each cell, [C, A]; `n` for none.
    number = jnp.arange(width, dtype=jnp.int32)
    total = rows.counts.sum(0, dtype=jnp.int32)
    home = jnp.zeros((n_cells, width), jnp.int32)
    for kind in range(len(words)):
        here = number >= filled[kind][:, None]
        home = jnp.where(here, (rows.starts[kind] - filled[kind])[:, None] + number, home)
    home = division.part(jnp.where(number < total[:, None], home, n), 0)
    own_cells = len(home)

    at = jnp.minimum(home, n - 1)
    places = [jnp.where(home < n, x[at], -FAR) for x in rows.local]
    middle = len(layout.grid.steps) // 2
    own = candidates.starts[species, middle, rows.cells] + in_cell
    own = own + jnp.asarray((WORD * first_word)[species], jnp.int32)
    own = jnp.where(home < n, own[at], -1)
    limit = jnp.asarray(layout.grid.geometry.radius**2, rows.local[0].dtype)

    def word(given: tuple[jax.Array, ...]) -> jax.Array:
        index, *arrays = given
        local, steps = arrays[:3], arrays[3:]
        found = jnp.zeros((own_cells, width), jnp.uint32)
        for bit in range(WORD):
            squared = jnp.zeros((), limit.dtype)
            for x, u, d in zip(places, local, steps, strict=True):
                squared = squared + ((u[bit][:, None] - x) + d[bit][:, None]) ** 2
            found = found | jnp.where(squared < limit, jnp.uint32(1 << bit), jnp.uint32(0))
        itself = jnp.where(
            own // WORD == index, jnp.uint32(1) << (own % WORD).astype(jnp.uint32), 0
        )
        return found & ~itself

    others = division.part(candidates.rows, 1)
    at = jnp.minimum(others, n - 1)
    there = [jnp.where(others < n, x[at], FAR) for x in rows.local]
    step = division.part(candidates.packed, 1) & layout.step_mask
    offsets = layout.grid.offsets.astype(limit.dtype)
    there += [jnp.asarray(offsets[:, axis])[step] for axis in range(3)]
    arrays = [x.reshape(-1, WORD, own_cells) for x in there]
    # A loop over words keeps large arrays in the cache; for small ones it is what takes time.
    few = words.sum() * n_cells * width <= FEW
    over_words = jax.vmap(word) if few else partial(jax.lax.map, word)
    found = over_words((jnp.arange(words.sum(), dtype=jnp.int32), *arrays))
    found = division.all_parts(found, 1, n_cells).reshape(-1, n_cells * width)
    before = (_before_by_product if few else _before)(found, words)
    return Reach(
        words=found,
        before=before,
        places=rows.cells * width + slot,
        needed=_counts(found, before, words).max(axis=1),
        filling=total.max(),
    )


def _counts(found: jax.Array, before: jax.Array, words: np.ndarray) -> jax.Array:
    last = np.where(words > 0, np.cumsum(words) - 1, 0)
    return jnp.where(words[:, None] > 0, before[last] + ones(found[last]), 0)


def _before(found: jax.Array, words: np.ndarray) -> jax.Array:
    """Bits set in the words before each, of the same species: `[Q, N]` int32 of `[Q, N]`."""
    starts_group = np.isin(np.arange(words.sum()), np.cumsum(words) - words)

    def count(before: jax.Array, given: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        first, bits = given
        before = jnp.where(first, 0, before)
        return before + ones(bits), before

    zero = jnp.zeros(found.shape[1], jnp.int32)
    return jax.lax.scan(count, zero, (jnp.asarray(starts_group), found))[1]


def _before_by_product(found: jax.Array, words: np.ndarray) -> jax.Array:
    """The same in one operation; exact, because float32 holds all whole numbers up to 2**24."""
    kind = np.repeat(np.arange(len(words)), words)
    earlier = np.tril(kind[:, None] == kind, -1).astype(np.float32)
    counts = ones(found).astype(jnp.float32)
    return jnp.matmul(earlier, counts, precision=jax.lax.Precision.HIGHEST).astype(jnp.int32)


def fill_slots(
    layout: Layout,
    rows: Rows,
    candidates: Candidates,
    reach: Reach,
    groups: Sequence[int],
    own: jax.Array,
) -> jax.Array:
    """Packed candidates `[b, K]` int32 within reach of the rows `own` `[b]`, by species."""
    places, cells = reach.places[own], rows.cells[own]
    words = reach.words[:, places].T
    before = reach.before[:, places].T
    parts, first = [], 0
    for n_words, slots in zip(layout.words, groups, strict=True):
        if n_words:
            mine = slice(first, first + n_words)
            places = set_bits(words[:, mine], before[:, mine], slots)
            parts.append(jnp.where(places >= 0, places + first * WORD, -1))
        first += n_words
    place = jnp.concatenate(parts, axis=1)
    packed = candidates.packed.reshape(-1)
    found = packed.at[place * layout.grid.n_home + cells[:, None]].get(mode="clip")
    return jnp.where(place >= 0, found, np.int32((layout.images - 1) << layout.bits))


def find_reverse(
    layout: Layout,
    species: np.ndarray,
    rows: Rows,
    images: Images,
    candidates: Candidates,
    reach: Reach,
    starts: jax.Array,
    packed: jax.Array,
    own: jax.Array,
    kinds: np.ndarray,
) -> jax.Array:
    """The mirrored pair of each slot, as its number among all slots, `[b, K]` int32.

    It is the number of all slots for empty ones.

    Args:
        species: `[n]`, of each row (sorted).
        starts: see `parts.Placed`.
        packed: `[b, K]`, what the slots of some rows hold.
        own: `[b]`, these rows.
        kinds: `[b]`, their species, static.

    Row `i` is among the candidates of its neighbour `j`; its slot there is the number of bits set
    before its own.
    """
    n, width, n_cells = len(species), layout.rows_per_cell, layout.grid.n_home
    words = np.asarray(layout.words)
    first_word = (np.cumsum(words) - words).astype(np.int32)
    n_steps = len(layout.grid.steps)
    number = jnp.arange(n, dtype=jnp.int32)
    in_cell = (number - rows.starts[species, rows.cells])[own]
    all_starts = candidates.starts.reshape(-1)

    def of_rows(values: np.ndarray) -> jax.Array:
        """A column of what each species has, `[S]`, by row."""
        return jnp.asarray(values[kinds], jnp.int32)[:, None]

    # A CPU writes what other gathers need first: fused, these would repeat it.
    written = partial(kept, like=rows.local[0])
    other = written(lambda: images.rows[packed >> layout.bits])
    step = packed & layout.step_mask
    # The only cell has a place for every row, in the order of the rows.
    there = other
    if n_cells > 1:
        there = written(lambda: reach.places.at[other].get(mode="clip"))
    opposite = of_rows(np.arange(len(words)) * n_steps + n_steps - 1) - step

    def find_ranks() -> jax.Array:
        """Of each row in each of the cells around, where images out of reach are left out."""
        assert images.numbers is not None
        first = images.starts[:, layout.grid.blocks[layout.grid.around[:, 0]]]
        by_species = candidates.starts[:, :, 0] - first
        counts = np.bincount(species, minlength=len(words)).tolist()
        by_row = [
            jnp.broadcast_to(first_rank[:, None], (n_steps, count))
            for first_rank, count in zip(by_species, counts, strict=True)
        ]
        return (images.numbers + jnp.concatenate(by_row, axis=1)).reshape(-1)

    all_ranks = None if images.numbers is None else written(find_ranks)

    def find_rank() -> jax.Array:
        if all_ranks is None:
            cell = jax.lax.div(there, np.int32(width))
            return all_starts[opposite * n_cells + cell] + in_cell[:, None]
        return all_ranks[(n_steps - 1 - step) * n + own[:, None]]

    rank = written(find_rank)
    word = of_rows(first_word) + (rank >> SHIFT)
    place = word * (n_cells * width) + there
    bits = reach.words.reshape(-1).at[place].get(mode="clip") & below(rank & (WORD - 1))
    slot = reach.before.reshape(-1).at[place].get(mode="clip") + ones(bits)
    begin = of_rows(np.arange(len(words)) * n)
    found = starts.reshape(-1).at[begin + other].get(mode="clip") + slot
    return jnp.where(other < n, jnp.minimum(found, layout.slots), layout.slots)
