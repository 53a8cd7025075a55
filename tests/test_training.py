"""Training: it learns, resumes exactly, stops at NaN, and counts what it compiles."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT

from distill.data import Dataset, GraphLoader, Labels
from distill.errors import DatasetError, TrainingError
from distill.students import Student, StudentSpec, initialise_student
from distill.training import LossConfig, TrainingConfig, fit, read_metrics
from distill.training.losses import weighted_loss
from distill.training.schedules import controls_at, learning_rate
from distill.training.step import (
    initial_state,
    make_evaluation_step,
    make_optimizer,
    make_train_step,
)

TRAIN, VALIDATION = np.arange(16), np.arange(16, 24)
QUICK = TrainingConfig(
    max_steps=40, batch_size=4, validation_every=20, warmup_steps=5, learning_rate=1e-2
)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Small copper cells, strained and displaced, labelled by EMT: an independent reference."""
    rng = np.random.default_rng(0)
    structures, energy, forces, stress = [], [], [], []
    for _ in range(24):
        atoms = bulk("Cu", "fcc", a=3.6, cubic=True)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(scale=0.01, size=(3, 3))), True)
        atoms.positions += rng.normal(scale=0.05, size=(4, 3))
        atoms.calc = EMT()
        structures.append(atoms)
        energy.append(atoms.get_potential_energy())
        forces.append(atoms.get_forces())
        stress.append(atoms.get_stress(voigt=False))
    unlabelled = Dataset.from_structures(structures, [f"t{i // 8}" for i in range(24)], "emt")
    return unlabelled.labelled(Labels(np.array(energy), forces, np.array(stress)))


@pytest.fixture(scope="module")
def student(dataset: Dataset) -> Student:
    spec = StudentSpec(
        "moment", (29,), 3.5, {"n_channels": 3, "n_radial": 5, "max_l": 1, "hidden": (8,)}
    )
    return initialise_student(spec, dataset, TRAIN)


def _equal(first: Any, second: Any) -> bool:
    same = jax.tree.map(lambda a, b: np.array_equal(np.asarray(a), np.asarray(b)), first, second)
    return all(jax.tree.leaves(same))


def _columns(path: Path, left_out: str = "seconds") -> list[dict[str, str]]:
    with path.open() as file:
        return [{k: v for k, v in row.items() if k != left_out} for row in csv.DictReader(file)]


def test_a_student_learns_the_forces(dataset, student, tmp_path):
    longer = replace(QUICK, max_steps=300, validation_every=100)
    result = fit(student, dataset, TRAIN, VALIDATION, longer, tmp_path, progress=False)
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [row["step"] for row in rows] == [100, 200, 300]
    assert rows[-1]["validation_loss"] < rows[0]["validation_loss"]
    held_out = np.concatenate([dataset.forces[dataset.rows(i)] for i in VALIDATION])
    assert rows[-1]["validation_force_rmse"] < 0.4 * held_out.std()
    assert result.steps == 300
    # What is returned is what was validated: the averaged parameters of the best validation.
    labels = result.student.label([dataset.structure(int(i)) for i in VALIDATION])
    error = np.abs(np.concatenate(labels.forces) - held_out).mean()
    best = min(rows, key=lambda row: row["validation_loss"])
    assert error == pytest.approx(best["validation_force_mae"], rel=1e-3)
    assert list((tmp_path / "tensorboard").iterdir())


class _Stop(Exception):
    pass


def _stop_at(step: int) -> Any:
    def stop(done: int, metrics: dict[str, float]) -> None:
        if done == step:
            raise _Stop

    return stop


def test_a_resumed_run_equals_one_that_was_not_stopped(dataset, student, tmp_path):
    whole = fit(student, dataset, TRAIN, VALIDATION, QUICK, tmp_path / "whole", progress=False)
    arguments = (student, dataset, TRAIN, VALIDATION, QUICK, tmp_path / "parts")
    with pytest.raises(_Stop):
        fit(*arguments, progress=False, on_validation=_stop_at(20))
    parts = fit(*arguments, progress=False)
    assert _equal(whole.student.variables, parts.student.variables)
    metrics = [_columns(tmp_path / name / "metrics.csv") for name in ("whole", "parts")]
    assert metrics[0] == metrics[1]


def test_a_folder_serves_one_run_only(dataset, student, tmp_path):
    short = replace(QUICK, max_steps=2, validation_every=2)
    fit(student, dataset, TRAIN, VALIDATION, short, tmp_path, progress=False)
    with pytest.raises(TrainingError, match="configuration"):
        fit(student, dataset, TRAIN, VALIDATION, replace(short, batch_size=2), tmp_path)
    with pytest.raises(TrainingError, match="split"):
        fit(student, dataset, TRAIN[:-1], VALIDATION, short, tmp_path, progress=False)
    with pytest.raises(TrainingError, match="holds a run already"):
        fit(student, dataset, TRAIN, VALIDATION, short, tmp_path, resume=False, progress=False)


