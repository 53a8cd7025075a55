"""Rows in two parts: the same pairs and forces as in one, whatever the numbers of rows."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import random_uncertainty, small_student, water_box
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
from distill.neighbors.grouped import GroupedList
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
    monkeypatch.setattr(parts, "TWO_PARTS_FROM", 1)
    monkeypatch.setattr(parts, "WORTH", 1.5)
    monkeypatch.setattr(parts, "QUANTILES", (0.3,))
    monkeypatch.setattr(parts, "_cost", len_as_cost)


def len_as_cost(chosen: tuple[Part, ...]) -> int:
    return -len(chosen)


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
    search = search_of(case, capacity_multiplier=1.5)
    start, moved = random_positions(case, 0), random_positions(case, 1, unwrap=3)
    nbrs = search.allocate(start)
    narrow, wide = nbrs.layout.parts
    assert narrow.slots < wide.slots and narrow.count and wide.count
    lists = [(start, nbrs)]
    updated = jax.jit(search.update)(nbrs, moved)
    larger = search.allocate(moved, updated) if updated.overflow else updated
    for positions, own in (*lists, (moved, larger)):
        assert not own.overflow
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
    own = student().potential(atoms, dtype=np.float64)
    enough = own.allocate(atoms.positions)
    start, block = make_block(own, MDConfig(steps=10, record_every=10, block_steps=10))
    state = start(jax.random.PRNGKey(0), jnp.asarray(atoms.positions), enough)
    *_, expected, overflow = block(state, enough, 1)
    lacking = enough.lacking.at[-1].set(True)
    assert not overflow and block(state, replace(enough, lacking=lacking), 1)[3]
    larger = own.allocate(atoms.positions, replace(enough, lacking=lacking))
    assert larger.layout.parts[1].rows[-1] >= enough.layout.parts[1].rows[-1]
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


def fluctuating(n: int, seed: int = 0, mean: float = 40.0) -> np.ndarray:
    """Neighbours of two species, as in a liquid."""
    rng = np.random.default_rng(seed)
    return rng.normal([[mean], [0.5 * mean]], [[4.0], [2.0]], (2, n)).astype(int)


def test_parts_are_made_where_they_pay() -> None:
    species = np.arange(6000) % 2
    counts, groups = fluctuating(6000), (64, 40)
    (whole,) = choose_parts(groups, species[:500], counts[:, :500])
    assert whole.groups == groups and whole.rows == (250, 250)
    narrow, wide = choose_parts(groups, species, counts)
    assert wide.groups == groups and narrow.slots < wide.slots
    assert np.add(narrow.rows, wide.rows).tolist() == [3000, 3000]
    assert narrow.cost + wide.cost < 0.95 * replace(wide, rows=(3000, 3000)).cost
    full = (counts > np.array(narrow.groups)[:, None]).any(0)
    assert (np.bincount(species[full], minlength=2) < wide.rows).all()
    # A crystal: all rows are alike.
    assert len(choose_parts((56, 32), species, np.full((2, 6000), [[54], [30]]))) == 1


def test_parts_are_kept_until_something_lacks() -> None:
    species = np.arange(6000) % 2
    counts, groups = fluctuating(6000), (64, 40)
    first = choose_parts(groups, species, counts)
    denser = fluctuating(6000, 1, mean=41.0)
    kept = choose_parts(groups, species, denser, first)
    assert kept[0].groups == first[0].groups
    assert all(new >= old for new, old in zip(kept[1].rows, first[1].rows, strict=True))
    assert choose_parts(groups, species, counts, kept) == kept
    lacking = np.zeros(7, bool)
    lacking[5] = True  # wide rows of the first species
    grown = choose_parts(groups, species, counts, first, lacking)
    assert grown[1].rows[0] >= 2 * first[1].rows[0] and grown[1].rows[1] == first[1].rows[1]
    # So dense that the usual slots suffice for no one: others are chosen, or one part.
    crowd = choose_parts((80, 48), species, fluctuating(6000, 2, mean=60.0), first, lacking)
    assert crowd[0].groups != first[0].groups
