"""Pair searches of jax-md at fixed capacities, as pure functions of the positions.

Three searches give the same answer; `choose` takes the fastest that is exact for a geometry:

- `images`: every pair with every periodic image; for cells thinner than two search radii.
- `pairs`: every pair with its nearest image, which is the only one within the search radius.
- `cells`: the same with a cell list, for large systems.

jax-md is used only for the search itself. When to rebuild, how large the buffers are and what
travels through a loop is decided in `device`, because the lists of jax-md carry functions made at
each allocation (so that each allocation compiles again) and cut a buffer to `N - 1` slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill.neighbors.cell import heights

CELL_LIST_MINIMUM_ATOMS = 2000
"""Below this, comparing all pairs is faster than the cell list and its 27 cells per atom."""

FREE_GRID_CELLS = 8
"""Grid cells along a free direction; atoms further out share cells, which costs only time."""


@dataclass(frozen=True)
class Geometry:
    """What a search needs to know; hashable, so that equal geometries share compilations.

    Attributes:
        cell: rows are lattice vectors in Å, unit vectors along free directions.
        pbc: periodic directions.
        radius: Å, the search radius (cutoff and skin).
    """

    cell: tuple[tuple[float, ...], ...]
    pbc: tuple[bool, ...]
    radius: float

    @property
    def matrix(self) -> np.ndarray:
        """The cell, `[3, 3]` float64."""
        return np.asarray(self.cell, np.float64)

    @property
    def periods(self) -> np.ndarray:
        """Heights of the grid in Å, `[3]`; along free directions the length where it repeats."""
        return np.where(self.pbc, heights(self.matrix), FREE_GRID_CELLS * self.radius)

    @property
    def image_range(self) -> np.ndarray:
        """Images to visit on either side of a wrapped atom, `[3]` int; 0 along free directions."""
        # The small addition keeps jax-md, which counts in the dtype of the cell, from asking
        # for one more image than is visited.
        reach = np.ceil(self.radius / heights(self.matrix) + 1e-4)
        return np.where(self.pbc, reach, 0).astype(np.int32)


def choose(geometry: Geometry, n_atoms: int) -> str:
    """Name of the search for `n_atoms` atoms: "images", "pairs" or "cells"."""
    thinnest = heights(geometry.matrix)[list(geometry.pbc)].min(initial=np.inf)
    if thinnest <= 2.001 * geometry.radius:
        return "images"
    enough_cells = thinnest > 3.001 * geometry.radius
    return "cells" if enough_cells and n_atoms >= CELL_LIST_MINIMUM_ATOMS else "pairs"


def find_pairs(
    geometry: Geometry, positions: jax.Array, capacity: int, cell_capacity: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Pairs within the search radius; pure and jittable.

    Args:
        geometry: static.
        positions: `[n, 3]`, Å, wrapped or not.
        capacity: static, slots per atom.
        cell_capacity: static, slots per grid cell (used by the search "cells").

    Returns:
        neighbors `[n, capacity]` int32 (`n` means none), shifts `[n, capacity, 3]` in the dtype of
        the positions, and a bool that says whether a buffer was too small.
    """
    cell = geometry.matrix.astype(positions.dtype)
    inverse = np.linalg.inv(geometry.matrix).astype(positions.dtype)
    # GPUs may otherwise multiply float32 matrices with ten bits, here and inside jax-md.
    with jax.default_matmul_precision("highest"):
        fractional = positions @ inverse
        if choose(geometry, len(positions)) == "images":
            offsets = jnp.where(np.asarray(geometry.pbc), jnp.floor(fractional), 0)
            wrapped = positions - offsets @ cell
            return _image_search(geometry, wrapped, offsets, capacity)
        neighbors, overflow = _nearest_search(geometry, fractional, capacity, cell_capacity)
        between = fractional.at[neighbors].get(mode="clip") - fractional[:, None]
        valid = (neighbors < len(positions))[..., None] & np.asarray(geometry.pbc)
        return neighbors, jnp.where(valid, -jnp.round(between), 0), overflow


def grid_positions(geometry: Geometry, fractional: Any, xp: Any = jnp) -> Any:
    """Coordinates `[n, 3]` in Å, not negative, measured at right angles to the cell's faces.

    In them any cell is a box with edges `periods`, so a grid no finer than the search radius is
    right for triclinic cells too.
    """
    pbc = np.asarray(geometry.pbc)
    wrapped = (fractional - xp.floor(fractional)) * geometry.periods.astype(fractional.dtype)
    return xp.where(pbc, wrapped, fractional - fractional.min(axis=0))


def largest_filling(geometry: Geometry, positions: np.ndarray) -> int:
    """Most atoms in one grid cell, counted on the host."""
    grid = grid_positions(geometry, positions @ np.linalg.inv(geometry.matrix), np)
    counts = np.floor(geometry.periods / geometry.radius).astype(np.int64)
    index = np.floor(grid / geometry.periods * counts).astype(np.int64) % counts
    return int(np.bincount(np.ravel_multi_index(tuple(index.T), tuple(counts))).max())