def test_nan_stops_the_run_and_names_the_structures(dataset, student, tmp_path, monkeypatch):
    arguments = (student, dataset, TRAIN, VALIDATION, QUICK, tmp_path)
    with pytest.raises(_Stop):
        fit(*arguments, progress=False, on_validation=_stop_at(20))
    original = GraphLoader.batch

    def poisoned(self: GraphLoader, step: int) -> Any:
        batch = original(self, step)
        return replace(batch, energy=batch.energy * np.nan) if step == 23 else batch

    monkeypatch.setattr(GraphLoader, "batch", poisoned)
    loader = GraphLoader(dataset, TRAIN, 3.5, (29,), 4, seed=QUICK.seed)
    members = [int(i) for i in original(loader, 23).indices if i >= 0]
    with pytest.raises(TrainingError, match="step 23") as error:
        fit(*arguments, progress=False)
    assert str(members) in str(error.value)
    monkeypatch.undo()
    # The checkpoint before the damage is intact, and the run goes on from it.
    assert fit(*arguments, progress=False).steps == 40


def test_flagged_structures_are_never_trained_on(dataset, student, tmp_path):
    flags = dataset.flag.copy()
    flags[3] = 1
    with pytest.raises(DatasetError, match="flagged"):
        fit(student, replace(dataset, flag=flags), TRAIN, VALIDATION, QUICK, tmp_path)


def test_patience_ends_a_run_that_no_longer_improves(dataset, student, tmp_path):
    still = replace(QUICK, learning_rate=0.0, validation_every=4, patience=2)
    result = fit(student, dataset, TRAIN, VALIDATION, still, tmp_path, progress=False)
    assert result.stopped_early
    assert result.steps == 12


@pytest.mark.parametrize("name", ["energy", "forces", "stress"])
def test_each_term_of_the_loss_can_be_learnt_alone(dataset, student, name):
    weights = LossConfig(**{"energy": 0.0, "forces": 0.0, "stress": 0.0, name: 1.0})
    config = replace(QUICK, max_steps=60, loss=weights)
    optimizer = make_optimizer(config)
    statistics = student.variables["statistics"]
    step = make_train_step(student.module, statistics, optimizer, config)
    loader = GraphLoader(dataset, TRAIN, 3.5, (29,), 16, atomic_energies=student.reference_energies)
    state = initial_state(student.variables["params"], optimizer)
    losses = []
    for number in range(60):
        state, metrics = step(state, loader.batch(number), controls_at(config, number))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.7 * losses[0]
    assert step._cache_size() == len(loader.plan.buckets) == 1


def test_the_loss_is_that_of_its_definition(dataset, student):
    loader = GraphLoader(
        dataset, TRAIN, 3.5, (29,), 5, atomic_energies=student.reference_energies, shuffle=False
    )
    batch = loader.batch(0)
    evaluation = make_evaluation_step(student.module, student.variables["statistics"])
    sums = {k: float(v) for k, v in evaluation(student.variables["params"], batch).items()}
    chosen = [int(i) for i in batch.indices if i >= 0]
    labels = student.label([dataset.structure(i) for i in chosen])
    energy = (labels.energy - dataset.energy[chosen]) / 4
    forces = np.concatenate(labels.forces) - np.concatenate(
        [dataset.forces[dataset.rows(i)] for i in chosen]
    )
    stress = labels.stress - dataset.stress[chosen]
    expected = 3 * (energy**2).mean() + 2 * (forces**2).mean() + 5 * (stress**2).mean()
    loss = float(weighted_loss(sums, LossConfig(energy=3.0, forces=2.0, stress=5.0)))
    assert loss == pytest.approx(expected, rel=1e-3)
    assert sums["forces_absolute"] == pytest.approx(np.abs(forces).sum(), rel=1e-3)


def test_padding_counts_nowhere(dataset, student):
    evaluation = make_evaluation_step(student.module, student.variables["statistics"])
    alone, padded = (
        GraphLoader(dataset, TRAIN[:2], 3.5, (29,), size, shuffle=False).batch(0) for size in (2, 9)
    )
    assert len(padded.energy) > len(alone.energy)
    first, second = (evaluation(student.variables["params"], b) for b in (alone, padded))
    for name, value in first.items():
        np.testing.assert_allclose(second[name], value, rtol=1e-4, err_msg=name)


def test_schedule_rises_and_falls():
    config = replace(QUICK, max_steps=100, warmup_steps=10)
    rates = [learning_rate(config, step) for step in (0, 10, 100)]
    assert rates[0] < rates[1] == pytest.approx(1e-2)
    assert rates[2] == pytest.approx(1e-2 * QUICK.final_learning_rate)
