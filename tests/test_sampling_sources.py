"""Other sources of structures: trees, rattled and strained copies, and choosing among them."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from builders import ethanol, random_rotation, small_student, triclinic_cell, water_box
from morse_teacher import DEPTH, LENGTH, WIDTH, morse

from distill import teachers
from distill.data import Dataset, concatenate, split_by_trajectory
from distill.errors import ConfigError, SimulationError, UnsupportedStructureError
from distill.sampling.diversity import (
    farthest_points,
    remove_duplicates,
    select_diverse,
    structure_features,
    student_features,
)
from distill.sampling.strained import RattleConfig, sample_rattled
from distill.sampling.tree import TreeConfig, sample_tree

TREE = TreeConfig(structures=12, batch=8, rattle=0.1, relaxation_steps=5)
CLUSTER = Atoms(
    "C4", 1.5 / np.sqrt(8) * np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
)
"""Tetrahedron: every Morse pair at its length."""


def closest(atoms: Atoms) -> float:
    distances = atoms.get_all_distances(mic=bool(atoms.pbc.any()))
    return distances[np.triu_indices(len(atoms), 1)].min()


@pytest.fixture(scope="module")
def morse_potential(toy_potential):
    """The Morse pairs of the teacher in JAX; images are left out."""

    def make(atoms: Atoms):
        first, second = np.triu_indices(len(atoms), 1)

        def energy(x):
            r = jnp.linalg.norm(x[first] - x[second], axis=-1)
            return jnp.sum(DEPTH * (1 - jnp.exp(-WIDTH * (r - LENGTH))) ** 2)

        return toy_potential(energy, atoms.numbers)

    return make


@pytest.fixture
def copies():
    """Ethanol: as it is, different, moved, turned with its atoms in another order, mirrored."""
    first, other = ethanol(0), ethanol(1)
    moved, turned, mirrored = first.copy(), first.copy()[::-1], first.copy()
    moved.positions += [3.0, -2.0, 1.0]
    turned.positions = turned.positions @ random_rotation(3).T
    mirrored.positions *= [1, 1, -1]
    return Dataset.from_structures([first, other, moved, turned, mirrored, first], "run", "test")


# Family trees


def test_a_tree_is_one_family_of_valid_structures(morse_potential, quick_compilation):
    tree = sample_tree(morse_potential, CLUSTER, TREE, name="morse", progress=False)
    assert len(tree) == 12
    np.testing.assert_array_equal(tree.structure(0).positions, CLUSTER.positions)
    assert tree.parent[0] == -1
    assert (tree.parent[1:] >= 0).all()
    assert (tree.parent[1:] < np.arange(1, 12)).all()
    assert tree.parent.max() > 0  # grandchildren
    assert set(tree.trajectory) == {"C4-tree-500K-s0"}
    assert set(tree.origin) == {"tree:morse:500K"}
    assert not tree.has_labels
    for i in range(12):
        assert closest(tree.structure(i)) >= 0.6
    assert len(np.unique(tree.positions.reshape(12, -1).round(4), axis=0)) == 12


def test_the_seed_decides(morse_potential, quick_compilation):
    config = replace(TREE, structures=6, batch=16)
    first, second = (
        sample_tree(morse_potential, CLUSTER, config, name="m", progress=False) for _ in range(2)
    )
    assert first.sha256 == second.sha256
    other = replace(config, seed=1)
    other_tree = sample_tree(morse_potential, CLUSTER, other, name="m", progress=False)
    assert not np.allclose(first.positions, other_tree.positions)


@pytest.mark.parametrize("temperature", [1e-3, 3000.0])
def test_no_child_is_hotter_than_allowed(temperature, morse_potential, quick_compilation):
    start = CLUSTER.copy()
    start.positions *= 1.15  # uphill, so that even a cold tree can grow: downhill
    config = replace(TREE, structures=20, batch=32, temperature=temperature, rattle=0.05)
    tree = sample_tree(morse_potential, start, config, name="morse", progress=False)
    energies = np.array([morse(tree.structure(i).positions)[0] for i in range(1, 20)])
    thermal = units.kB * temperature
    allowance = 1.5 * 4 * thermal
    # the start relaxed alike, by the same walk with forces in closed form
    relaxed = start.positions.copy()
    for _ in range(config.relaxation_steps):
        forces = morse(relaxed)[1]
        length = np.linalg.norm(forces, axis=1, keepdims=True)
        relaxed += forces * np.minimum(0.01, 0.05 / length)
    excess = energies - morse(relaxed)[0] - allowance
    assert excess.max() < 12 * thermal + 1e-5  # exp(-12) is never drawn, 1e-5 eV is rounding
    assert np.mean(excess < 1e-5) > 0.5


def test_close_atoms_are_refused(morse_potential, quick_compilation):
    config = replace(TREE, min_distance=1.45, temperature=3000.0)
    tree = sample_tree(morse_potential, CLUSTER, config, name="morse", progress=False)
    assert min(closest(tree.structure(i)) for i in range(len(tree))) >= 1.45
    with pytest.raises(UnsupportedStructureError, match=r"closer than min_distance=1\.6"):
        config = replace(TREE, min_distance=1.6)
        sample_tree(morse_potential, CLUSTER, config, name="morse", progress=False)


def test_a_tree_that_cannot_grow_says_why(morse_potential, quick_compilation, monkeypatch):
    monkeypatch.setattr("distill.sampling.tree.FREE_GENERATIONS", 3)
    cold = replace(TREE, batch=4, temperature=0.01)
    with pytest.raises(SimulationError, match=r"0 of 12 .*12 were too high.*raise temperature"):
        sample_tree(morse_potential, CLUSTER, cold, name="morse", progress=False)


def test_children_outside_the_range_of_the_potential_are_refused(toy_potential, quick_compilation):
    def energy(x):  # defined on one side only, where it is flat
        return jnp.where(x[0, 0] < 0.0, jnp.nan, 0.0 * jnp.sum(x))

    atoms = Atoms("C2", [[0.1, 0, 0], [0, 2.0, 0]])
    config = replace(TREE, rattle=0.1)
    tree = sample_tree(
        lambda a: toy_potential(energy, a.numbers), atoms, config, name="half", progress=False
    )
    assert len(tree) == 12
    assert (tree.positions.reshape(12, 2, 3)[:, 0, 0] >= 0).all()


def test_strained_trees_keep_cells_near_that_of_the_start(morse_potential, quick_compilation):
    atoms = CLUSTER.copy()
    atoms.set_cell(np.eye(3) * 8)
    atoms.pbc = True
    config = replace(TREE, structures=9, batch=3, strain=0.02, temperature=3000.0)
    cells = []

    def make(start: Atoms):
        cells.append(start.cell.array.copy())
        return morse_potential(start)

    tree = sample_tree(make, atoms, config, name="morse", progress=False)
    np.testing.assert_array_equal(tree.cell[0], atoms.cell.array)
    strains = tree.cell[1:] / 8 - np.eye(3)
    np.testing.assert_allclose(strains, strains.transpose(0, 2, 1), atol=1e-12)
    assert 0.005 < strains.std() < 0.04
    assert np.abs(strains).max() < 0.1
    for cell in tree.cell:  # each child was relaxed in the cell that is recorded
        assert any(np.array_equal(cell, c) for c in cells)
    with pytest.raises(ConfigError, match="set strain to 0"):
        sample_tree(morse_potential, CLUSTER, config, name="morse", progress=False)


@pytest.mark.slow
def test_the_bundled_teacher_grows_a_tree(demo_teacher_path, quick_compilation):
    teacher = teachers.load(f"fennol:{demo_teacher_path}")
    config = TreeConfig(structures=4, batch=8)
    tree = sample_tree(
        teacher.potential, ethanol(amplitude=0.0), config, name="demo", progress=False
    )
    bonds = [closest(tree.structure(i)) for i in range(4)]
    assert 0.75 < min(bonds) and max(bonds) < 1.15  # O-H and C-H, neither collapsed nor broken


@pytest.mark.parametrize(
    "bad",
    [
        {"structures": 0},
        {"batch": 0},
        {"relaxation_steps": -1},
        {"rattle": 0.0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"min_distance": 0.1},
        {"strain": 0.5},
    ],
)
def test_bad_tree_settings(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        TreeConfig(**bad)


# Rattled and strained copies


def test_strain_moves_cell_and_atoms_alike():
    atoms = triclinic_cell()
    config = RattleConfig(copies=20, standard_deviations=(0.0,), strain=0.03)
    dataset = sample_rattled(atoms, config)
    assert len(dataset) == 21
    strains = []
    for i in range(1, 21):
        copy = dataset.structure(i)
        np.testing.assert_allclose(
            copy.cell.scaled_positions(copy.positions),
            atoms.cell.scaled_positions(atoms.positions),
            atol=1e-12,
        )
        strains.append(np.linalg.solve(atoms.cell.array, copy.cell.array) - np.eye(3))
    strains = np.array(strains)
    np.testing.assert_allclose(strains, strains.transpose(0, 2, 1), atol=1e-12)
    components = strains[:, *np.triu_indices(3)]
    # 120 components: their standard deviation is uncertain by 7 %.
    assert abs(components.std() / 0.03 - 1) < 0.25


def test_rattled_copies_descend_from_the_start():
    atoms = water_box(2)
    config = RattleConfig(copies=4, standard_deviations=(0.02, 0.05))
    dataset = sample_rattled(atoms, config, system="water")
    assert dataset.parent.tolist() == [-1, *[0] * 8]
    assert set(dataset.trajectory) == {"water-rattle-s0"}
    assert dataset.origin.tolist() == ["start", *["rattle:0.02A"] * 4, *["rattle:0.05A"] * 4]
    np.testing.assert_array_equal(dataset.structure(0).positions, atoms.positions)
    displaced = dataset.positions.reshape(9, -1)[1:] - atoms.positions.ravel()
    np.testing.assert_allclose(displaced.std(1), np.repeat([0.02, 0.05], 4), rtol=0.25)
    np.testing.assert_array_equal(dataset.cell[8], atoms.cell.array)
    both = sample_rattled(atoms, replace(config, strain=0.01))
    assert both.origin[1] == "rattle:0.02A+strain:0.01"
    assert both.sha256 == sample_rattled(atoms, replace(config, strain=0.01)).sha256
    assert both.sha256 != sample_rattled(atoms, replace(config, strain=0.01, seed=1)).sha256


def test_bad_rattle_settings():
    with pytest.raises(ConfigError, match="at least one copy"):
        RattleConfig(copies=0)
    with pytest.raises(ConfigError, match="one standard deviation"):
        RattleConfig(standard_deviations=())
    with pytest.raises(ConfigError, match="from 0 on"):
        RattleConfig(standard_deviations=(-0.1,))
    with pytest.raises(ConfigError, match="equal copies"):
        RattleConfig(standard_deviations=(0.0,))
    with pytest.raises(ConfigError, match="strain is -1"):
        RattleConfig(strain=-1)
    slab = triclinic_cell()
    slab.pbc = [True, True, False]
    with pytest.raises(ConfigError, match="set strain to 0"):
        sample_rattled(slab, RattleConfig(strain=0.01))


# Choosing among structures


def test_features_know_no_rotation_no_order_and_no_place(copies):
    features = structure_features(copies)
    assert np.isfinite(features).all()
    for i in (2, 3, 4, 5):
        np.testing.assert_allclose(features[i], features[0], atol=1e-10)
    assert np.abs(features[1] - features[0]).max() > 0.01


def test_features_do_not_depend_on_the_choice_of_the_cell():
    atoms = triclinic_cell()
    doubled, shifted = atoms.repeat((2, 1, 1)), atoms.copy()
    shifted.positions += [1.3, 0.2, -7.0]
    shifted.wrap()
    turned = atoms.copy()
    rotation = random_rotation(1)
    turned.set_cell(atoms.cell.array @ rotation.T, scale_atoms=True)
    dataset = Dataset.from_structures([atoms, doubled, shifted, turned], "run", "test")
    features = structure_features(dataset)
    np.testing.assert_allclose(features, np.tile(features[0], (4, 1)), atol=1e-9)
    assert remove_duplicates(dataset).tolist() == [0, 1]  # a supercell is another structure


def test_features_change_smoothly_at_the_cutoff():
    distances = np.array([4.99, 5.0 - 1e-6, 5.0 + 1e-6])
    pairs = [Atoms("CO", [[0, 0, 0], [d, 0, 0]]) for d in distances]
    features = structure_features(Dataset.from_structures(pairs, "run", "test"))
    assert np.abs(np.diff(features, axis=0)).max() < 1e-4


def test_students_look_at_structures_too(copies, quick_compilation):
    student = small_student()
    features = student_features(student, copies, batch_size=4)
    alone = student_features(student, copies, batch_size=1)
    np.testing.assert_allclose(features, alone, rtol=1e-4, atol=1e-4)
    scale = np.abs(features).max(0) + 1e-3
    assert (np.abs(features[2:] - features[0]) / scale).max() < 1e-3
    assert (np.abs(features[1] - features[0]) / scale).max() > 0.01


def test_farthest_points_are_further_apart_than_random_ones():
    rng = np.random.default_rng(0)
    points = rng.standard_normal((300, 4)) * [1, 1, 100, 0]

    def gap(chosen):
        own = points[chosen][:, :3] / [1, 1, 100]
        distances = np.linalg.norm(own[:, None] - own, axis=-1)
        return distances[np.triu_indices(len(own), 1)].min()

    chosen = farthest_points(points, 20, start=7)
    assert chosen[0] == 7 and len(set(chosen.tolist())) == 20
    assert gap(chosen) > 2 * max(gap(rng.choice(300, 20, replace=False)) for _ in range(50))
    np.testing.assert_array_equal(chosen, farthest_points(points, 20, start=7))
    np.testing.assert_array_equal(chosen[:5], farthest_points(points, 5, start=7))
    everything = farthest_points(np.zeros((5, 2)), 5)  # copies only
    assert sorted(everything.tolist()) == [0, 1, 2, 3, 4]


def test_a_rare_structure_is_chosen_and_links_stay_valid():
    frames = [ethanol(i, amplitude=0.02) for i in range(20)]
    rare = molecule("CH3CH2OH")
    rare.positions[8] += [0.0, 0.0, 0.5]
    dataset = Dataset.from_structures([*frames[:13], rare, *frames[13:]], "run", "test")
    dataset = replace(dataset, parent=np.arange(-1, 20))
    chosen = select_diverse(dataset, 5)
    assert len(chosen) == 5
    assert any(np.array_equal(chosen.structure(i).positions, rare.positions) for i in range(5))
    assert chosen.parent[0] == -1
    assert (chosen.parent < np.arange(5)).all() and chosen.parent.min() >= -1
    by_row = select_diverse(dataset, 2, features=np.arange(21.0)[:, None])
    np.testing.assert_array_equal(by_row.structure(1).positions, frames[19].positions)


def test_duplicates_are_found_however_they_were_moved(copies):
    assert remove_duplicates(copies).tolist() == [0, 1]
    slightly = copies.subset([0, 0])
    slightly.positions[9] += [0.05, 0.0, 0.0]
    assert remove_duplicates(slightly).tolist() == [0, 1]
    assert remove_duplicates(slightly, tolerance=1.0).tolist() == [0]


def test_what_only_looks_alike_is_kept():
    far, further = (Atoms("H2OH2O", [[0, 0.8, 0], [0, -0.8, 0], [0.6, 0, 0]] * 2) for _ in "ab")
    far.positions[3:] += [20, 0, 0]
    further.positions[3:] += [30, 0, 0]  # beyond every cutoff, but another energy
    methanol, other = molecule("CH3OH"), molecule("H2CO")
    box, molecule_alone = ethanol(), ethanol()
    box.set_cell(np.eye(3) * 30)
    box.pbc = True
    structures = [far, further, methanol, other, box, molecule_alone]
    dataset = Dataset.from_structures(structures, "run", "test")
    assert remove_duplicates(dataset).tolist() == list(range(6))


def test_bad_requests(copies):
    features = np.zeros((4, 2))
    for n, start in ((0, 0), (5, 0), (2, 4), (2, -1)):
        with pytest.raises(ConfigError, match="cannot choose"):
            farthest_points(features, n, start)
    with pytest.raises(ConfigError, match="finite"):
        farthest_points(np.full((4, 2), np.nan), 2)
    with pytest.raises(ConfigError, match="4 rows of features do not fit 6 structures"):
        select_diverse(copies, 2, features)
    with pytest.raises(ConfigError, match="negative"):
        remove_duplicates(copies, tolerance=-1.0)
    with pytest.raises(ValueError, match="cutoff"):
        structure_features(copies, cutoff=0.0)


def test_an_empty_dataset_has_neither_features_nor_duplicates():
    nothing = Dataset.from_structures([], [], [])
    assert len(structure_features(nothing)) == 0
    assert len(remove_duplicates(nothing)) == 0


def test_families_are_never_divided():
    config = RattleConfig(copies=3)
    families = [sample_rattled(ethanol(i), config, system=f"e{i}") for i in range(4)]
    parts = split_by_trajectory(concatenate(families), {"train": 0.5, "test": 0.5})
    assert {len(part) for part in parts.values()} == {14}
