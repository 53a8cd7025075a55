"""Expected force errors: calibrated, larger where there were no data, the same in MD, and cheap."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

from distill.data import Dataset, Labels
from distill.errors import DatasetError
from distill.simulation import MDConfig, run_md
from distill.students import (
    Student,
    StudentSpec,
    fit_uncertainty,
    initialise_student,
    load_bundle,
    reliability,
    save_bundle,
)
from distill.training import TrainingConfig, fit

TRAIN, VALIDATION, TEST = np.arange(40), np.arange(40, 80), np.arange(80, 120)


def displaced(scale: float, seed: int) -> Atoms:
    """A copper-gold cell with displaced atoms."""
    atoms = bulk("Cu", "fcc", a=3.7, cubic=True)
    atoms.symbols[0] = "Au"
    atoms.positions += np.random.default_rng(seed).normal(scale=scale, size=(4, 3))
    return atoms


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Displacements of different size, labelled by EMT."""
    structures = [displaced(0.03 + 0.12 * (i % 4) / 3, i) for i in range(120)]
    energies, forces = [], []
    for atoms in structures:
        atoms.calc = EMT()
        energies.append(atoms.get_potential_energy())
        forces.append(atoms.get_forces())
    names = [f"t{i // 40}" for i in range(120)]
    unlabelled = Dataset.from_structures(structures, names, "emt")
    return unlabelled.labelled(Labels(np.array(energies), forces))


@pytest.fixture(scope="module")
def student(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Student:
    spec = StudentSpec(
        "moment",
        dataset.elements,
        4.0,
        {"n_channels": 4, "n_radial": 5, "max_l": 1, "hidden": [12]},
    )
    config = TrainingConfig(
        max_steps=300, batch_size=8, validation_every=100, learning_rate=1e-2, warmup_steps=10
    )
    start = initialise_student(spec, dataset, TRAIN)
    folder = tmp_path_factory.mktemp("uncertainty")
    trained = fit(start, dataset, TRAIN, VALIDATION, config, folder, progress=False).student
    return replace(trained, uncertainty=fit_uncertainty(trained, dataset, TRAIN, VALIDATION))


def predicted_and_real(student: Student, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    labels = student.label([dataset.structure(int(i)) for i in TEST])
    truth = np.concatenate([dataset.forces[dataset.rows(int(i))] for i in TEST])
    errors = np.linalg.norm(np.concatenate(labels.forces) - truth, axis=1)
    return np.concatenate(labels.uncertainty), errors


def test_predictions_fit_the_errors_of_trajectories_never_seen(student, dataset):
    predicted, errors = predicted_and_real(student, dataset)
    ratio = np.sqrt(np.mean(predicted**2) / np.mean(errors**2))
    assert 0.6 < ratio < 1.6
    bins = reliability(predicted, errors, 4)
    # Atoms with large predictions do have the larger errors.
    assert bins["observed"][-1] > 1.3 * bins["observed"][0]
    assert np.all(np.diff(bins["predicted"]) >= 0)


def test_structures_unlike_the_training_data_are_less_certain(student):
    near, far = (
        np.concatenate(student.label([displaced(scale, 500 + k) for k in range(8)]).uncertainty)
        for scale in (0.05, 0.5)
    )
    assert np.median(far) > 2 * np.median(near)


def test_energy_and_forces_do_not_depend_on_it(student, dataset):
    atoms = dataset.structure(0)
    without = replace(student, uncertainty=None).label([atoms])
    with_it = student.label([atoms])
    assert without.uncertainty is None
    np.testing.assert_array_equal(without.forces[0], with_it.forces[0])


def test_it_is_stored_in_the_bundle(student, dataset, tmp_path):
    save_bundle(student, tmp_path / "student", {})
    atoms = dataset.structure(0)
    loaded = load_bundle(tmp_path / "student").student.label([atoms])
    np.testing.assert_array_equal(loaded.uncertainty[0], student.label([atoms]).uncertainty[0])


@pytest.mark.parametrize("replicas", [1, 2])
def test_molecular_dynamics_records_it(student, dataset, replicas):
    atoms = dataset.structure(0)
    start = np.stack([atoms.positions] * replicas) if replicas > 1 else atoms.positions
    run = run_md(
        student.potential(atoms),
        start,
        MDConfig(steps=20, record_every=10, block_steps=20, timestep=1.0, temperature=50.0),
        progress=False,
    )
    last = run.frames.positions[-1]
    for own, recorded in zip(
        last[None] if replicas == 1 else last,
        run.frames.uncertainty[-1:] if replicas == 1 else run.frames.uncertainty[-1],
        strict=True,
    ):
        moved = atoms.copy()
        moved.positions = own
        np.testing.assert_allclose(recorded, student.label([moved]).uncertainty[0], rtol=2e-3)
    plain = replace(student, uncertainty=None).potential(atoms)
    run = run_md(plain, atoms.positions, MDConfig(steps=10, record_every=10), progress=False)
    assert run.frames.uncertainty.shape == (1, 0)


def test_it_costs_at_most_fifteen_percent(dataset):
    spec = StudentSpec.of_size("moment-s", dataset.elements, 4.0)
    start = initialise_student(spec, dataset, TRAIN)
    student = replace(start, uncertainty=fit_uncertainty(start, dataset, TRAIN, VALIDATION))
    atoms = dataset.structure(0).repeat((2, 2, 2))
    potential = student.potential(atoms, kernel="reference")
    lists = potential.allocate(atoms.positions)
    positions = np.asarray(atoms.positions, np.float32)
    plain, uncertain = (
        jax.jit(function).lower(positions, lists).compile().cost_analysis()["flops"]
        for function in (potential.energy_and_forces, potential.with_uncertainty)
    )
    assert plain < uncertain < 1.15 * plain


def test_it_needs_held_out_structures(student, dataset):
    with pytest.raises(DatasetError, match="held-out"):
        fit_uncertainty(student, dataset, TRAIN, np.zeros(0, int))
