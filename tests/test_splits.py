"""Splits by trajectory, batch plans and the graph loader."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest
from ase.build import bulk, molecule

from distill.data import (
    Dataset,
    GraphLoader,
    Labels,
    assert_disjoint,
    batches,
    make_buckets,
    split_by_trajectory,
)
from distill.errors import DatasetError, UnknownElementError
from distill.graph import sum_per_system
from distill.neighbors.host import neighbor_table


def make_dataset(sizes=(40, 20, 10, 10, 8, 6, 4, 2), seed=0):
    rng = np.random.default_rng(seed)
    kinds = [molecule("H2O"), molecule("CH3CH2OH"), bulk("SiC", "zincblende", a=4.36) * 2]
    structures, names = [], []
    for run, size in enumerate(sizes):
        for _ in range(size):
            atoms = kinds[len(structures) % 3].copy()
            atoms.positions += 0.05 * rng.standard_normal(atoms.positions.shape)
            structures.append(atoms)
            names.append(f"run{run}")
    stress = np.stack([np.eye(3) * (1.0 if a.pbc.all() else np.nan) for a in structures])
    forces = [rng.standard_normal((len(a), 3)) for a in structures]
    energy = np.array([-1e6 * len(a) for a in structures]) + rng.standard_normal(len(structures))
    return Dataset.from_structures(structures, names, "test").labelled(
        Labels(energy, forces, stress)
    )


@pytest.mark.parametrize("seed", range(5))
def test_whole_trajectories_near_the_wanted_fractions(seed):
    dataset = make_dataset()
    parts = split_by_trajectory(dataset, seed=seed)
    together = np.sort(np.concatenate(list(parts.values())))
    np.testing.assert_array_equal(together, np.arange(100))
    names = [set(dataset.trajectory[i]) for i in parts.values()]
    assert sum(map(len, names)) == 8 == len(set.union(*names))
    assert [len(i) for i in parts.values()] == pytest.approx([80, 10, 10], abs=4)
    again = split_by_trajectory(dataset, seed=seed)
    assert all((parts[name] == again[name]).all() for name in parts)


def test_every_part_gets_a_trajectory():
    for sizes in ((100, 1, 1), (5, 5, 5), (1, 90, 2, 3)):
        parts = split_by_trajectory(make_dataset(sizes))
        assert all(len(indices) for indices in parts.values())
    with pytest.raises(DatasetError, match="has 2 trajectories"):
        split_by_trajectory(make_dataset((5, 5)))
    with pytest.raises(DatasetError, match="sum to 1"):
        split_by_trajectory(make_dataset(), {"train": 0.8, "test": 0.1})


def test_leaks_are_found():
    dataset = make_dataset((5, 5, 5))
    with pytest.raises(DatasetError, match="trajectory run0 occurs in both"):
        assert_disjoint(dataset, {"train": np.arange(3), "test": np.arange(3, 6)})
    with pytest.raises(DatasetError, match="part 'test' is empty"):
        assert_disjoint(dataset, {"train": np.arange(3), "test": np.arange(0)})
    order = [0, 1, 2, 3, 4, 0, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    copied = replace(dataset.subset(order), trajectory=dataset.trajectory)
    with pytest.raises(DatasetError, match=r"structure number .* occurs in both"):
        split_by_trajectory(copied)
    parts = split_by_trajectory(copied, duplicates="drop")
    assert sorted(map(len, parts.values())) in ([4, 5, 5], [5, 5, 4])


def random_sizes(count=500, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(3, 200, count), rng.integers(5, 60, count)


def test_every_structure_once_per_epoch_and_every_batch_fits():
    atoms, neighbors = random_sizes()
    plan = make_buckets(atoms, neighbors, 16)
    for epoch in range(3):
        made = batches(plan, epoch, seed=7)
        assert len(made) == plan.n_batches
        seen = np.concatenate([members for _, members in made])
        np.testing.assert_array_equal(np.sort(seen), np.arange(500))
        for number, members in made:
            bucket = plan.buckets[number]
            assert atoms[members].sum() < bucket.n_atoms
            assert neighbors[members].max() <= bucket.n_neighbors
            assert len(members) < bucket.n_systems
    plain = batches(plan, 0, seed=7, shuffle=False)
    assert [number for number, _ in plain] == sorted(number for number, _ in plain)


def test_batches_are_a_function_of_seed_and_epoch():
    plan = make_buckets(*random_sizes(), 16)

    def flat(epoch, seed):
        return np.concatenate([members for _, members in batches(plan, epoch, seed)]).tolist()

    assert flat(3, 1) == flat(3, 1)
    assert flat(3, 1) != flat(4, 1)
    assert flat(3, 1) != flat(3, 2)


def test_shapes_are_few_and_padding_is_small():
    atoms, neighbors = random_sizes()
    for most in (1, 2, 4):
        plan = make_buckets(atoms, neighbors, 16, max_buckets=most)
        shapes = {bucket.shape for bucket in plan.buckets}
        assert len(shapes) == len(plan.buckets) <= most
    slots = sum(plan.buckets[number].n_atoms for number, _ in batches(plan, 0, 0))
    assert slots < 1.4 * atoms.sum()
    same = make_buckets(np.full(50, 10), np.full(50, 9), 8)
    assert [bucket.shape for bucket in same.buckets] == [(88, 12, 9)]
    assert make_buckets(np.array([1]), np.array([0]), 4).buckets[0].shape == (8, 4, 5)
    rounded_alike = make_buckets(np.array([9, 10]), np.array([8, 8]), 1)
    assert [len(bucket.members) for bucket in rounded_alike.buckets] == [2]
    with pytest.raises(DatasetError, match="cannot batch 0"):
        make_buckets(np.array([]), np.array([]), 4)


ELEMENTS = (1, 6, 8, 14)
ATOMIC = np.array([-1e6, -1e6, -1e6, -1e6])


@pytest.fixture(scope="module")
def dataset():
    return make_dataset((9, 8, 7))


def test_loader_gives_every_label_once(dataset):
    indices = np.arange(2, 24)
    loader = GraphLoader(dataset, indices, 4.0, ELEMENTS, 4, seed=3, atomic_energies=ATOMIC)
    seen = []
    for batch in loader.epoch(1):
        graph = batch.graph
        assert not graph.atom_mask[-1] and not graph.system_mask[-1]
        sizes = np.asarray(sum_per_system(graph.atom_mask.astype(np.float32), graph))
        np.testing.assert_array_equal(batch.n_atoms, np.maximum(sizes, 1))
        np.testing.assert_array_equal(batch.energy_mask, graph.system_mask)
        for row, index in enumerate(batch.indices):
            if index < 0:
                assert not batch.energy_mask[row] and batch.energy[row] == 0
                continue
            seen.append(int(index))
            here = np.flatnonzero(graph.system == row)
            residual = dataset.energy[index] + 1e6 * dataset.n_atoms[index]
            assert batch.energy[row] == np.float32(residual)
            rows = dataset.rows(index)
            np.testing.assert_array_equal(batch.forces[here], dataset.forces[rows].astype("f4"))
            np.testing.assert_array_equal(
                np.array(ELEMENTS)[graph.species[here]], dataset.numbers[rows]
            )
            table = neighbor_table(
                dataset.positions[rows], dataset.cell[index], dataset.pbc[index], 4.0
            )
            filled = graph.neighbors[here] < len(graph.positions)
            np.testing.assert_array_equal(filled.sum(1), table.counts)
            assert batch.stress_mask[row] == dataset.pbc[index].all()
        assert (batch.forces[~graph.atom_mask] == 0).all()
        # NaN is what these two say where the teacher gave none.
        assert np.isnan(batch.per_atom_energy).all() and np.isnan(batch.uncertainty).all()
        known = replace(batch, per_atom_energy=None, uncertainty=None)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(known))
    assert sorted(seen) == indices.tolist()


def test_loader_is_resumable_and_compiles_once_per_bucket(dataset):
    loader = GraphLoader(dataset, range(24), 4.0, ELEMENTS, 4, seed=3)
    traces = []

    @jax.jit
    def step(batch):
        traces.append(batch.energy.shape)
        return batch.energy.sum() + batch.graph.positions.sum()

    order = []
    for number in range(2 * len(loader)):
        batch = loader.batch(number)
        step(batch)
        order.append(batch.indices.tolist())
    assert len(traces) == len(loader.plan.buckets) > 1
    other = GraphLoader(dataset, range(24), 4.0, ELEMENTS, 4, seed=3)
    number = len(loader) + 2
    assert other.batch(number).indices.tolist() == order[number]
    assert [b.indices.tolist() for b in other.epoch(1)] == order[len(loader) :]


def test_loader_refuses_bad_input(dataset):
    def load(data=dataset, indices=(0, 1, 2), elements=ELEMENTS, **options):
        return GraphLoader(data, indices, 4.0, elements, 4, **options)

    flag = np.zeros(24, np.uint8)
    flag[1] = 2
    flagged = replace(dataset, flag=flag)
    with pytest.raises(DatasetError, match=r"1 structures are flagged, first number 1"):
        load(flagged)
    assert load(flagged, flagged.usable).n_structures == 23
    unlabelled = Dataset.from_structures([molecule("H2O")] * 3, "t", "o")
    with pytest.raises(DatasetError, match="3 structures have no finite energy"):
        load(unlabelled)
    with pytest.raises(DatasetError, match="indices is empty"):
        load(indices=[])
    with pytest.raises(UnknownElementError):
        load(elements=(1, 6, 8))
    with pytest.raises(DatasetError, match="atomic_energies"):
        load(atomic_energies=np.zeros(2))
