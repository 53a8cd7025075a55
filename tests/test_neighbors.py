"""Host and device neighbour lists against ASE's, and the device list's promises in loops."""

from __future__ import annotations

from typing import Any

import ase
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.neighborlist import neighbor_list as ase_neighbor_list
from builders import check_rebuilds

from distill.errors import CapacityError, UnsupportedStructureError
from distill.neighbors import bucket, neighbor_list, neighbor_table
from distill.neighbors.search import choose, largest_filling

ORTHO = np.diag([13.0, 14.0, 15.0])
SKEW = np.array([[6.0, 0.0, 0.0], [5.5, 4.0, 0.0], [-7.0, 6.0, 5.0]])
TRICLINIC = np.array([[13.0, 0.0, 0.0], [4.0, 14.0, 0.0], [-3.0, 5.0, 12.0]])
LEFT_HANDED = TRICLINIC[[1, 0, 2]]
SLAB = np.array([[7.0, 0.0, 0.0], [3.0, 6.0, 0.0], [0.0, 0.0, 0.0]])
FLAT = SLAB + [[0.0] * 3, [0.0] * 3, [7.0, 6.0, 0.0]]
WIRE = np.array([[0.0, 0.0, 0.0], [1.0, 3.0, 2.0], [0.0, 0.0, 0.0]])
TALL_SLAB = SLAB + np.diag([0.0, 0.0, 40.0])
WIDE_SLAB = np.array([[14.0, 0.0, 1.0], [0.0, 0.0, 0.0], [3.0, 0.0, 15.0]])

# name: cell, pbc, atoms, radius, expected search on the device
CASES: dict[str, tuple[Any, Any, int, float, str]] = {
    "orthorhombic": (ORTHO, (1, 1, 1), 40, 4.0, "pairs"),
    "triclinic": (TRICLINIC, (1, 1, 1), 40, 4.5, "pairs"),
    "left-handed": (LEFT_HANDED, (1, 1, 1), 40, 4.5, "pairs"),
    "strongly skewed": (SKEW, (1, 1, 1), 20, 4.0, "images"),
    "below two cutoffs": (np.diag([7.0, 8.0, 9.0]), (1, 1, 1), 20, 4.5, "images"),
    "below one cutoff": (np.diag([2.0, 3.0, 2.5]), (1, 1, 1), 3, 5.0, "images"),
    "image range is whole": (np.eye(3) * 2.5, (1, 1, 1), 2, 5.0, "images"),
    "slab, zero vector": (SLAB, (1, 1, 0), 20, 4.0, "images"),
    "slab, useless vector": (FLAT, (1, 1, 0), 20, 4.0, "images"),
    "tall slab": (TALL_SLAB, (1, 1, 0), 20, 4.0, "images"),
    "wide slab": (WIDE_SLAB, (1, 0, 1), 40, 4.5, "pairs"),
    "wire": (WIRE, (0, 1, 0), 10, 4.0, "images"),
    "molecule": (np.zeros((3, 3)), (0, 0, 0), 12, 4.0, "pairs"),
    "molecule in a box": (ORTHO, (0, 0, 0), 40, 4.0, "pairs"),
    "one atom": (np.diag([3.0, 4.0, 5.0]), (1, 1, 1), 1, 4.0, "images"),
    "one atom, large cell": (ORTHO, (1, 1, 1), 1, 4.0, "pairs"),
    "one free atom": (np.zeros((3, 3)), (0, 0, 0), 1, 4.0, "pairs"),
    "two free atoms": (np.zeros((3, 3)), (0, 0, 0), 2, 20.0, "pairs"),
    "no neighbours": (ORTHO * 10, (1, 1, 1), 5, 0.01, "pairs"),
}
LARGE: dict[str, tuple[Any, Any, int, float, str]] = {
    "orthorhombic": (np.diag([40.0, 31.0, 52.0]), (1, 1, 1), 640, 4.0, "cells"),
    "triclinic": (TRICLINIC * 3, (1, 1, 1), 640, 4.5, "cells"),
    "three cells": (TRICLINIC * 3, (1, 1, 1), 640, 10.0, "cells"),
    "slab": (WIDE_SLAB * 3, (1, 0, 1), 640, 4.5, "cells"),
    "cluster": (np.zeros((3, 3)), (0, 0, 0), 640, 2.2, "cells"),
}


@pytest.fixture(autouse=True)
def _cell_lists_for_few_atoms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.neighbors.search.CELL_LIST_MINIMUM_ATOMS", 600)


