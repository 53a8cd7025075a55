"""Students of teachers whose forces are no gradient are conservative all the same."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
from builders import morse_dataset

from distill.data import Dataset
from distill.students import Student, StudentSpec, initialise_student
from distill.training import TrainingConfig, fit

TRAIN, VALIDATION = np.arange(12), np.arange(12, 18)
TWIST = 2.0
"""eV/Å², of the part of the forces that is no gradient."""


def twisted(dataset: Dataset) -> Dataset:
    """The same structures with forces `F_i + TWIST z × (r_i - r_mean)`, whose curl is not zero."""
    turned = np.zeros_like(dataset.positions)
    for k in range(len(dataset)):
        rows = dataset.rows(k)
        x, y, _ = (dataset.positions[rows] - dataset.positions[rows].mean(0)).T
        turned[rows] = TWIST * np.stack([-y, x, np.zeros_like(x)], axis=1)
    return replace(dataset, forces=dataset.forces + turned)


def jacobian_of_forces(student: Student, dataset: Dataset, index: int) -> np.ndarray:
    """Derivatives `[3n, 3n]` of the forces by the positions, eV/Å², by central differences."""
    atoms, step = dataset.structure(index), 1e-4
    moved = []
    for entry in np.ndindex(len(atoms), 3):
        for sign in (1, -1):
            copy = atoms.copy()
            copy.positions[entry] += sign * step
            moved.append(copy)
    forces = np.stack(student.label(moved, dtype=np.float64).forces).reshape(-1, 2, 3 * len(atoms))
    return ((forces[:, 0] - forces[:, 1]) / (2 * step)).T


def test_forces_that_are_no_gradient_give_a_conservative_student(quick_compilation, tmp_path):
    dataset = twisted(morse_dataset())
    options = {"n_channels": 2, "n_radial": 4, "max_l": 1, "n_triples": 2, "hidden": (4,)}
    spec = StudentSpec("moment", dataset.elements, 3.0, options)
    student = initialise_student(spec, dataset, TRAIN)
    config = TrainingConfig(
        max_steps=10,
        batch_size=12,
        validation_every=10,
        warmup_steps=1,
        learning_rate=2e-2,
        ema_decay=0.5,
    )
    trained = fit(student, dataset, TRAIN, VALIDATION, config, tmp_path, progress=False).student
    with jax.enable_x64(True):
        before, after = (jacobian_of_forces(s, dataset, 0) for s in (student, trained))
    largest = np.abs(after).max()
    assert np.abs(after - before).max() > 1e-2 * largest  # it has learnt something
    np.testing.assert_allclose(after, after.T, rtol=0, atol=1e-6 * largest)
