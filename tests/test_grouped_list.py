"""Grouped lists against the exact host list, and their promises in loops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import check_rebuilds

from distill.errors import UnsupportedStructureError
from distill.neighbors import neighbor_table
from distill.neighbors.bits import below, ones, select
from distill.neighbors.build import build
from distill.neighbors.candidates import Layout, sorted_keys
from distill.neighbors.grouped import GroupedList, extended_positions, grouped_list

pytestmark = pytest.mark.usefixtures("quick_compilation")

TRICLINIC = np.array([[13.0, 0.0, 0.0], [4.0, 14.0, 0.0], [-3.0, 5.0, 12.0]])
SKEW = np.array([[6.0, 0.0, 0.0], [5.5, 4.0, 0.0], [-7.0, 6.0, 5.0]])
FLAT = np.array([[7.0, 0.0, 0.0], [3.0, 6.0, 0.0], [7.0, 6.0, 0.0]])  # of no use in the third
WIRE = np.array([[0.0, 0.0, 0.0], [1.0, 3.0, 2.0], [0.0, 0.0, 0.0]])
WIDE_SLAB = np.array([[14.0, 0.0, 1.0], [0.0, 0.0, 0.0], [3.0, 0.0, 15.0]])
FREE = np.zeros((3, 3))

# name: cell, pbc, atoms, species, radius
CASES: dict[str, tuple[Any, Any, int, int, float]] = {
    "orthorhombic": (np.diag([13.0, 14.0, 15.0]), (1, 1, 1), 60, 3, 4.0),
    "triclinic": (TRICLINIC, (1, 1, 1), 60, 2, 4.5),
    "strongly skewed": (SKEW, (1, 1, 1), 20, 2, 4.0),
    "below one cutoff": (np.diag([2.0, 3.0, 2.5]), (1, 1, 1), 3, 2, 5.0),
    "slab": (FLAT, (1, 1, 0), 20, 2, 4.0),
    "wide slab": (WIDE_SLAB, (1, 0, 1), 80, 4, 4.5),
    "wire": (WIRE, (0, 1, 0), 10, 1, 4.0),
    "molecule": (TRICLINIC, (0, 0, 0), 40, 3, 4.0),
    "one atom": (np.diag([3.0, 4.0, 5.0]), (1, 1, 1), 1, 1, 4.0),
    "no neighbours": (TRICLINIC * 10, (1, 1, 1), 5, 2, 0.01),
    "many cells": (TRICLINIC * 2, (1, 1, 1), 500, 2, 4.5),
    "long and thin": (np.diag([3.0, 4.0, 900.0]), (1, 1, 1), 300, 2, 5.0),
    "large cluster": (FREE, (0, 0, 0), 1500, 2, 1.6),
}


def random_positions(case: tuple[Any, ...], seed: int, unwrap: int = 0) -> np.ndarray:
    """Positions all over the cell, and up to `unwrap` cells away along periodic directions."""
    cell, pbc, n, *_ = case
    rng = np.random.default_rng(seed)
    given = np.any(np.asarray(cell), axis=1, keepdims=True)
    span = np.where(given, cell, np.eye(3) * 8)
    if np.linalg.matrix_rank(span) < 3:
        span = span + np.eye(3)
    images = rng.integers(-unwrap, unwrap + 1, (n, 3)) * np.asarray(pbc)
    return rng.random((n, 3)) @ span + images @ np.asarray(cell)


def random_species(case: tuple[Any, ...], seed: int = 0) -> np.ndarray:
    n, kinds = case[2:4]
    return np.random.default_rng(seed).permutation(np.arange(n) % kinds)


def search_of(case: tuple[Any, ...], skin: float = 0.5, **options: Any) -> Any:
    cell, pbc, _, _, radius = case
    skin = min(skin, 0.1 * radius)
    return grouped_list(cell, pbc, random_species(case), radius - skin, skin, **options)


class Slots(NamedTuple):
    """Of every slot: its row, the species of its group, what it holds, and the mirrored pair."""

    row: np.ndarray
    kind: np.ndarray
    neighbor: np.ndarray
    reverse: np.ndarray


def slots_of(nbrs: GroupedList) -> Slots:
    rows, kinds, first = [], [], 0
    for part, neighbors in zip(nbrs.layout.parts, nbrs.neighbors, strict=True):
        assert neighbors.shape == (part.count, part.slots)
        rows.append(np.repeat(np.arange(first, first + part.count), part.slots))
        kinds.append(np.tile(np.repeat(np.arange(len(part.groups)), part.groups), part.count))
        first += part.count
    flat = [np.concatenate([np.ravel(x) for x in own]) for own in (nbrs.neighbors, nbrs.reverse)]
    return Slots(np.concatenate(rows), np.concatenate(kinds), *flat)


def vectors_of(nbrs: GroupedList, positions: Any, cell: Any, pbc: Any) -> np.ndarray:
    periodic = np.where(np.asarray(pbc, bool).reshape(-1, 1), cell, 0.0)
    extended = np.asarray(extended_positions(nbrs, jnp.asarray(positions), periodic), np.float64)
    slots = slots_of(nbrs)
    return extended[slots.neighbor] - extended[np.asarray(nbrs.rows)[slots.row]]


def pairs_of(nbrs: GroupedList, positions: Any, cell: Any, pbc: Any) -> np.ndarray:
    """Rows (i, j, displacement) in a fixed order, numbered as atoms."""
    slots = slots_of(nbrs)
    filled = slots.neighbor < len(nbrs.source) - 1
    source = np.asarray(nbrs.source)[slots.neighbor[filled]]
    vectors = vectors_of(nbrs, positions, cell, pbc)[filled]
    return sort_pairs(np.asarray(nbrs.order)[slots.row[filled]], source, vectors)


def reference_pairs(positions: Any, cell: Any, pbc: Any, radius: float) -> np.ndarray:
    positions = np.asarray(positions, np.float64)
    table = neighbor_table(positions, cell, pbc, radius)
    i, j, _, vectors = table.pairs(positions, np.asarray(cell))
    return sort_pairs(i, j, vectors)


def sort_pairs(i: np.ndarray, j: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    keys = np.round(vectors, 4)
    order = np.lexsort((keys[:, 2], keys[:, 1], keys[:, 0], j, i))
    return np.column_stack([i, j, vectors])[order]


def check_pairs(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-8) -> None:
    assert len(found) == len(expected)
    np.testing.assert_allclose(found, expected, atol=tolerance, rtol=0)


def check_contract(nbrs: GroupedList, species: np.ndarray, vectors: np.ndarray) -> None:
    """What holds whatever the positions; `vectors` `[slots, 3]`."""
    slots = slots_of(nbrs)
    row, kind, neighbor, reverse = slots
    n = len(species)
    order, rows, source = (np.asarray(x) for x in (nbrs.order, nbrs.rows, nbrs.source))
    for index in (order, rows, source, neighbor, reverse):
        assert index.dtype == np.int32
    assert sorted(rows) == list(range(n)) and (source[rows] == order).all() and source[-1] == n
    of_parts = np.concatenate([part.species for part in nbrs.layout.parts])
    assert (species[order] == of_parts).all()
    assert all(group % 8 == 0 for part in nbrs.layout.parts for group in part.groups)
    filled = neighbor < len(source) - 1
    assert (neighbor[~filled] == len(source) - 1).all() and (reverse[~filled] == len(row)).all()
    assert (species[source[neighbor[filled]]] == kind[filled]).all()
    for part, own in zip(nbrs.layout.parts, nbrs.neighbors, strict=True):
        for group in np.split(np.asarray(own), np.cumsum(part.groups)[:-1], axis=1):
            full = group < len(source) - 1
            assert (full[:, :-1] >= full[:, 1:]).all()
    # The mirrored pair: an involution, opposite in direction, between the same atoms.
    mirrored = reverse[filled]
    assert (reverse[mirrored] == np.flatnonzero(filled)).all()
    np.testing.assert_allclose(vectors[mirrored], -vectors[filled], atol=2e-3)
    assert (source[neighbor[mirrored]] == order[row[filled]]).all()
    lengths = np.linalg.norm(vectors, axis=-1)
    assert (lengths[~filled] > 900).all() and np.isfinite(lengths).all()


def some(names: Any, quick: set[Any]) -> list[Any]:
    """Parameters; those that are not `quick` are left to the slow tests: each is a compilation."""
    return [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in names]


QUICK = {"triclinic", "strongly skewed", "below one cutoff", "wide slab", "wire", "large cluster"}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", some(CASES, QUICK))
def test_pairs_equal_the_host_list(name: str) -> None:
    case = CASES[name]
    cell, pbc, _, _, radius = case
    search = search_of(case)
    for unwrap in (0, 1000):
        positions = random_positions(case, 0, unwrap)
        nbrs = search.allocate(positions)
        assert nbrs.shift.dtype == jnp.float64 and not nbrs.overflow and not nbrs.stale
        expected = reference_pairs(positions, cell, pbc, radius)
        check_pairs(pairs_of(nbrs, positions, cell, pbc), expected)
        check_contract(nbrs, search.species, vectors_of(nbrs, positions, cell, pbc))


@pytest.mark.parametrize("name", some(["strongly skewed", "slab", "many cells"], {"slab"}))
def test_single_precision_misses_nothing(name: str) -> None:
    case = CASES[name]
    cell, pbc, _, _, radius = case
    search = search_of(case)
    update = jax.jit(search.update)
    nbrs = search.allocate(random_positions(case, 4).astype(np.float32), minimum_capacity=64)
    updates = 0
    for seed in range(5):
        positions = random_positions(case, seed, unwrap=3).astype(np.float32)
        updated = update(nbrs, positions)
        updates += not updated.overflow
        # Other positions may have more images within reach.
        nbrs = search.allocate(positions, previous=updated) if updated.overflow else updated
        assert nbrs.shift.dtype == jnp.float32 and not nbrs.overflow
        check_contract(nbrs, search.species, vectors_of(nbrs, positions, cell, pbc))
        found = pairs_of(nbrs, positions, cell, pbc)
        # Pairs at the very edge may fall to either side.
        lengths = np.linalg.norm(found[:, 2:], axis=1)
        assert lengths.max() < radius + 1e-3
        # Vectors in float32 may be sorted otherwise than exact ones, so only atoms and lengths.
        exact = reference_pairs(positions, cell, pbc, radius - 1e-3)
        inner = found[lengths < radius - 1e-3]
        assert abs(len(inner) - len(exact)) <= 2
        if len(inner) == len(exact):
            np.testing.assert_array_equal(inner[:, :2], exact[:, :2])
    assert updates > 2


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("seed", some(range(30), {0, 3}))
def test_random_cells(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pbc = rng.random(3) < 0.6
    cell = np.diag(rng.uniform(2, 16, 3)) + rng.normal(scale=1.0, size=(3, 3))
    n, kinds = int(rng.integers(1, 80)), int(rng.integers(1, 5))
    case = (cell, pbc, n, kinds, float(rng.uniform(2.0, 5.0)))
    search = search_of(case)
    positions = random_positions(case, seed, unwrap=2)
    nbrs = search.allocate(positions)
    check_pairs(
        pairs_of(nbrs, positions, cell, pbc), reference_pairs(positions, cell, pbc, case[4])
    )
    check_contract(nbrs, search.species, vectors_of(nbrs, positions, cell, pbc))


@pytest.mark.usefixtures("x64")
def test_ties_on_lattices_and_coincident_atoms() -> None:
    """Distances that equal the radius, atoms on faces of grid cells, two atoms in one place."""
    cell = np.eye(3) * 12.0
    positions = 2.0 * np.array(list(np.ndindex(6, 6, 6)), float)
    positions[1] = positions[0]
    species = np.arange(216) % 2
    search = grouped_list(cell, True, species, 3.5, 0.5)
    nbrs = search.allocate(positions)
    check_contract(nbrs, species, vectors_of(nbrs, positions, cell, True))
    found = pairs_of(nbrs, positions, cell, True)
    inner = found[np.linalg.norm(found[:, 2:], axis=1) < 3.9]
    check_pairs(inner, reference_pairs(positions, cell, True, 3.9))
    assert (np.linalg.norm(found[:, 2:], axis=1) == 0).sum() == 2


def test_species_that_do_not_occur_have_no_slots() -> None:
    species = np.array([3, 1, 3, 1])
    positions = np.arange(12.0).reshape(4, 3) * 0.5
    nbrs = grouped_list(FREE, False, species, 3.0).allocate(positions.astype(np.float32))
    assert nbrs.groups == (0, 8, 0, 8)
    check_contract(nbrs, species, vectors_of(nbrs, positions.astype(np.float32), FREE, False))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", some(["slab", "wide slab"], {"slab"}))
def test_update_after_motion_equals_a_fresh_list(name: str) -> None:
    case = CASES[name]
    cell, pbc, *_, radius = case
    search = search_of(case, capacity_multiplier=2.0)
    start = random_positions(case, 1, unwrap=2)
    rng = np.random.default_rng(2)
    periodic = np.where(np.asarray(pbc, bool)[:, None], cell, 0)
    moved = start + 0.5 * rng.normal(size=start.shape)
    moved = moved + rng.integers(-2, 3, start.shape) @ periodic
    nbrs = jax.jit(search.update)(search.allocate(start), moved)
    assert not nbrs.overflow
    np.testing.assert_array_equal(nbrs.reference_positions, moved)
    found = pairs_of(nbrs, moved, cell, pbc)
    check_pairs(found, reference_pairs(moved, cell, pbc, radius))
    check_pairs(found, pairs_of(search.allocate(moved), moved, cell, pbc))


def test_rebuild_and_stale_thresholds() -> None:
    search = grouped_list(TRICLINIC, True, random_species(CASES["triclinic"]), 4.0, skin=0.8)
    start = jnp.asarray(random_positions(CASES["triclinic"], 0), jnp.float32)
    check_rebuilds(search, start, skin=0.8)


def test_lost_atoms_are_stale_but_no_overflow() -> None:
    search = search_of(CASES["triclinic"])
    start = jnp.asarray(random_positions(CASES["triclinic"], 0), jnp.float32)
    nbrs = jax.jit(search.update)(search.allocate(start), start.at[3, 1].set(jnp.nan))
    assert nbrs.stale and not nbrs.overflow


def test_list_before_a_rebuild_still_holds_every_pair_within_the_cutoff() -> None:
    cell, pbc, *_, radius = CASES["triclinic"]
    search = grouped_list(cell, pbc, random_species(CASES["triclinic"]), radius - 1.0, 1.0)
    start = random_positions(CASES["triclinic"], 3)
    nbrs = search.allocate(start)
    directions = np.random.default_rng(4).normal(size=start.shape)
    moved = start + 0.37 * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    updated = jax.jit(search.update)(nbrs, jnp.asarray(moved))
    np.testing.assert_array_equal(updated.reference_positions, nbrs.reference_positions)
    found = pairs_of(updated, moved, cell, pbc)
    inner = found[np.linalg.norm(found[:, 2:], axis=1) < radius - 1.0]
    check_pairs(inner, reference_pairs(moved, cell, pbc, radius - 1.0), 1e-4)


def test_overflow_is_flagged_and_stays() -> None:
    cell, pbc, *_, radius = CASES["many cells"]
    search = search_of(CASES["many cells"])
    start = jnp.asarray(random_positions(CASES["many cells"], 1), jnp.float32)
    squeezed = start * 0.5
    update = jax.jit(search.update)
    nbrs = search.allocate(start)
    full = update(nbrs, squeezed)
    assert full.overflow and (slots_of(full).neighbor == len(full.source) - 1).all()
    again = update(full, start)
    assert again.overflow and len(pairs_of(again, start, cell, pbc)) > 0
    larger = search.allocate(squeezed, previous=full)
    assert not larger.overflow and larger.capacity > full.capacity
    assert len(pairs_of(larger, squeezed, cell, pbc)) == pytest.approx(
        len(reference_pairs(squeezed, cell, pbc, radius)), abs=4
    )


def with_groups(layout: Layout, *groups: int) -> Layout:
    (part,) = layout.parts
    return replace(layout, parts=(replace(part, groups=groups),))


BUFFERS = ["images", "rows of a grid cell", "candidates", "first group", "second group"]


@pytest.mark.parametrize("which", some(range(5), {2}), ids=BUFFERS)
def test_each_buffer_that_is_too_small_is_named_and_grows(which: int) -> None:
    search = search_of(CASES["many cells"], capacity_multiplier=1.0)
    start = jnp.asarray(random_positions(CASES["many cells"], 1), jnp.float32)
    nbrs = search.allocate(start)
    old = nbrs.layout
    few = [
        replace(old, images=501),
        replace(old, rows_per_cell=1),
        replace(old, words=(1, old.words[1])),
        with_groups(old, 8, old.groups[1]),
        with_groups(old, old.groups[0], 8),
    ][which]
    lacking = build(few, search.species, start, nbrs.center).lacking
    np.testing.assert_array_equal(np.flatnonzero(lacking), which)
    # Positions for which nothing is too small: what was too small once grows all the same.
    new = search.allocate(start, previous=replace(nbrs, lacking=lacking)).layout
    sizes = [(x.images, x.rows_per_cell, *x.words, *x.groups) for x in (old, new)]
    grown = np.flatnonzero(np.diff(sizes, axis=0)[0])
    assert grown.tolist() == [[0], [1], [2, 3], [4], [5]][which]


def test_fluctuations_do_not_recompile() -> None:
    """Lists allocated again and again, each time with the one before, keep their shapes."""
    rng = np.random.default_rng(0)
    cell = np.eye(3) * 15.0
    sites = np.array(list(np.ndindex(6, 6, 6))) * 2.5
    species = np.arange(216) % 3
    search = grouped_list(cell, True, species, 3.5, 0.5)
    traces = []

    @jax.jit
    def update(nbrs: GroupedList, positions: jax.Array) -> GroupedList:
        traces.append(1)
        return search.update(nbrs, positions)

    nbrs = None
    layouts = set()
    for _ in range(12):
        positions = jnp.asarray(sites + rng.normal(scale=0.4, size=sites.shape), jnp.float32)
        nbrs = search.allocate(positions, previous=nbrs)
        nbrs = update(nbrs, positions + 0.3)
        layouts.add(nbrs.layout)
        assert not nbrs.overflow
    assert len(traces) == len(layouts) <= 3
    before = len(traces)
    equal = grouped_list(cell, True, species, 3.5, 0.5)
    assert equal == search and hash(equal) == hash(search)
    update(equal.allocate(positions, previous=nbrs), positions)
    assert len(traces) == before


@pytest.mark.parametrize("how", some(["map", "vmap"], {"map"}))
def test_replicas_and_loops(how: str) -> None:
    case = CASES["triclinic"]
    cell, pbc, *_, radius = case
    search = search_of(case, capacity_multiplier=2.0)
    starts = np.stack([random_positions(case, seed) for seed in range(3)]).astype(np.float32)
    first = search.allocate(starts[0])
    lists = jax.tree.map(lambda x: jnp.stack([x] * 3), first)

    def run(given: tuple[GroupedList, jax.Array]) -> tuple[GroupedList, jax.Array]:
        def step(carry: Any, i: jax.Array) -> tuple[Any, None]:
            nbrs, x = carry
            x = x + 0.05 * jnp.sin(i + jnp.arange(x.size, dtype=x.dtype).reshape(x.shape))
            return (search.update(nbrs, x), x), None

        return jax.lax.scan(step, given, jnp.arange(20))[0]

    each = jax.vmap(run) if how == "vmap" else lambda given: jax.lax.map(run, given)
    lists, ends = jax.jit(each)((lists, jnp.asarray(starts)))
    assert not lists.overflow.any()
    for k in range(3):
        mine = jax.tree.map(lambda x, k=k: x[k], lists)
        found = pairs_of(mine, ends[k], cell, pbc)
        inner = found[np.linalg.norm(found[:, 2:], axis=1) < radius - 0.45]
        exact = reference_pairs(ends[k], cell, pbc, radius - 0.45)
        np.testing.assert_array_equal(inner[:, :2], exact[:, :2])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("distance", some([1e2, 1e6], {1e6}))
def test_an_atom_far_away_costs_little(distance: float) -> None:
    positions = np.array(list(np.ndindex(4, 4, 4)), float)
    positions[-1] = distance
    species = np.zeros(64, int)
    nbrs = grouped_list(FREE, False, species, 1.5, 0.4).allocate(positions)
    check_pairs(pairs_of(nbrs, positions, FREE, False), reference_pairs(positions, FREE, 0, 1.9))
    assert nbrs.layout.grid.n_home <= 4 * 64
    cell = np.eye(3) * 2 * distance
    nbrs = grouped_list(cell, True, species, 1.5, 0.4).allocate(positions)
    check_pairs(
        pairs_of(nbrs, positions, cell, True), reference_pairs(positions, cell, True, 1.9), 1e-6
    )
    assert nbrs.layout.grid.n_home <= 4 * 64


@pytest.mark.slow
def test_the_grid_follows_a_drifting_cluster() -> None:
    case = CASES["large cluster"]
    search = search_of(case)
    start = jnp.asarray(random_positions(case, 0), jnp.float32)
    nbrs = search.allocate(start)
    layout = nbrs.layout
    assert layout.grid.n_home > 8

    def step(carry: Any, _: Any) -> tuple[Any, None]:
        nbrs, x = carry
        x = x + jnp.asarray([0.3, -0.2, 0.1])
        return (search.update(nbrs, x), x), None

    nbrs, moved = jax.jit(lambda c: jax.lax.scan(step, c, None, length=400)[0])((nbrs, start))
    assert not nbrs.overflow
    assert len(pairs_of(nbrs, moved, FREE, False)) == pytest.approx(
        len(reference_pairs(start, FREE, False, case[4])), abs=4
    )


@pytest.mark.usefixtures("x64")
def test_forces_by_gathering_equal_the_gradient() -> None:
    case = CASES["strongly skewed"]
    cell = jnp.asarray(case[0])
    search = search_of(case)
    positions = jnp.asarray(random_positions(case, 0, unwrap=1))
    nbrs = search.allocate(positions)
    n = len(positions)

    def of_vectors(vectors: jax.Array) -> jax.Array:
        squared = (vectors**2).sum(-1)
        weight = jnp.sin(jnp.arange(n))[:, None]  # so that i -> j and j -> i differ
        return (weight * jnp.maximum(1 - squared / case[4] ** 2, 0) ** 3).sum()

    def vectors(positions: jax.Array) -> jax.Array:
        extended = extended_positions(nbrs, positions, cell)
        return extended[nbrs.neighbors[0]] - extended[nbrs.rows][:, None]

    expected = -jax.grad(lambda x: of_vectors(vectors(x)))(positions)
    gradients = jax.grad(of_vectors)(vectors(positions))
    flat = jnp.append(gradients.reshape(-1, 3), jnp.zeros((1, 3)), axis=0)
    by_row = (gradients - flat[nbrs.reverse[0]]).sum(1)
    forces = jnp.zeros_like(by_row).at[nbrs.order].set(by_row)
    assert jnp.abs(expected).max() > 0.01
    np.testing.assert_allclose(forces, expected, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("pbc", some([(1, 1, 1), (1, 0, 1)], {(1, 1, 1)}))
def test_a_small_box_has_the_images_within_reach_and_no_others(pbc: tuple[int, int, int]) -> None:
    cell, n, radius = np.diag([9.0, 10.0, 11.0]), 60, 4.5
    case = cell, pbc, n, 2, radius
    positions = random_positions(case, 3, unwrap=2)
    lists = grouped_list(cell, pbc, random_species(case), radius - 0.5, skin=0.5)
    nbrs = lists.allocate(positions)
    assert nbrs.layout.grid.n_home == 1
    source = np.asarray(nbrs.source)
    real = source < n
    found = np.asarray(extended_positions(nbrs, jnp.asarray(positions), cell))[real]
    shifts = np.stack(np.meshgrid(*[[-1, 0, 1] if p else [0] for p in pbc]), -1).reshape(-1, 3)
    home = np.where(pbc, np.floor(positions / np.diag(cell)), 0)
    every = ((positions - home @ cell)[:, None] + shifts @ cell).reshape(-1, 3)
    beyond = np.where(pbc, np.maximum(-every, every - np.diag(cell)), 0).max(axis=1)
    assert set(_rounded(every[beyond < radius])) <= set(_rounded(found))
    assert set(_rounded(found)) <= set(_rounded(every[beyond < 1.01 * radius]))
    assert len(found) == len(set(_rounded(found))) < 0.6 * len(every)


@pytest.mark.usefixtures("x64")
def test_a_molecule_may_drift_from_the_middle_of_a_small_box_to_its_corner() -> None:
    cell = np.eye(3) * 12.0
    inside = np.random.default_rng(5).random((21, 3)) * 3.5
    lists = grouped_list(cell, (1, 1, 1), np.arange(21) % 2, 5.0, skin=0.5)
    middle = lists.allocate(inside + 4.25)
    assert middle.layout.grid.n_home == 1
    corner = lists.update(middle, jnp.asarray(inside - 1.75))
    assert not corner.overflow
    assert corner.capacity == middle.capacity
    count = (np.asarray(corner.neighbors) < len(corner.source) - 1).sum()
    host = neighbor_table(inside, cell, np.ones(3, bool), 5.5)
    assert count == host.counts.sum()


def _rounded(points: np.ndarray) -> list[tuple[float, ...]]:
    return [tuple(point) for point in (np.round(points, 6) + 0.0).tolist()]


@pytest.mark.parametrize("count", [40, 2**31 - 1])
def test_rows_are_sorted_alike_in_few_and_in_many_cells(count: int) -> None:
    keys = np.random.default_rng(0).integers(0, 40, 300).astype(np.int32)
    found, order = sorted_keys(jnp.asarray(keys), count)
    np.testing.assert_array_equal(found, np.sort(keys))
    np.testing.assert_array_equal(keys[np.asarray(order)], np.sort(keys))
    np.testing.assert_array_equal(np.sort(order), np.arange(len(keys)))


def test_bits() -> None:
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**32, (2, 300), dtype=np.uint32).min(axis=0)
    words[:3] = [0, 1, 2**32 - 1]
    counts = np.asarray(ones(jnp.asarray(words)))
    found = np.asarray(select(jnp.asarray(words)[:, None], jnp.arange(32, dtype=jnp.int32)))
    assert found.dtype == counts.dtype == np.int32
    assert found.min() >= 0 and found.max() <= 31
    for word, count, places in zip(words.tolist(), counts, found, strict=True):
        assert places[:count].tolist() == [bit for bit in range(32) if word >> bit & 1]
    lower = below(jnp.arange(32, dtype=jnp.int32))
    np.testing.assert_array_equal(lower, [2**bit - 1 for bit in range(32)])


def test_senseless_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="cutoff"):
        grouped_list(TRICLINIC, True, [0], -1.0)
    with pytest.raises(ValueError, match="species"):
        grouped_list(TRICLINIC, True, [-1, 0], 3.0)
    with pytest.raises(UnsupportedStructureError, match="cell"):
        grouped_list(np.zeros((3, 3)), True, [0], 3.0)
    search = grouped_list(TRICLINIC, True, [0, 1], 3.0)
    with pytest.raises(UnsupportedStructureError, match="atom 1"):
        search.allocate([[0.0, 0, 0], [0, np.inf, 0]])
    with pytest.raises(ValueError, match="positions"):
        search.allocate(np.zeros((3, 3)))
    with pytest.raises(ValueError, match="allocate a list"):
        search.update(search.allocate(np.eye(3)[:2]), jnp.zeros((3, 3)))
