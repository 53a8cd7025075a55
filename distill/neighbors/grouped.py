"""Neighbour lists whose rows and slots are grouped by species, updated inside jit.

The lists of `device` suit any model. These suit a kernel that treats one species after another:
atoms are sorted by species and by place, the slots of a row by the neighbour's species, periodic
images are atoms of their own (so that pair vectors are differences of positions), and each slot
knows the mirrored pair (so that forces are sums of gathered numbers). In large systems most rows
have fewer slots than the fullest, see `parts`. Capacities, overflow and staleness are as in
`device`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill.errors import UnsupportedStructureError
from distill.graph import PADDING_DISTANCE
from distill.neighbors.build import build, search
from distill.neighbors.candidates import Layout
from distill.neighbors.cell import periodic_cell
from distill.neighbors.device import DEFAULT_SKIN, largest_move, next_rebuild_fraction
from distill.neighbors.division import UNDIVIDED, Division
from distill.neighbors.host import neighbor_table
from distill.neighbors.layouts import choose_groups, choose_layout
from distill.neighbors.parts import rows_of
from distill.neighbors.search import Geometry

COUNTED_ON_HOST = 20_000
"""Up to so many atoms neighbours are counted on the host, which spares a compilation."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GroupedList:
    """Pairs within cutoff and skin of the reference positions; a pytree of fixed shape.

    Extended atom `e` is at `positions[source[e]] + shift[e] @ cell`, see `extended_positions`. The
    first `n` are the atoms, wrapped into the cell; then come periodic images; the last is never
    real. Rows are in one part or in two with more and fewer slots, see `parts`, and are sorted by
    part, then by species, then by place; so `neighbors` and `reverse` have an array for each part.
    The vector of slot `k` in row `i` is `extended[neighbors[i, k]] - extended[rows[i]]`.

    Attributes:
        order: `[n]` int32, the atom of each row.
        rows: `[n]` int32, the extended atom of each row.
        source: `[E]` int32, the atom each extended atom is an image of; `n` for padding.
        shift: `[E, 3]`, whole cells, for the unwrapped positions (dtype of the positions).
        neighbors: `[b, K]` int32, extended atoms, grouped by species; filled slots of a group
            come first; `E - 1` means none.
        reverse: `[b, K]` int32, the mirrored pair among the slots of all rows; their number for
            empty slots.
        reference_positions: `[n, 3]`, Å, where the list was built, in the order of the atoms.
        center: `[3]`, Å, middle of the search grid along free directions.
        lacking: `[3 + 2 S]` bool, which buffers were too small at some update since the allocation:
            images, rows of a grid cell, candidates, slots of each group, widest rows of each
            species. The list has no pairs then.
        stale: `()` bool, at some update an atom had moved more than half the skin (or to NaN), so
            the list in use until then may have missed pairs.
        rebuild_fraction: `()`, share of the skin that an atom may move before a rebuild.
        layout: static sizes.
    """

    order: jax.Array
    rows: jax.Array
    source: jax.Array
    shift: jax.Array
    neighbors: tuple[jax.Array, ...]
    reverse: tuple[jax.Array, ...]
    reference_positions: jax.Array
    center: jax.Array
    lacking: jax.Array
    stale: jax.Array
    rebuild_fraction: jax.Array
    layout: Layout = field(metadata={"static": True})

    @property
    def overflow(self) -> jax.Array:
        """`()` bool, a buffer was too small at some update since the allocation."""
        return self.lacking.any()

    @property
    def groups(self) -> tuple[int, ...]:
        """Slots of the widest rows for neighbours of each species, multiples of 8."""
        return self.layout.groups

    @property
    def capacity(self) -> int:
        """Neighbour slots of the widest rows."""
        return sum(self.groups)


