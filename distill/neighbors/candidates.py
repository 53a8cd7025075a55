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

FAR = 1.0e6
"""Å, where candidates and rows that do not exist are put; their squares still fit float32."""

STEPS_AT_ONCE = 9
"""Cells around a cell that are compared in one fused loop."""


@dataclass(frozen=True)
class Layout:
    """Static sizes of a grouped list; hashable.

    Attributes:
        grid: the search grid.
        groups: slots of each row for neighbours of each species, multiples of 8.
        images: extended atoms, `E`.
        rows_per_cell: atoms that a home cell of the grid can hold, `A`.
        words: candidates of a cell of each species, in words of 32.
    """

    grid: Grid
    groups: tuple[int, ...]
    images: int
    rows_per_cell: int
    words: tuple[int, ...]

    @property
    def bits(self) -> int:
        """Low bits of a packed candidate, which number the step to its cell."""
        return max((len(self.grid.steps) - 1).bit_length(), 1)


class Rows(NamedTuple):
    """Atoms sorted by species and grid cell.

    Attributes:
        order: `[n]` int32, the atom of each row.
        cells: `[n]` int32, home cell of each row.
        local: three arrays `[n]`, Å, place of each row relative to the middle of its grid cell.
        offsets: `[n, 3]`, whole cells that each row's atom lies away from home.
        starts: `[S, C]` int32, first row of a species in a cell.
        counts: `[S, C]` int32, rows of a species in a cell.
    """

    order: jax.Array
    cells: jax.Array
    local: tuple[jax.Array, ...]
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
    """

    rows: jax.Array
    shifts: jax.Array
    starts: jax.Array
    counts: jax.Array
    total: jax.Array


class Candidates(NamedTuple):
    """Extended atoms of one species in the cells around each home cell; `W` for each.

    Attributes:
        packed: `[W, C]` int32, the extended atom and, in the low bits, the step to its cell.
        local: three arrays `[W, C]`, Å, place relative to the middle of the candidate's grid cell.
        steps: three arrays `[W, C]`, Å, from the middle of the home cell to that of the
            candidate's.
        starts: `[D, C]` int32, first candidate in each of the cells around.
        counts: `[C]` int32, candidates.
    """

    packed: jax.Array
    local: tuple[jax.Array, ...]
    steps: tuple[jax.Array, ...]
    starts: jax.Array
    counts: jax.Array


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
    keys = jnp.asarray(species) * np.int32(grid.n_home) + cells
    keys, order = jax.lax.sort(
        (keys, jnp.arange(len(species), dtype=jnp.int32)), num_keys=1, is_stable=False
    )
    all_starts = jnp.searchsorted(
        keys, jnp.arange(n_species * grid.n_home + 1, dtype=jnp.int32)
    ).astype(jnp.int32)
    return Rows(
        order=order,
        cells=cells[order],
        local=tuple(local[order, axis] for axis in range(3)),
        offsets=offsets[order],
        starts=all_starts[:-1].reshape(n_species, -1),
        counts=jnp.diff(all_starts).reshape(n_species, -1),
    )


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
        image_rows = jnp.where(
            number < ends[-1], (first_row - starts)[place] + number, n
        )
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


def find_candidates(layout: Layout, rows: Rows, images: Images, kind: int) -> Candidates:
    """Candidates of species `kind` of every home cell."""
    grid, n = layout.grid, len(rows.order)
    around = grid.blocks[grid.around]
    counts = images.counts[kind][around]
    ends = jnp.cumsum(counts, axis=0, dtype=jnp.int32)
    starts = ends - counts
    number = jnp.arange(WORD * layout.words[kind], dtype=jnp.int32)[:, None]
    step, first = _segments(number, starts, images.starts[kind][around] - starts)
    valid = number < ends[-1]
    extended = jnp.where(valid, jnp.minimum(first + number, layout.images - 1), layout.images - 1)
    row = images.rows[extended]
    clipped = jnp.minimum(row, n - 1)
    offsets = grid.offsets.astype(rows.local[0].dtype)
    return Candidates(
        packed=(extended << layout.bits) | jnp.where(valid, step, 0),
        local=tuple(jnp.where(row < n, x[clipped], FAR) for x in rows.local),
        steps=tuple(jnp.asarray(offsets[:, axis])[step] for axis in range(3)),
        starts=starts,
        counts=ends[-1],
    )


def _segments(
    number: jax.Array, starts: jax.Array, values: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The last segment that starts at or before each number, and its value.

    Args:
        number: `[W, 1]` int32.
        starts: `[D, C]` int32, not falling along the first axis; the first is 0.
        values: `[D, C]` int32.

    Returns:
        Two arrays `[W, C]` int32.
    """
    shape = (len(number), starts.shape[1])
    chunks = -(-len(starts) // STEPS_AT_ONCE)
    padding = ((0, chunks * STEPS_AT_ONCE - len(starts)), (0, 0))
    size = (chunks, -1, starts.shape[1])
    starts = jnp.pad(starts, padding, constant_values=np.iinfo(np.int32).max).reshape(size)
    values = jnp.pad(values, padding).reshape(size)

    def chunk(
        found: tuple[jax.Array, jax.Array], given: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        segment, value = found
        for start, new in zip(*given, strict=True):
            reached = number >= start
            segment = segment + reached.astype(jnp.int32)
            value = jnp.where(reached, new, value)
        return (segment, value), None

    none = jnp.full(shape, -1, jnp.int32), jnp.zeros(shape, jnp.int32)
    return jax.lax.scan(chunk, none, (starts, values))[0]


def _product(vectors: jax.Array, matrix: np.ndarray) -> jax.Array:
    """`vectors @ matrix` for `[n, 3]` and `[3, 3]`; GPUs would multiply float32 with ten bits."""
    return jnp.matmul(vectors, matrix, precision=jax.lax.Precision.HIGHEST)
