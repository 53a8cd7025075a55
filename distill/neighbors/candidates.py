"""Who may be near whom: atoms sorted into grid cells, their images, candidates of each cell.

Pure functions of fixed shape. Rows are atoms sorted by species and then by grid cell, so that the
atoms of one species in one cell are consecutive; nothing but that sort and gathers is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill.neighbors.bits import WORD
from distill.neighbors.grid import Grid
from distill.neighbors.parts import Part

FAR = 1.0e6
"""Å, where candidates and rows that do not exist are put; their squares still fit float32."""

STEPS_AT_ONCE = 32
"""Cells around a cell that are compared in one fused loop."""


@dataclass(frozen=True)
class Layout:
    """Static sizes of a grouped list; hashable.

    Attributes:
        grid: the search grid.
        parts: of the rows, the one with the most slots last.
        images: extended atoms, `E`.
        rows_per_cell: atoms that a home cell of the grid can hold, `A`.
        words: candidates of a cell of each species, in words of 32.
    """

    grid: Grid
    parts: tuple[Part, ...]
    images: int
    rows_per_cell: int
    words: tuple[int, ...]

    @property
    def groups(self) -> tuple[int, ...]:
        """Slots of the widest rows for neighbours of each species, multiples of 8."""
        return self.parts[-1].groups

    @property
    def slots(self) -> int:
        """Of all rows."""
        return sum(part.count * part.slots for part in self.parts)

    @property
    def bits(self) -> int:
        """Low bits of a packed candidate, which number the step to its cell."""
        return max((len(self.grid.steps) - 1).bit_length(), 1)

    @property
    def step_mask(self) -> int:
        """Those bits of a packed candidate."""
        return (1 << self.bits) - 1


class Rows(NamedTuple):
    """Atoms sorted by species and grid cell.

    Attributes:
        order: `[n]` int32, the atom of each row.
        cells: `[n]` int32, home cell of each row.
        local: three arrays `[n]`, Å, place of each row relative to the middle of its grid cell.
        wrapped: `[n, 3]`, fractional coordinates of each row; within the cell along periodic
            directions.
        offsets: `[n, 3]`, whole cells that each row's atom lies away from home.
        starts: `[S, C]` int32, first row of a species in a cell.
        counts: `[S, C]` int32, rows of a species in a cell.
    """

    order: jax.Array
    cells: jax.Array
    local: tuple[jax.Array, ...]
    wrapped: jax.Array
    offsets: jax.Array
    starts: jax.Array
    counts: jax.Array


class Images(NamedTuple):
    """Extended atoms: the rows and then the images in the halo, cell by cell.

    Attributes:
        rows: `[E]` int32, the row of each extended atom; `n` for the padding.
        shifts: `[E, 3]`, whole cells to add to the positions as given.
        starts: `[S, C + H + 1]` int32, first extended atom of a species in a home cell, a cell of
            the halo or the empty cell.
        counts: `[S, C + H + 1]` int32, how many there are.
        total: `()` int32, how many images are not padding, rows included.
        numbers: `[D, n]` int32, the extended atom that is the image of each row in each of the
            cells around, where images out of reach are left out (see `trim`): the next one for
            images that are, without meaning for cells that have none. None where all are kept.
    """

    rows: jax.Array
    shifts: jax.Array
    starts: jax.Array
    counts: jax.Array
    total: jax.Array
    numbers: jax.Array | None = None


class Candidates(NamedTuple):
    """Extended atoms in the cells around each home cell, `W` in all, one species after another.

    Attributes:
        packed: `[W, C]` int32, the extended atom and, in the low bits, the step to its cell.
        rows: `[W, C]` int32, its row; `n` for none.
        starts: `[S, D, C]` int32, number of the first candidate of a species in each of the cells
            around, counted from the first of its species.
        overflow: `()` bool, a cell has more candidates than fit.
    """

    packed: jax.Array
    rows: jax.Array
    starts: jax.Array
    overflow: jax.Array


def sort_rows(
    grid: Grid, species: np.ndarray, n_species: int, positions: jax.Array, center: jax.Array
) -> Rows:
    """Sort atoms at `positions` `[n, 3]` (Å, wrapped or not).

    `center` `[3]` is where the grid's middle lies along free directions, in Å.
    """
    pbc = np.asarray(grid.geometry.pbc)
    cell = grid.geometry.matrix.astype(positions.dtype)
    inverse = np.linalg.inv(grid.geometry.matrix).astype(positions.dtype)
    counts = np.asarray(grid.counts)
    fractional = _product(positions, inverse)
    offsets = jnp.where(pbc, jnp.floor(fractional), 0)
    widths = grid.widths.astype(positions.dtype)
    place = jnp.where(
        pbc,
        (fractional - offsets) * counts.astype(positions.dtype),
        (fractional - center) / widths + (0.5 * counts).astype(positions.dtype),
    )
    layer = jnp.clip(jnp.floor(place), 0, (counts - 1).astype(positions.dtype))
    local = _product((place - layer - 0.5) * widths, cell)
    strides = np.asarray([counts[1] * counts[2], counts[2], 1], np.int32)
    cells = jnp.asarray(grid.rank)[(layer.astype(jnp.int32) * strides).sum(-1)]
    if grid.n_home == 1:  # Nothing depends on the positions then.
        order = jnp.asarray(np.argsort(species, kind="stable"), jnp.int32)
        all_starts = jnp.asarray(
            np.searchsorted(np.sort(species), np.arange(n_species + 1)), jnp.int32
        )
    else:
        keys = jnp.asarray(species) * np.int32(grid.n_home) + cells
        keys, order = sorted_keys(keys, n_species * grid.n_home)
        all_starts = jnp.searchsorted(
            keys, jnp.arange(n_species * grid.n_home + 1, dtype=jnp.int32)
        ).astype(jnp.int32)
    return Rows(
        order=order,
        cells=cells[order],
        local=tuple(local[order, axis] for axis in range(3)),
        wrapped=(fractional - offsets)[order],
        offsets=offsets[order],
        starts=all_starts[:-1].reshape(n_species, -1),
        counts=jnp.diff(all_starts).reshape(n_species, -1),
    )


def sorted_keys(keys: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Sorted keys `[n]` int32 below `count`, and where each one stood."""
    n = len(keys)
    number = jnp.arange(n, dtype=jnp.int32)
    if count * n > np.iinfo(np.int32).max:
        keys, order = jax.lax.sort((keys, number), num_keys=1, is_stable=False)
        return keys, order
    # One number for both is sorted several times faster than a pair.
    both = jax.lax.sort(keys * np.int32(n) + number, is_stable=False)
    keys = jax.lax.div(both, np.int32(n))
    return keys, both - keys * np.int32(n)


