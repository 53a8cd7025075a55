"""Rows in two parts: the same pairs and forces as in one, whatever the numbers of rows."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import AT_ANY_COST, random_uncertainty, small_student, water_box
from test_grouped_list import (
    CASES,
    check_contract,
    check_pairs,
    pairs_of,
    random_positions,
    reference_pairs,
    search_of,
    vectors_of,
)

from distill.neighbors import parts
from distill.neighbors.build import build
from distill.neighbors.capacity import bucket
from distill.neighbors.grouped import GroupedList, grouped_list
from distill.neighbors.parts import Part, choose_parts, place_rows
from distill.simulation import MDConfig, run_md
from distill.simulation.blocks import make_block
from distill.simulation.packing import pack, unpack
from distill.students import Student

pytestmark = pytest.mark.usefixtures("quick_compilation")

OPTIONS: dict[str, Any] = {"max_l": 1, "n_channels": 2, "n_triples": 0, "hidden": (8,)}


@pytest.fixture(autouse=True)
def small_systems_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.potential.GROUPED_FROM", 1)


@pytest.fixture
def two_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two parts at any cost, also of few rows."""
    for name, value in AT_ANY_COST.items():
        monkeypatch.setattr(parts, name, value)


def student() -> Student:
    return replace(small_student(**OPTIONS), uncertainty=random_uncertainty(8))


@pytest.mark.parametrize("full", [0, 5, 12])
def test_every_row_has_one_place_and_slots_enough(full: int) -> None:
    rng = np.random.default_rng(full)
    species = np.repeat([0, 2], [30, 20])
    narrow, wide = Part((8, 0, 16), (20, 0, 8)), Part((16, 0, 24), (10, 0, 12))
    counts = rng.integers(0, 9, (3, 50)) * [[1], [0], [1]]
    rows = np.concatenate([rng.permutation(30)[:full], 30 + rng.permutation(20)[:full]])
    counts[2 * rng.integers(0, 2, len(rows)), rows] += 17
    placed = jax.jit(lambda c: place_rows((narrow, wide), c))(counts)
    # Ten places for full rows of the first species, twelve of the other.
    assert placed.lacking.tolist() == [full > 10, False, full > 12]
    order = np.asarray(placed.rows)
    assert sorted(order) == list(range(50))
    kinds = np.concatenate([narrow.species, wide.species])
    np.testing.assert_array_equal(species[order], kinds)
    starts = np.asarray(placed.starts)[:, order]
    begin = np.concatenate([24 * np.arange(28), 28 * 24 + 40 * np.arange(22)])
    np.testing.assert_array_equal(starts[0], begin)
    np.testing.assert_array_equal(starts[2], begin + np.repeat([8, 16], [28, 22]))
    if not placed.lacking.any():
        assert (counts[:, order[:28]] <= np.array([[8], [0], [16]]))[[0, 2]].all()
        # Rows that stand together stay so.
        for own in (order[:20], order[20:28], order[28:38], order[38:]):
            assert (np.diff(own) > 0).all()


@pytest.mark.usefixtures("x64", "two_parts")
@pytest.mark.parametrize("name", ["triclinic", "wide slab", "large cluster"])
def test_pairs_equal_the_host_list(name: str) -> None:
    case = CASES[name]
    cell, pbc, *_, radius = case
    search = search_of(case, capacity_multiplier=2.5)
    start, moved = random_positions(case, 0), random_positions(case, 1, unwrap=3)
    nbrs = search.allocate(start)
    narrow, wide = nbrs.layout.parts
    assert narrow.slots < wide.slots and narrow.count and wide.count
    updated = jax.jit(search.update)(nbrs, moved)
    assert not updated.overflow and (updated.reference_positions == moved).all()
    for positions, own in ((start, nbrs), (moved, updated)):
        expected = reference_pairs(positions, cell, pbc, radius)
        check_pairs(pairs_of(own, positions, cell, pbc), expected)
        check_contract(own, search.species, vectors_of(own, positions, cell, pbc))


