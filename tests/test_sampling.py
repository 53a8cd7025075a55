"""Sampling: displacements that keep atoms apart, trajectories that are told apart."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from ase import Atoms
from builders import ethanol, triclinic_cell, water_box

from distill import teachers
from distill.data import split_by_trajectory
from distill.errors import UnsupportedStructureError
from distill.sampling import MDSamplingConfig, rattle, sample_by_md

CONFIG = MDSamplingConfig(
    temperatures=(50.0, 200.0),
    replicas=3,
    frames=4,
    spacing=5.0,
    equilibration=20.0,
    timestep=1.0,
    rattle=0.02,
)


def closest(atoms: Atoms) -> float:
    distances = atoms.get_all_distances(mic=bool(atoms.pbc.any()))
    return distances[np.triu_indices(len(atoms), 1)].min()


# Rattle


def test_rattled_structures_are_displaced_as_asked():
    start = water_box(3)
    moved = rattle([start] * 5, 0.05, seed=1)
    displacements = np.concatenate([m.positions - start.positions for m in moved])
    # 1215 components: their standard deviation is uncertain by 2 %.
    assert abs(displacements.std() / 0.05 - 1) < 0.08
    for m in moved:
        np.testing.assert_array_equal(m.numbers, start.numbers)
        np.testing.assert_array_equal(m.cell.array, start.cell.array)
    assert all(np.abs(a.positions - b.positions).max() > 0.01 for a, b in pairwise(moved))


@pytest.mark.parametrize("amplitude", [0.3, 3.0, 100.0])
def test_rattled_atoms_never_come_together(amplitude):
    for start in (ethanol(), triclinic_cell(), water_box(4)):
        for moved in rattle([start] * 2, amplitude):
            assert closest(moved) >= 0.7 * min(closest(start), 1.5) - 1e-9
            assert np.abs(moved.positions - start.positions).max() > 0


def test_same_seed_same_structures_and_starts_unchanged():
    start = ethanol()
    before = start.positions.copy()
    first, second, other = (rattle([start], 0.1, seed)[0].positions for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(first, other)
    np.testing.assert_array_equal(start.positions, before)


def test_atoms_on_top_of_each_other_are_refused():
    good = Atoms("H2", [[0, 0, 0], [0.74, 0, 0]])
    bad = Atoms("H2", [[0, 0, 0], [0.1, 0, 0]])
    with pytest.raises(UnsupportedStructureError, match=r"structure 1 has atoms 0\.10 Å apart"):
        rattle([good, bad], 0.1)
    image = Atoms("H", [[0, 0, 0]], cell=[0.2, 5, 5], pbc=True)
    with pytest.raises(UnsupportedStructureError, match=r"0\.20 Å apart: relax"):
        rattle([image], 0.1)


# Molecular dynamics


@pytest.fixture(scope="module")
def harmonic(toy_potential):
    """Atoms tied to the sites of the structure they start from."""

    def make(atoms: Atoms):
        sites = atoms.positions.astype(np.float32)
        return toy_potential(lambda x: 5.0 * ((x - sites) ** 2).sum(), atoms.numbers)

    return make


def test_every_replica_is_a_trajectory(harmonic, quick_compilation):
    atoms = triclinic_cell()
    dataset = sample_by_md(harmonic, atoms, CONFIG, name="test_md", progress=False)
    assert len(dataset) == 2 * 3 * 4
    names = [f"CH4O2-{t}K-r{r}" for t in (50, 200) for r in range(3)]
    assert dataset.trajectory.tolist() == [name for name in names for _ in range(4)]
    assert dataset.origin.tolist() == ["test_md:50K"] * 12 + ["test_md:200K"] * 12
    assert not dataset.has_labels
    assert np.isnan(dataset.energy).all()
    assert dataset.usable.all()
    for i in range(len(dataset)):
        np.testing.assert_array_equal(dataset.structure(i).numbers, atoms.numbers)
    np.testing.assert_allclose(dataset.cell, np.tile(atoms.cell.array, (24, 1, 1)))
    assert dataset.pbc.all()
    positions = dataset.positions.reshape(24, -1)
    assert len(np.unique(positions.round(4), axis=0)) == 24
    spread = np.std(positions - atoms.positions.ravel(), axis=1).reshape(2, 12).mean(1)
    assert spread[1] > 1.3 * spread[0]  # the square root of the temperatures' ratio is 2
    parts = split_by_trajectory(dataset, {"train": 0.5, "test": 0.5})
    assert not set(dataset.trajectory[parts["train"]]) & set(dataset.trajectory[parts["test"]])


def test_the_seed_decides(harmonic, quick_compilation):
    atoms = ethanol()
    config = MDSamplingConfig((100.0,), replicas=2, frames=2, spacing=2.0, equilibration=4.0)
    first, second = (sample_by_md(harmonic, atoms, config, progress=False) for _ in range(2))
    np.testing.assert_array_equal(first.positions, second.positions)
    other = MDSamplingConfig((100.0,), replicas=2, frames=2, spacing=2.0, equilibration=4.0, seed=1)
    assert not np.allclose(first.positions, sample_by_md(harmonic, atoms, other).positions)


def test_the_bundled_teacher_drives_it(demo_teacher_path, quick_compilation):
    teacher = teachers.load(f"fennol:{demo_teacher_path}")
    atoms = ethanol(amplitude=0.0)
    config = MDSamplingConfig((300.0,), replicas=2, frames=3, spacing=5.0, equilibration=5.0)
    dataset = sample_by_md(teacher.potential, atoms, config, progress=False)
    assert len(dataset) == 6
    bonds = [closest(dataset.structure(i)) for i in range(6)]
    assert 0.8 < min(bonds) and max(bonds) < 1.1  # O-H and C-H, neither collapsed nor broken
