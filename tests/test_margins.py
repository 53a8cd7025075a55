"""Pairs of slow atoms have a smaller skin, and none within the cutoff is missed for it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.data import atomic_masses
from builders import small_student, water_box
from test_grouped_list import (
    CASES,
    check_contract,
    check_pairs,
    pairs_of,
    random_positions,
    random_species,
    reference_pairs,
    vectors_of,
)

from distill.neighbors.grouped import GroupedSearch, grouped_list
from distill.neighbors.margins import LEAST_MARGIN, thermal_margins
from distill.simulation import MDConfig, run_md
from distill.simulation.relax import relax

pytestmark = pytest.mark.usefixtures("quick_compilation")

SKIN = 1.0
MARGINS = (0.5, 0.2, 0.05, 0.3)


def search_of(case: tuple[Any, ...]) -> GroupedSearch:
    cell, pbc, _, kinds, radius = case
    return grouped_list(
        cell, pbc, random_species(case), radius - SKIN, SKIN, margins=MARGINS[:kinds]
    )


def expected_pairs(case: tuple[Any, ...], positions: np.ndarray, species: np.ndarray) -> np.ndarray:
    """From the host: of all pairs within the widest radius those within that of their species."""
    cell, pbc, *_, radius = case
    every = reference_pairs(positions, cell, pbc, radius)
    own, other = (species[every[:, column].astype(int)] for column in range(2))
    reach = radius - SKIN + np.asarray(MARGINS)[own] + np.asarray(MARGINS)[other]
    return every[np.linalg.norm(every[:, 2:], axis=1) < reach]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["triclinic", "below one cutoff", "wide slab", "many cells"])
def test_pairs_are_those_within_the_margins_of_both(name: str) -> None:
    case = CASES[name]
    cell, pbc, *_ = case
    search = search_of(case)
    positions = random_positions(case, 1, unwrap=2)
    nbrs = search.allocate(positions)
    expected = expected_pairs(case, positions, search.species)
    assert len(expected) < len(reference_pairs(positions, cell, pbc, case[-1]))
    check_pairs(pairs_of(nbrs, positions, cell, pbc), expected)
    check_contract(nbrs, search.species, vectors_of(nbrs, positions, cell, pbc))
    moved = positions + np.random.default_rng(2).normal(scale=0.4, size=positions.shape)
    larger = search.allocate(positions, minimum_capacity=nbrs.capacity, previous=nbrs)
    updated = jax.jit(search.update)(larger, jnp.asarray(moved))
    assert not updated.overflow
    expected = expected_pairs(case, moved, search.species)
    check_pairs(pairs_of(updated, moved, cell, pbc), expected)


@pytest.mark.usefixtures("x64")
def test_atoms_may_move_by_their_margins_and_no_pair_is_missed() -> None:
    case = CASES["triclinic"]
    cell, pbc, *_, radius = case
    search = search_of(case)
    margins = np.asarray(search.margins)[search.species][:, None]
    start = random_positions(case, 3)
    nbrs = search.allocate(start)
    rng = np.random.default_rng(4)
    found = 0
    for _ in range(5):
        directions = rng.normal(size=start.shape)
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        moved = start + 0.999 * margins * directions
        assert not search.is_stale(nbrs, jnp.asarray(moved))
        pairs = pairs_of(nbrs, moved, cell, pbc)
        inner = pairs[np.linalg.norm(pairs[:, 2:], axis=1) < radius - SKIN]
        check_pairs(inner, reference_pairs(moved, cell, pbc, radius - SKIN), 1e-4)
        found += len(inner)
    assert found > 100


@pytest.mark.parametrize("kind", [0, 1])
def test_each_species_has_its_own_threshold(kind: int) -> None:
    search = search_of(CASES["triclinic"])
    start = jnp.asarray(random_positions(CASES["triclinic"], 0), jnp.float32)
    nbrs = search.allocate(start)
    atom = int(np.flatnonzero(search.species == kind)[0])
    margin = search.margins[kind]
    for share, rebuilt, stale in [(0.7, False, False), (0.8, True, False), (1.1, True, True)]:
        moved = start.at[atom, 1].add(share * margin)
        updated = search.update(nbrs, moved)
        assert bool((updated.reference_positions == moved).all()) is rebuilt
        assert bool(updated.stale) is stale


def test_margins_go_with_the_inverse_root_of_the_mass() -> None:
    numbers, species = np.array([8, 1, 1, 92]), np.array([2, 0, 0, 3])
    margins = thermal_margins(numbers, species, skin=1.0)
    ratio = np.sqrt(atomic_masses[1] / atomic_masses[8])
    np.testing.assert_allclose(margins, [0.5, 0.5, 0.5 * ratio, LEAST_MARGIN])
    assert thermal_margins(numbers, species, skin=0.1) == pytest.approx([0.05] * 4)
    assert thermal_margins(numbers[3:], np.array([1]), skin=0.4) == pytest.approx([0.2, 0.2])


@pytest.mark.parametrize("margins", [(0.2,), (0.3, 0.2), (0.2, 0.0), (0.2, np.nan)])
def test_senseless_margins_are_refused(margins: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"2 lengths, above 0 and at most half the skin, 0\.2 Å"):
        grouped_list(np.eye(3) * 9, True, [0, 1], 4.0, 0.4, margins=margins)


@pytest.fixture
def small_systems_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.potential.GROUPED_FROM", 1)


@pytest.mark.usefixtures("small_systems_too", "x64")
def test_a_run_is_that_with_equal_margins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs between the cutoff and the margins add nothing, however few they are."""
    student = small_student(max_l=1, n_channels=2, n_triples=0, hidden=(8,))
    atoms = water_box(3)
    config = MDConfig(steps=60, record_every=20, block_steps=20, temperature=400.0, seed=1)

    def run() -> tuple[Any, Any]:
        potential = student.potential(atoms, dtype=np.float64, skin=0.3)
        lists = potential.allocate(jnp.asarray(atoms.positions))
        return run_md(potential, atoms.positions, config, progress=False), lists

    found, lists = run()
    monkeypatch.setattr(
        "distill.grouped_potential.thermal_margins",
        lambda numbers, species, skin: (0.5 * skin,) * (int(species.max()) + 1),
    )
    expected, wider = run()
    filled = [(np.asarray(own.neighbors[0]) < len(own.source) - 1).sum() for own in (lists, wider)]
    assert filled[0] < 0.97 * filled[1]
    found, expected = found.frames, expected.frames
    np.testing.assert_allclose(found.positions, expected.positions, atol=1e-9)


@pytest.mark.usefixtures("small_systems_too")
@pytest.mark.parametrize("skin", [0.2, 0.4])
def test_heavy_atoms_may_be_relaxed_in_steps_that_no_motion_takes(skin: float) -> None:
    student = small_student(max_l=1, n_channels=2, n_triples=0, hidden=(8,))
    atoms = water_box(2)
    potential = student.potential(atoms, skin=skin)
    start = atoms.positions[None]
    found = relax(potential, start, 40, step_size=1e9)
    ways = np.linalg.norm(found.positions - start, axis=-1)[0]
    assert ways[atoms.numbers == 8].max() > 0.2
    assert np.isfinite(found.energy).all()