@dataclass(frozen=True)
class GroupedSearch:
    """How neighbours are found in one cell; made by `grouped_list`.

    Frozen and hashable, so it may be a static argument of a jitted function; equal searches share
    compilations.
    """

    geometry: Geometry
    species_bytes: bytes
    skin: float
    capacity_multiplier: float

    @property
    def species(self) -> np.ndarray:
        """Species of each atom, `[n]` int32."""
        return np.frombuffer(self.species_bytes, np.int32)

    @property
    def rows(self) -> tuple[int, ...]:
        """Atoms (and so rows) of each species."""
        return rows_of(self.species)

    def allocate(
        self,
        positions: Any,
        minimum_capacity: int = 0,
        previous: GroupedList | None = None,
    ) -> GroupedList:
        """Choose capacities for `positions` `[n, 3]` (Å, unwrapped) and build the list; host code.

        Args:
            positions: kept in their floating-point dtype.
            minimum_capacity: at least so many slots for each species; all buffers grow in
                proportion.
            previous: the list to replace: no slots shrink, and what was too small grows. If it was
                stale, rebuilds come earlier, so that fast atoms have more room for one step.

        Raises:
            UnsupportedStructureError: positions are NaN or infinite.
            ValueError: positions have another shape than the species.
        """
        start = jnp.array(positions)  # a copy: lists may be donated
        if not jnp.issubdtype(start.dtype, jnp.floating):
            start = start.astype(float)
        points = np.asarray(start, np.float64)
        if points.shape != (len(self.species), 3):
            raise ValueError(f"positions must be [{len(self.species)}, 3], not {points.shape}")
        bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
        if len(bad):
            raise UnsupportedStructureError(
                f"positions hold NaN or infinity (first at atom {bad[0]}, {len(bad)} in all)"
            )
        middle = np.median(points @ np.linalg.inv(self.geometry.matrix), axis=0)
        middle = np.where(self.geometry.pbc, 0.0, middle)
        center = jnp.asarray(middle, start.dtype)
        sizes: tuple[Any, ...] = self.capacity_multiplier, minimum_capacity
        if previous is not None:
            sizes = *sizes, previous.layout, np.asarray(previous.lacking)
        layout = choose_layout(self.geometry, self.species, points, middle, *sizes)
        while True:
            counts = self._counts(layout, points, start, center)
            layout = choose_groups(layout, self.species, counts, *sizes)
            found = _build(self, layout, start, center)
            if not found.lacking.any():
                break
            # Only rounding at the edge of the radius or of a grid cell leads here.
            sizes = self.capacity_multiplier, minimum_capacity, layout, np.asarray(found.lacking)
            layout = choose_layout(self.geometry, self.species, points, middle, *sizes)
        return GroupedList(
            **found._asdict(),
            reference_positions=start,
            center=center,
            stale=jnp.asarray(False),
            rebuild_fraction=next_rebuild_fraction(previous, start.dtype),
            layout=layout,
        )

    def update(
        self, nbrs: GroupedList, positions: jax.Array, division: Division = UNDIVIDED
    ) -> GroupedList:
        """The list for `positions` `[n, 3]`: rebuilt if an atom moved far enough, else as it was.

        Pure and jittable; shapes and treedef stay, so the list can be the carry of a loop. The
        rebuild comes at `rebuild_fraction` of the skin: what is left up to half of it is for the
        step taken after the update. No gradient flows through. `division` says what each of several
        devices does.
        """
        if positions.shape != nbrs.reference_positions.shape:
            raise ValueError(
                f"positions {positions.shape} do not match the list, which was allocated for "
                f"{nbrs.reference_positions.shape}; allocate a list for them"
            )
        now = jax.lax.stop_gradient(positions).astype(nbrs.reference_positions.dtype)

        def rebuild(old: GroupedList) -> GroupedList:
            center = _follow(old.layout, now, old.center)
            found = build(old.layout, self.species, now, center, division)
            fields = found._replace(lacking=old.lacking | found.lacking)._asdict()
            return replace(old, **fields, reference_positions=now, center=center)

        nbrs = replace(nbrs, stale=nbrs.stale | self.is_stale(nbrs, now))
        # False for NaN: positions that are lost must not look like a buffer that is too small.
        moved = largest_move(nbrs, now) > nbrs.rebuild_fraction * self.skin
        return jax.lax.cond(moved, rebuild, lambda old: old, nbrs)

    def is_stale(self, nbrs: GroupedList, positions: jax.Array) -> jax.Array:
        """`()` bool: an atom moved more than half the skin (or to NaN) since the list was built.

        Pairs within the cutoff may then be missing from the list.
        """
        return ~(largest_move(nbrs, positions) <= 0.5 * self.skin)

    def _counts(
        self, layout: Layout, points: np.ndarray, start: jax.Array, center: jax.Array
    ) -> np.ndarray:
        """Neighbours of each species that each atom has, `[S, n]`."""
        species = self.species
        if len(points) > COUNTED_ON_HOST:
            by_row, order = jax.device_get(_count(self, layout, start, center))
            counts = np.empty_like(by_row)
            counts[:, order] = by_row
            return counts
        table = neighbor_table(
            points, self.geometry.matrix, self.geometry.pbc, self.geometry.radius
        )
        others = np.append(species, -1)[table.neighbors]
        return np.stack([(others == kind).sum(axis=1) for kind in range(len(self.rows))])