def make_images(layout: Layout, rows: Rows) -> Images:
    """Number the rows and the atoms of the halo's cells, cell by cell."""
    grid, n, n_species = layout.grid, len(rows.order), len(rows.starts)
    empty = jnp.zeros((n_species, 1), jnp.int32)
    home = grid.home[grid.halo]
    # Cell by cell and then by species, so that what is near in space is near in memory.
    counts = rows.counts[:, home].T.reshape(-1)
    ends = n + jnp.cumsum(counts, dtype=jnp.int32)
    starts = ends - counts
    image_rows = jnp.full(layout.images - n, n, jnp.int32)
    shifts = jnp.zeros((layout.images - n, 3), rows.offsets.dtype)
    if len(home):
        number = n + jnp.arange(layout.images - n, dtype=jnp.int32)
        place = jnp.searchsorted(ends, number, side="right").astype(jnp.int32)
        place = jnp.minimum(place, len(ends) - 1)
        first_row = rows.starts[:, home].T.reshape(-1)
        image_rows = jnp.where(number < ends[-1], (first_row - starts)[place] + number, n)
        whole = jnp.asarray(grid.halo_shifts, rows.offsets.dtype)[place // n_species]
        whole = whole - rows.offsets.at[image_rows].get(mode="clip")
        shifts = jnp.where((image_rows < n)[:, None], whole, 0)
    halo = (n_species, len(home))
    return Images(
        rows=jnp.concatenate([jnp.arange(n, dtype=jnp.int32), image_rows]),
        shifts=jnp.concatenate([-rows.offsets, shifts]),
        starts=jnp.concatenate([rows.starts, starts.reshape(halo[::-1]).T, empty], axis=1),
        counts=jnp.concatenate([rows.counts, counts.reshape(halo[::-1]).T, empty], axis=1),
        total=n + counts.sum(dtype=jnp.int32),
    )


def find_candidates(layout: Layout, images: Images) -> Candidates:
    """List what is in the cells around each home cell."""
    grid = layout.grid
    around = grid.blocks[grid.around]
    counts = images.counts[:, around]
    ends = jnp.cumsum(counts, axis=1, dtype=jnp.int32)
    starts = ends - counts
    firsts = images.starts[:, around] - starts
    values = (firsts << layout.bits) | jnp.arange(len(grid.steps), dtype=jnp.int32)[:, None]
    room = WORD * np.asarray(layout.words)
    overflow = (ends[:, -1] > room[:, None]).any()
    none = np.int32((layout.images - 1) << layout.bits)

    def found() -> tuple[jax.Array, jax.Array]:
        parts = []
        for kind in range(len(room)):
            number = jnp.arange(room[kind], dtype=jnp.int32)[:, None]
            value = _last_reached(number, starts[kind], values[kind])
            valid = number < ends[kind, -1]
            parts.append(jnp.where(valid, value + (number << layout.bits), none))
        packed = jnp.concatenate(parts)
        return packed, images.rows.at[packed >> layout.bits].get(mode="clip")

    def nothing() -> tuple[jax.Array, jax.Array]:
        shape = int(room.sum()), grid.n_home
        return jnp.full(shape, none), jnp.full(shape, images.rows[-1])

    # A branch ends a fused loop; fused into their users, the comparisons would be repeated.
    packed, rows = jax.lax.cond(overflow, nothing, found)
    return Candidates(packed, rows, starts, overflow)


def _last_reached(number: jax.Array, starts: jax.Array, values: jax.Array) -> jax.Array:
    """The value of the last segment that starts at or before each number.

    Args:
        number: `[W, 1]` int32.
        starts: `[D, C]` int32, not falling along the first axis; the first is 0.
        values: `[D, C]` int32.

    Returns:
        `[W, C]` int32.
    """
    chunks = -(-len(starts) // STEPS_AT_ONCE)
    padding = ((0, chunks * STEPS_AT_ONCE - len(starts)), (0, 0))
    size = (chunks, STEPS_AT_ONCE, starts.shape[1])
    starts = jnp.pad(starts, padding, constant_values=np.iinfo(np.int32).max).reshape(size)
    values = jnp.pad(values, padding).reshape(size)

    def chunk(value: jax.Array, given: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        for start, new in zip(*given, strict=True):
            value = jnp.where(number >= start, new, value)
        return value, None

    none = jnp.zeros((len(number), starts.shape[2]), jnp.int32)
    return jax.lax.scan(chunk, none, (starts, values))[0]


def _product(vectors: jax.Array, matrix: np.ndarray) -> jax.Array:
    """`vectors @ matrix` for `[n, 3]` and `[3, 3]`; GPUs would multiply float32 with ten bits."""
    return jnp.matmul(vectors, matrix, precision=jax.lax.Precision.HIGHEST)