def tight(nbrs: GroupedList, search: Any) -> GroupedList:
    """The list with places for fewer wide rows than there are."""
    narrow, wide = nbrs.layout.parts
    rows = (wide.rows[0] - 8 * (wide.rows[0] // 8), *wide.rows[1:])
    moved = wide.rows[0] - rows[0]
    few = replace(narrow, rows=(narrow.rows[0] + moved, *narrow.rows[1:]))
    layout = replace(nbrs.layout, parts=(few, replace(wide, rows=rows)))
    found = build(layout, search.species, nbrs.reference_positions, nbrs.center)
    return replace(nbrs, layout=layout, **found._asdict())


@pytest.mark.usefixtures("two_parts")
def test_wide_rows_that_lack_places_are_named_and_grow() -> None:
    case = CASES["triclinic"]
    cell, pbc, *_, radius = case
    search = search_of(case)
    start = random_positions(case, 0).astype(np.float32)
    nbrs = search.allocate(start)
    full = tight(nbrs, search)
    n_species = len(nbrs.groups)
    assert np.flatnonzero(full.lacking).tolist() == [3 + n_species] and full.overflow
    assert len(pairs_of(full, start, cell, pbc)) == 0
    again = search.allocate(start, previous=full)
    assert not again.overflow
    assert again.layout.parts[1].rows[0] > full.layout.parts[1].rows[0]
    assert len(pairs_of(again, start, cell, pbc)) == pytest.approx(
        len(reference_pairs(start, cell, pbc, radius)), abs=2
    )


@pytest.mark.usefixtures("x64", "two_parts")
def test_results_equal_the_reference() -> None:
    atoms = water_box(3)
    model = student()
    plain = model.potential(atoms, dtype=np.float64, kernel="reference")
    positions, cell = jnp.asarray(atoms.positions), jnp.asarray(1.01 * atoms.cell.array)
    expected = jax.jit(plain.evaluate)(positions, plain.allocate(positions), cell)
    for kernel in ("blocked", "pallas"):
        divided = model.potential(atoms, dtype=np.float64, kernel=kernel)
        lists = divided.allocate(positions)
        assert len(lists.layout.parts) == 2
        found = jax.jit(divided.evaluate)(positions, lists, cell)
        assert len(found.beside) == 1  # the expected errors
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-10)


@pytest.mark.usefixtures("x64")
def test_a_run_in_two_parts_is_that_in_one(request: pytest.FixtureRequest) -> None:
    atoms = water_box(3)
    md = MDConfig(ensemble="nve", steps=60, record_every=20, block_steps=20)

    def run() -> Any:
        own = student().potential(atoms, dtype=np.float64)
        assert len(own.allocate(atoms.positions).layout.parts) == wanted
        return run_md(own, atoms.positions, md, progress=False).frames

    wanted = 1
    expected = run()
    request.getfixturevalue("two_parts")
    wanted = 2
    found = run()
    assert np.abs(expected.positions[-1] - atoms.positions).max() > 0.3  # lists were rebuilt
    np.testing.assert_allclose(found.positions, expected.positions, rtol=0, atol=1e-7)


@pytest.mark.usefixtures("x64", "two_parts")
def test_a_block_that_lacks_wide_rows_is_run_again() -> None:
    atoms = water_box(3)
    model = student()
    own = model.potential(atoms, dtype=np.float64)
    enough = own.allocate(atoms.positions)
    start, block = make_block(own, MDConfig(steps=10, record_every=10, block_steps=10))
    state = start(jax.random.PRNGKey(0), jnp.asarray(atoms.positions), enough)
    *_, expected, overflow = block(state, enough, 1)
    search = grouped_list(atoms.cell.array, True, model.species(atoms.numbers), model.cutoff)
    few = tight(enough, search)
    assert not overflow and block(state, few, 1)[3]
    larger = own.allocate(atoms.positions, few)
    assert larger.layout.parts[1].rows[0] > few.layout.parts[1].rows[0]
    *_, rerun, overflow = block(state, larger, 1)
    assert not overflow
    for mine, reference in zip(rerun, expected, strict=True):
        np.testing.assert_allclose(mine, reference, rtol=0, atol=1e-11)


@pytest.mark.usefixtures("x64")
def test_lists_of_two_parts_are_restored_from_a_checkpoint(request: pytest.FixtureRequest) -> None:
    """Whatever the parts of the list that the program began with."""
    atoms = water_box(3)
    own = student().potential(atoms, dtype=np.float64)
    single = own.allocate(atoms.positions)
    request.getfixturevalue("two_parts")
    double = own.allocate(atoms.positions)
    assert [len(one.layout.parts) for one in (single, double)] == [1, 2]
    for saved, template in ((double, single), (single, double)):
        arrays: list[np.ndarray] = []
        restored = unpack(json.loads(json.dumps(pack(saved, arrays))), template, arrays)
        assert restored.layout == saved.layout
        for one, other in zip(jax.tree.leaves(restored), jax.tree.leaves(saved), strict=True):
            np.testing.assert_array_equal(one, other)


MULTIPLIER = 1.1


def fluctuating(n: int, seed: int = 0, mean: float = 43.0) -> np.ndarray:
    """Neighbours of two species, as in a liquid."""
    rng = np.random.default_rng(seed)
    return rng.normal([[mean], [0.5 * mean]], [[3.3], [1.7]], (2, n)).astype(int)


def chosen(counts: np.ndarray, species: np.ndarray, *before: Any) -> tuple[Part, ...]:
    """With the slots that the widest rows get."""
    groups = [bucket(int(np.ceil(MULTIPLIER * most)), 1.1) for most in counts.max(axis=1)]
    if before:
        groups = np.maximum(groups, before[0][-1].groups).tolist()
    return choose_parts(tuple(groups), species, counts, MULTIPLIER, 0, *before)


def test_parts_are_made_where_they_pay() -> None:
    species, counts = np.arange(6000) % 2, fluctuating(6000)
    assert len(chosen(counts[:, :500], species[:500])) == 1
    narrow, wide = chosen(counts, species)
    assert narrow.slots < wide.slots
    assert np.add(narrow.rows, wide.rows).tolist() == [3000, 3000]
    assert narrow.cost + wide.cost < 0.95 * replace(wide, rows=(3000, 3000)).cost
    full = (counts > np.array(narrow.groups)[:, None]).any(0)
    assert (np.bincount(species[full], minlength=2) < wide.rows).all()


def test_parts_are_kept_and_wide_rows_become_no_fewer() -> None:
    species, counts = np.arange(6000) % 2, fluctuating(6000)
    first = chosen(counts, species)
    kept = chosen(fluctuating(6000, 1, mean=43.5), species, first)
    assert kept[0].groups == first[0].groups
    assert all(new >= old for new, old in zip(kept[1].rows, first[1].rows, strict=True))
    assert chosen(counts, species, kept) == kept
    lacking = np.zeros(7, bool)
    lacking[5] = True  # wide rows of the first species
    grown = chosen(counts, species, first, lacking)
    assert grown[1].rows[0] >= 2 * first[1].rows[0] and grown[1].rows[1] == first[1].rows[1]


@pytest.mark.parametrize("jitter", [0.04, 0.1])
@pytest.mark.parametrize("count", [41, 59, 73])
def test_a_crystal_that_warms_up_is_allocated_again_a_few_times_at_most(
    count: int, jitter: float
) -> None:
    """A block is run again from where it began: counts are those of the crystal each time."""
    species = np.zeros(4000, int)
    cold = np.full((1, 4000), count)
    warm = cold + np.random.default_rng(0).normal(0, jitter * count, cold.shape).astype(int)
    own = chosen(cold, species)
    assert len(own) == 1 + (count != 41)  # Slots come in eights: there are usual ones or not.
    for _ in range(6):
        short = (warm > own[0].groups[0]).sum() > own[-1].count if len(own) == 2 else False
        narrow = warm.max() > own[-1].groups[0]
        if not short and not narrow:
            break
        again = chosen(cold, species, own, np.array([0, 0, 0, 0, short], bool))
        if narrow:  # What `choose_groups` does besides.
            grown = (int(1.25 * own[-1].groups[0]) // 8 * 8 + 8,)
            again = (*again[:-1], replace(again[-1], groups=grown))
        own = again
    else:
        pytest.fail("there is no end")