def _image_search(
    geometry: Geometry, wrapped: jax.Array, offsets: jax.Array, capacity: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    from jax_md import custom_partition, partition  # slow to import: only where a list is built

    n = len(wrapped)
    functions, stencil = _image_functions(geometry, wrapped.dtype.name)
    used = min(capacity, n * len(stencil))
    box = jnp.asarray(geometry.matrix.T, wrapped.dtype)
    template = custom_partition.NeighborListMultiImage(
        idx=jnp.full((n, used), n, jnp.int32),
        shifts=jnp.zeros((n, used, 3), jnp.int32),
        reference_position=wrapped,
        reference_box=box,
        box=box,
        search_shifts=jnp.asarray(stencil),
        format=partition.NeighborListFormat.Dense,
        max_occupancy=used,
        update_fn=functions.update,
        did_buffer_overflow=jnp.asarray(False),
    )
    found = functions.update(wrapped, template)
    neighbors = _widen(found.idx.astype(jnp.int32), capacity, n)
    images = _widen(found.shifts.astype(wrapped.dtype), capacity, 0)
    images = images + offsets[:, None] - offsets.at[neighbors].get(mode="clip")
    return (
        neighbors,
        jnp.where((neighbors < n)[..., None], images, 0),
        jnp.asarray(found.did_buffer_overflow, bool),
    )


def _nearest_search(
    geometry: Geometry, fractional: jax.Array, capacity: int, cell_capacity: int
) -> tuple[jax.Array, jax.Array]:
    from jax_md import partition  # slow to import: only where a list is built

    n = len(fractional)
    grid = grid_positions(geometry, fractional)
    use_cells = choose(geometry, n) == "cells"
    functions, cell_list = _nearest_functions(geometry, use_cells)
    used = min(capacity, n - 1)
    template = partition.NeighborList(
        idx=jnp.full((n, used), n, jnp.int32),
        reference_position=grid,
        error=partition.PartitionError(jnp.zeros((), jnp.uint8)),
        cell_list_capacity=cell_capacity if use_cells else None,
        max_occupancy=used,
        format=partition.NeighborListFormat.Dense,
        cell_size=geometry.radius if use_cells else None,
        cell_list_fn=cell_list,
        update_fn=functions.update,
    )
    found = functions.update(grid, template)
    # Every error code counts, not only the two that jax-md calls overflow.
    return _widen(found.idx, capacity, n), found.error.code != 0


@lru_cache(maxsize=64)
def _image_functions(geometry: Geometry, dtype: str) -> tuple[Any, np.ndarray]:
    """jax-md functions for all images, and the images to visit `[S, 3]` int32."""
    from jax_md import custom_partition, partition  # slow to import: only where a list is built

    # Concrete arrays even when first called while tracing: these outlive the trace.
    with jax.ensure_compile_time_eval():
        functions = custom_partition.neighbor_list_multi_image(
            None,
            geometry.matrix.T.astype(dtype),
            geometry.radius,
            dr_threshold=0.0,
            pbc=np.asarray(geometry.pbc),
            fractional_coordinates=False,
            format=partition.NeighborListFormat.Dense,
        )
    ranges = [np.arange(-m, m + 1, dtype=np.int32) for m in geometry.image_range]
    stencil = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, 3)
    return functions, stencil


@lru_cache(maxsize=64)
def _nearest_functions(geometry: Geometry, use_cells: bool) -> tuple[Any, Any]:
    """jax-md functions for nearest images in grid coordinates, and its cell list or None."""
    from jax_md import partition  # slow to import: only where a list is built

    periods = geometry.periods
    pbc = np.asarray(geometry.pbc)
    to_cartesian = geometry.matrix / np.where(pbc, periods, 1.0)[:, None]

    def displacement(a: jax.Array, b: jax.Array, **unused: Any) -> jax.Array:
        length = periods.astype(a.dtype)
        d = a - b
        d = jnp.where(pbc, d - length * jnp.round(d / length), d)
        # Sums, not a matrix product, which is slow for a single vector.
        rows = to_cartesian.astype(a.dtype)
        return d[0] * rows[0] + d[1] * rows[1] + d[2] * rows[2]

    with jax.ensure_compile_time_eval():
        functions = partition.neighbor_list(
            displacement,
            periods,
            geometry.radius,
            dr_threshold=0.0,
            disable_cell_list=not use_cells,
            # int32 also with x64, where jax-md would make int64 indices.
            custom_mask_function=lambda index: index.astype(jnp.int32),
            fractional_coordinates=False,
            format=partition.NeighborListFormat.Dense,
        )
        cell_list = partition.cell_list(periods, geometry.radius) if use_cells else None
    return functions, cell_list


def _widen(rows: jax.Array, capacity: int, fill: int) -> jax.Array:
    """Pad axis 1 up to `capacity`."""
    padding = [(0, 0)] * rows.ndim
    padding[1] = (0, capacity - rows.shape[1])
    return jnp.pad(rows, padding, constant_values=fill)