def grouped_list(
    cell: Any,
    pbc: Any,
    species: Any,
    cutoff: float,
    skin: float = DEFAULT_SKIN,
    capacity_multiplier: float = 1.1,
) -> GroupedSearch:
    """Set up grouped neighbour lists for a fixed cell and fixed species.

    Args:
        cell: `[3, 3]`, rows are lattice vectors in Å; rows of free directions are not used.
        pbc: `(3,)` bool, periodic directions.
        species: `[n]`, not negative; one group of slots for each number up to the largest.
        cutoff: Å.
        skin: Å, added to the cutoff so that a list serves several steps.
        capacity_multiplier: room for neighbours to come, times the largest count; of the rows with
            fewer slots three quarters of that room above the mean.

    Raises:
        UnsupportedStructureError: the cell is singular along a periodic direction.
        ValueError: cutoff or skin are not positive, the multiplier is below 1, or the species are
            not a list of such numbers.
    """
    if not (0 < cutoff < math.inf and 0 < skin < math.inf and capacity_multiplier >= 1):
        raise ValueError(
            "need cutoff > 0, skin > 0 and capacity_multiplier >= 1, not "
            f"{cutoff}, {skin} and {capacity_multiplier}"
        )
    kinds = np.asarray(species)
    if kinds.ndim != 1 or kinds.size == 0 or kinds.dtype.kind not in "iu" or kinds.min() < 0:
        raise ValueError("species must be a list of whole numbers that are not negative")
    full_cell, periodic = periodic_cell(cell, pbc)
    geometry = Geometry(
        cell=tuple(tuple(row) for row in full_cell.tolist()),
        pbc=tuple(periodic.tolist()),
        radius=float(cutoff) + float(skin),
    )
    return GroupedSearch(
        geometry, kinds.astype(np.int32).tobytes(), float(skin), float(capacity_multiplier)
    )


def extended_positions(nbrs: GroupedList, positions: jax.Array, cell: Any) -> jax.Array:
    """Positions of the extended atoms, `[E, 3]`, Å; padding lies far from everything else.

    Args:
        positions: `[n, 3]`, Å, of the atoms in their own order, unwrapped.
        cell: `[3, 3]`, Å; rows of free directions are not used.
    """
    n = positions.shape[0]
    cell = jnp.asarray(cell, positions.dtype)
    atoms = positions.at[nbrs.source].get(mode="clip")
    shifts = nbrs.shift
    moved = sum(shifts[:, axis, None] * cell[axis] for axis in range(3))
    far = jax.lax.stop_gradient(jnp.abs(positions).max()) + PADDING_DISTANCE
    far = far + 2 * jnp.abs(cell).sum()
    return jnp.where((nbrs.source < n)[:, None], atoms + moved, far)


@partial(jax.jit, static_argnums=(0, 1))
def _build(search_: GroupedSearch, layout: Layout, positions: jax.Array, center: jax.Array) -> Any:
    return build(layout, search_.species, positions, center)


@partial(jax.jit, static_argnums=(0, 1))
def _count(
    search_: GroupedSearch, layout: Layout, positions: jax.Array, center: jax.Array
) -> tuple[jax.Array, jax.Array]:
    found = search(layout, search_.species, positions, center)
    return found.reach.counts(layout.words), found.rows.order


def _follow(layout: Layout, positions: jax.Array, center: jax.Array) -> jax.Array:
    """The middle of the grid moves along with the atoms; those far away hardly count."""
    geometry = layout.grid.geometry
    if all(geometry.pbc):
        return center
    inverse = jnp.asarray(np.linalg.inv(geometry.matrix), positions.dtype)
    fractional = jnp.matmul(positions, inverse, precision=jax.lax.Precision.HIGHEST)
    half = jnp.asarray(0.5 * layout.grid.widths * layout.grid.counts, positions.dtype)
    mean = jnp.clip(fractional, center - half, center + half).mean(axis=0)
    return jnp.where(np.asarray(geometry.pbc), center, mean)