def random_positions(case: tuple[Any, ...], seed: int, unwrap: int = 0) -> np.ndarray:
    """Positions all over the cell, and up to `unwrap` cells away along periodic directions."""
    cell, pbc, n, *_ = case
    rng = np.random.default_rng(seed)
    given = np.any(np.asarray(cell), axis=1, keepdims=True)
    span = np.where(given, cell, np.eye(3) * 8)
    if np.linalg.matrix_rank(span) < 3:
        span = span + np.eye(3)
    if n > 100 and not any(pbc):
        span = span * 3  # further than the search grid before it repeats
    positions = rng.random((n, 3)) @ span
    images = rng.integers(-unwrap, unwrap + 1, (n, 3)) * np.asarray(pbc)
    return positions + images @ np.asarray(cell)


def pairs_of(neighbors: Any, shifts: Any, positions: Any, cell: Any) -> np.ndarray:
    """Rows (i, j, displacement) of a padded list in a fixed order."""
    neighbors, shifts, positions = (np.asarray(x) for x in (neighbors, shifts, positions))
    i, slot = np.nonzero(neighbors < len(positions))
    j = neighbors[i, slot]
    return sort_pairs(i, j, positions[j] + shifts[i, slot] @ np.asarray(cell) - positions[i])


def reference_pairs(positions: np.ndarray, cell: Any, pbc: Any, radius: float) -> np.ndarray:
    periodic = np.where(np.asarray(pbc, bool)[:, None], cell, 0.0)
    atoms = ase.Atoms(numbers=[1] * len(positions), positions=positions, cell=periodic, pbc=pbc)
    i, j, shifts = ase_neighbor_list("ijS", atoms, radius)
    return sort_pairs(i, j, positions[j] + shifts @ np.asarray(cell) - positions[i])


def sort_pairs(i: np.ndarray, j: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    keys = np.round(vectors, 5)
    order = np.lexsort((keys[:, 2], keys[:, 1], keys[:, 0], j, i))
    return np.column_stack([i, j, vectors])[order]


def check_pairs(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-8) -> None:
    assert len(found) == len(expected)
    np.testing.assert_allclose(found, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("unwrap", [0, 1000])
@pytest.mark.parametrize("name", CASES)
def test_host_list_equals_ase(name: str, unwrap: int) -> None:
    cell, pbc, n, radius, _ = CASES[name]
    for seed in range(3):
        positions = random_positions(CASES[name], seed, unwrap)
        table = neighbor_table(positions, cell, pbc, radius)
        assert table.neighbors.dtype == table.shifts.dtype == np.int32
        assert table.capacity == max(1, table.counts.max())
        assert not table.shifts[..., ~np.asarray(pbc, bool)].any()
        found = pairs_of(table.neighbors, table.shifts, positions, cell)
        check_pairs(found, reference_pairs(positions, cell, pbc, radius))


def test_host_rows_are_sorted_and_filled_first() -> None:
    table = neighbor_table(random_positions(CASES["strongly skewed"], 0), SKEW, True, 4.0, 90)
    assert table.neighbors.shape == (20, 90)
    for row, images in zip(table.neighbors, table.shifts, strict=True):
        keys = [(j, *s) for j, s in zip(row.tolist(), images.tolist(), strict=True)]
        filled = [key for key in keys if key[0] < 20]
        assert filled == sorted(filled) == keys[: len(filled)]
        assert all(key == (20, 0, 0, 0) for key in keys[len(filled) :])


@pytest.mark.parametrize("free", [(1, 0, 0), (1, 1, 0), (1, 1, 1)])
@pytest.mark.parametrize("distance", [1e2, 1e3, 1e5, 1e7])
def test_host_list_survives_an_atom_far_away(free: tuple[int, ...], distance: float) -> None:
    """vesin alone ends the process for some of these."""
    positions = np.array([[0.0, 0, 0], [0, 1.0, 0], [0, 0, 0]])
    positions[2] = distance * np.asarray(free)
    table = neighbor_table(positions, np.zeros((3, 3)), False, 2.0)
    assert table.counts.tolist() == [1, 1, 0]
    cell = np.eye(3) * 4 + np.diag(free) * 2 * distance
    periodic = neighbor_table(positions, cell, True, 2.0)
    assert periodic.counts.tolist() == [1, 1, 0]


def test_host_list_of_no_atoms() -> None:
    table = neighbor_table(np.zeros((0, 3)), ORTHO, True, 3.0)
    assert table.neighbors.shape == (0, 1) and table.shifts.shape == (0, 1, 3)


def test_host_capacity_error_names_the_needed_number() -> None:
    positions = random_positions(CASES["orthorhombic"], 0)
    needed = neighbor_table(positions, ORTHO, True, 4.0).capacity
    assert neighbor_table(positions, ORTHO, True, 4.0, needed).capacity == needed
    with pytest.raises(CapacityError, match=f"at least {needed}"):
        neighbor_table(positions, ORTHO, True, 4.0, needed - 1)


@pytest.mark.parametrize(
    "cell",
    [
        np.zeros((3, 3)),
        np.diag([5.0, 5.0, 0.0]),
        np.diag([5.0, 5.0, 1e-9]),
        np.array([[5.0, 0, 0], [10.0, 0, 0], [0, 0, 5.0]]),
        np.array([[5.0, 0, 0], [10.0, 1e-3, 0], [0, 0, 5.0]]),
        np.diag([5.0, np.nan, 5.0]),
    ],
)
def test_singular_periodic_cells_are_refused(cell: np.ndarray) -> None:
    with pytest.raises(UnsupportedStructureError, match="cell"):
        neighbor_table(np.zeros((1, 3)), cell, True, 3.0)
    with pytest.raises(UnsupportedStructureError, match="cell"):
        neighbor_list(cell, True, 3.0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_positions_that_are_not_finite_are_refused(value: float) -> None:
    positions = np.array([[0.0, 0, 0], [0, value, 0]])
    with pytest.raises(UnsupportedStructureError, match="atom 1"):
        neighbor_table(positions, ORTHO, True, 3.0)
    with pytest.raises(UnsupportedStructureError, match="atom 1"):
        neighbor_list(ORTHO, True, 3.0).allocate(positions)


@pytest.mark.parametrize("cutoff", [0.0, -1.0, np.nan, np.inf])
def test_senseless_cutoffs_are_refused(cutoff: float) -> None:
    with pytest.raises(ValueError, match="cutoff"):
        neighbor_table(np.zeros((1, 3)), ORTHO, True, cutoff)
    with pytest.raises(ValueError, match="cutoff"):
        neighbor_list(ORTHO, True, cutoff)


def test_bucket_is_a_ladder_with_few_steps() -> None:
    sizes = {bucket(n) for n in range(1, 1001)}
    assert all(bucket(n) >= n for n in range(1, 1001))
    assert all(bucket(size) == size and size % 8 == 0 for size in sizes)
    assert len(sizes) < 25
    assert bucket(0) == bucket(8) == 8 and bucket(9) == 16
    with pytest.raises(ValueError):
        bucket(5, ratio=1.0)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", CASES)
def test_device_list_equals_ase(name: str) -> None:
    cell, pbc, n, radius, method = CASES[name]
    search = neighbor_list(cell, pbc, radius * 0.9, radius * 0.1)
    assert choose(search.geometry, n) == method
    for unwrap in (0, 1000):
        positions = random_positions(CASES[name], 0, unwrap)
        nbrs = search.allocate(positions)
        assert nbrs.neighbors.dtype == jnp.int32 and nbrs.shifts.dtype == jnp.float64
        assert nbrs.capacity >= 1 and not nbrs.overflow and not nbrs.stale
        expected = reference_pairs(positions, cell, pbc, radius)
        check_pairs(pairs_of(nbrs.neighbors, nbrs.shifts, positions, cell), expected)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", LARGE)
def test_cell_list_equals_ase(name: str) -> None:
    cell, pbc, n, radius, method = LARGE[name]
    search = neighbor_list(cell, pbc, radius - 0.5, 0.5)
    assert choose(search.geometry, n) == method
    positions = random_positions(LARGE[name], 0, unwrap=2)
    nbrs = search.allocate(positions)
    expected = reference_pairs(positions, cell, pbc, radius)
    assert len(expected) > n
    check_pairs(pairs_of(nbrs.neighbors, nbrs.shifts, positions, cell), expected)


@pytest.mark.parametrize("name", ["triclinic", "strongly skewed", "slab"])
def test_single_precision_finds_the_same_pairs(name: str) -> None:
    case = LARGE[name] if name == "slab" else CASES[name]
    cell, pbc, _, radius, _ = case
    positions = random_positions(case, 5, unwrap=3).astype(np.float32)
    nbrs = neighbor_list(cell, pbc, radius - 0.5, 0.5).allocate(positions)
    assert nbrs.shifts.dtype == jnp.float32
    found = pairs_of(nbrs.neighbors, nbrs.shifts, positions.astype(np.float64), cell)
    # Pairs at the very edge may fall to either side.
    inner = found[np.linalg.norm(found[:, 2:], axis=1) < radius - 1e-3]
    exact = reference_pairs(positions.astype(np.float64), cell, pbc, radius - 1e-3)
    check_pairs(inner, exact, 1e-4)


MOVING = {"images": CASES["tall slab"], "pairs": CASES["triclinic"], "cells": LARGE["slab"]}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", MOVING)
def test_update_after_motion_equals_a_fresh_list(method: str) -> None:
    cell, pbc, n, radius, _ = MOVING[method]
    search = neighbor_list(cell, pbc, radius - 0.5, 0.5, capacity_multiplier=2.0)
    assert choose(search.geometry, n) == method
    start = random_positions(MOVING[method], 1, unwrap=2)
    rng = np.random.default_rng(2)
    moved = (
        start
        + rng.normal(size=start.shape)
        + rng.integers(-2, 3, start.shape) @ np.where(np.asarray(pbc, bool)[:, None], cell, 0)
    )
    nbrs = jax.jit(search.update)(search.allocate(start), moved)
    assert not nbrs.overflow
    np.testing.assert_array_equal(nbrs.reference_positions, moved)
    found = pairs_of(nbrs.neighbors, nbrs.shifts, moved, cell)
    check_pairs(found, reference_pairs(moved, cell, pbc, radius))


def test_rebuild_and_stale_thresholds() -> None:
    search = neighbor_list(ORTHO, True, 4.0, skin=0.8)
    start = jnp.asarray(random_positions(CASES["orthorhombic"], 0), jnp.float32)
    check_rebuilds(search, start, skin=0.8)


def test_list_before_a_rebuild_still_holds_every_pair_within_the_cutoff() -> None:
    cell, pbc, _, radius, _ = CASES["triclinic"]
    search = neighbor_list(cell, pbc, radius - 1.0, 1.0)
    start = random_positions(CASES["triclinic"], 3)
    nbrs = search.allocate(start)
    directions = np.random.default_rng(4).normal(size=start.shape)
    moved = start + 0.37 * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    updated = jax.jit(search.update)(nbrs, jnp.asarray(moved, jnp.float32))
    np.testing.assert_array_equal(updated.reference_positions, nbrs.reference_positions)
    found = pairs_of(updated.neighbors, updated.shifts, moved, cell)
    inner = found[np.linalg.norm(found[:, 2:], axis=1) < radius - 1.0]
    check_pairs(inner, reference_pairs(moved, cell, pbc, radius - 1.0), 1e-4)


@pytest.mark.parametrize(
    ("method", "squeeze"), [("images", (1, 1, 0.01)), ("pairs", (0.1,) * 3), ("cells", (0.3,) * 3)]
)
def test_overflow_is_flagged_and_stays(method: str, squeeze: tuple[float, ...]) -> None:
    cell, pbc, _, radius, _ = MOVING[method]
    search = neighbor_list(cell, pbc, radius - 0.5, 0.5)
    start = jnp.asarray(random_positions(MOVING[method], 1), jnp.float32)
    squeezed = start * jnp.asarray(squeeze)
    update = jax.jit(search.update)
    nbrs = search.allocate(start)
    full = update(nbrs, squeezed)
    assert full.overflow
    assert update(full, start).overflow
    again = search.allocate(squeezed, previous=full)
    assert not again.overflow and again.capacity > full.capacity
    check_pairs(
        pairs_of(again.neighbors, again.shifts, squeezed, cell)[:, :2],
        pairs_of(*host_list(squeezed, cell, pbc, radius), squeezed, cell)[:, :2],
    )


def host_list(positions: Any, cell: Any, pbc: Any, radius: float) -> tuple[Any, Any]:
    table = neighbor_table(positions, cell, pbc, radius)
    return table.neighbors, table.shifts


def test_cell_list_overflow_alone_is_flagged() -> None:
    """A cell of the search grid can overflow while every row still has room."""
    cell, pbc, _, radius, _ = LARGE["orthorhombic"]
    search = neighbor_list(cell, pbc, radius - 0.5, 0.5)
    start = jnp.asarray(random_positions(LARGE["orthorhombic"], 1), jnp.float32)
    filling = largest_filling(search.geometry, np.asarray(start, np.float64))
    nbrs = search.allocate(start, minimum_capacity=200)
    assert nbrs.cell_capacity > 2 * filling
    tight = type(nbrs)(**{**vars(nbrs), "cell_capacity": filling - 1})
    assert jax.jit(search.update)(tight, start + 1.0).overflow
    assert not jax.jit(search.update)(nbrs, start + 1.0).overflow


def test_previous_list_sets_the_least_capacity() -> None:
    cell, pbc, _, radius, _ = LARGE["orthorhombic"]
    search = neighbor_list(cell, pbc, radius - 0.5, 0.5)
    start = jnp.asarray(random_positions(LARGE["orthorhombic"], 1), jnp.float32)
    large = search.allocate(start, minimum_capacity=100)
    same = search.allocate(start, previous=large)
    assert large.capacity >= 100
    assert (same.capacity, same.cell_capacity) == (large.capacity, large.cell_capacity)
    full = type(large)(**{**vars(large), "overflow": jnp.asarray(True)})
    grown = search.allocate(start, previous=full)
    assert grown.capacity > large.capacity and grown.cell_capacity > large.cell_capacity
    assert not grown.overflow


def test_nan_positions_are_stale_but_no_overflow() -> None:
    search = neighbor_list(ORTHO, True, 4.0)
    start = jnp.asarray(random_positions(CASES["orthorhombic"], 0), jnp.float32)
    updated = jax.jit(search.update)(search.allocate(start), start.at[3].set(jnp.nan))
    assert updated.stale and not updated.overflow


@pytest.mark.parametrize("method", MOVING)
def test_list_is_a_loop_carry(method: str) -> None:
    cell, pbc, _, radius, _ = MOVING[method]
    search = neighbor_list(cell, pbc, radius - 0.5, 0.5, capacity_multiplier=2.0)
    start = jnp.asarray(random_positions(MOVING[method], 1), jnp.float32)
    velocity = jnp.asarray(np.random.default_rng(0).normal(size=start.shape) * 0.01, jnp.float32)

    @jax.jit
    def drift(nbrs: Any) -> Any:
        def step(_: Any, carry: Any) -> Any:
            positions, nbrs = carry
            positions = positions + velocity
            return positions, search.update(nbrs, positions)

        return jax.lax.fori_loop(0, 50, step, (start, nbrs))

    positions, nbrs = drift(search.allocate(start))
    assert not nbrs.overflow and not nbrs.stale
    assert not (nbrs.reference_positions == start).all()
    found = pairs_of(nbrs.neighbors, nbrs.shifts, positions, cell)
    inner = found[np.linalg.norm(found[:, 2:], axis=1) < radius - 0.51]
    exact = reference_pairs(np.asarray(positions, np.float64), cell, pbc, radius - 0.51)
    check_pairs(inner, exact, 1e-4)


@pytest.mark.parametrize("method", MOVING)
def test_equal_capacities_compile_once(method: str) -> None:
    cell, pbc, _, radius, _ = MOVING[method]
    start = random_positions(MOVING[method], 1).astype(np.float32)
    traces = 0

    def use(search: Any, nbrs: Any, positions: Any) -> Any:
        nonlocal traces
        traces += 1
        return search.update(nbrs, positions)

    jitted = jax.jit(use, static_argnums=0)
    capacity = 0
    for shift in (0.0, 0.3, 0.6):
        search = neighbor_list(cell, pbc, radius - 0.5, 0.5)
        nbrs = search.allocate(start + np.float32(shift), capacity)
        capacity = nbrs.capacity
        nbrs = jitted(search, nbrs, start)
        jitted(search, nbrs, start)
    assert traces == 1


@pytest.mark.usefixtures("x64")
def test_one_search_serves_both_precisions_and_first_use_inside_jit() -> None:
    cell, pbc, _, radius, _ = CASES["below one cutoff"]
    search = neighbor_list(cell + 0.01, pbc, radius - 0.5, 0.5)
    positions = random_positions(CASES["below one cutoff"], 1)
    lists = [search.allocate(positions.astype(t)) for t in (np.float64, np.float32)]
    assert [nbrs.shifts.dtype for nbrs in lists] == [np.float64, np.float32]
    # The smaller search has not been used yet; no tracer may be kept from its first use.
    other = neighbor_list(cell + 0.01, pbc, radius - 0.6, 0.5)
    assert not jax.jit(other.update)(lists[0], positions + 1.0).overflow
    assert not jax.jit(lambda *args: other.update(*args))(lists[0], positions + 1.0).overflow


def test_update_refuses_another_number_of_atoms() -> None:
    search = neighbor_list(ORTHO, True, 4.0)
    nbrs = search.allocate(random_positions(CASES["orthorhombic"], 0))
    with pytest.raises(ValueError, match="allocate"):
        search.update(nbrs, jnp.zeros((3, 3)))


def test_no_gradient_flows_through_the_list() -> None:
    search = neighbor_list(ORTHO, True, 4.0)
    start = jnp.asarray(random_positions(CASES["orthorhombic"], 0), jnp.float32)
    nbrs = search.allocate(start)
    slope = jax.jit(jax.grad(lambda x: search.update(nbrs, x).shifts.sum() + x.sum()))
    gradient = slope(start + 1.0)
    np.testing.assert_array_equal(gradient, jnp.ones_like(start))
