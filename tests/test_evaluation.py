"""Error measures, energy drift, speed and the certificate that records them."""

from __future__ import annotations

import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import molecule
from ase.data import chemical_symbols

from distill.data import Dataset, Labels
from distill.errors import DatasetError
from distill.evaluation import (
    Accuracy,
    Targets,
    compare_md_speed,
    energy_drift,
    make_certificate,
    measure_accuracy,
    save_certificate,
    save_plots,
)
from distill.potential import Potential
from distill.simulation import Frames
from distill.students import Student, StudentSpec, initialise_student


def _labelled(n: int = 12, symbol: str = "CH3OH") -> Dataset:
    rng = np.random.default_rng(0)
    start = molecule(symbol)
    moves = rng.normal(scale=0.05, size=(n, len(start), 3))
    structures = [start.copy() for _ in moves]
    for atoms, move in zip(structures, moves, strict=True):
        atoms.positions += move
    unlabelled = Dataset.from_structures(structures, [f"t{i % 3}" for i in range(n)], "springs")
    labels = Labels(energy=0.5 * 20 * (moves**2).sum((1, 2)), forces=list(-20 * moves))
    return unlabelled.labelled(labels)


def _student(dataset: Dataset) -> Student:
    spec = StudentSpec("moment", dataset.elements, 4.0, {"n_channels": 2, "hidden": [4]})
    return initialise_student(spec, dataset, np.arange(6))


def _frames(energy: np.ndarray, n_atoms: int = 2) -> Frames:
    time = 5.0 * np.arange(1, len(energy) + 1)
    still = np.zeros((len(energy), n_atoms, 3))
    zero = np.zeros_like(energy)
    rest = np.zeros((len(energy), 0)), np.zeros((len(energy), 3, 3)), zero
    return Frames(time, still, still, energy, zero, zero, energy, *rest)


def test_error_measures_are_those_of_their_definitions():
    labels = np.array([[1.0, 0.0, -1.0], [2.0, 0.5, 0.0]])
    predictions = labels + np.array([[0.1, 0.0, 0.0], [0.0, -0.2, 0.0]])
    accuracy = Accuracy(
        labels, predictions, np.array([1.0, 2.0]), np.array([1.001, 1.997]), np.array([1, 8])
    )
    summary = accuracy.summary()
    assert summary["force_mae_mev_per_ang"] == pytest.approx(1e3 * 0.3 / 6)
    assert summary["force_rmse_mev_per_ang"] == pytest.approx(1e3 * np.sqrt(0.05 / 6))
    spread = ((labels - labels.mean()) ** 2).sum()
    assert summary["force_r2"] == pytest.approx(1 - 0.05 / spread)
    assert summary["energy_mae_mev_per_atom"] == pytest.approx(2.0)
    by_element = summary["force_mae_by_element_mev_per_ang"]
    assert by_element == pytest.approx({"H": 1e3 * 0.1 / 3, "O": 1e3 * 0.2 / 3})


def test_a_perfect_prediction_has_no_error_whatever_the_batch():
    dataset = _labelled()
    by_position = {dataset.structure(i).positions.tobytes(): i for i in range(len(dataset))}

    def predict(structures: Any) -> Labels:
        found = [by_position[atoms.positions.tobytes()] for atoms in structures]
        return Labels(dataset.energy[found], [dataset.forces[dataset.rows(i)] for i in found])

    summary = measure_accuracy(predict, dataset, np.array([7, 2, 5]), batch_size=2).summary()
    assert summary["force_mae_mev_per_ang"] == 0
    assert summary["energy_mae_mev_per_atom"] == 0
    assert summary["force_r2"] == 1
    assert summary["structures"] == 3


def test_accuracy_needs_structures_that_are_usable():
    dataset = _labelled()
    with pytest.raises(DatasetError, match="no structures"):
        measure_accuracy(lambda s: None, dataset, np.array([], int))
    flagged = Dataset(**{**dataset.__dict__, "flag": np.ones(len(dataset), np.uint8)})
    with pytest.raises(DatasetError, match=r"[Ff]lagged"):
        measure_accuracy(lambda s: None, flagged, np.arange(2))


def test_drift_is_the_slope_per_atom_and_picosecond():
    time = 5e-3 * np.arange(1, 201)
    energy = -3.0 + 4e-4 * time + 1e-4 * np.cos(2 * np.pi * time / time[19])
    drift = energy_drift(_frames(energy, n_atoms=2), 2)
    assert drift == pytest.approx(0.2, abs=0.005)
    assert energy_drift(_frames(np.full(50, -3.0)), 2) == pytest.approx(0, abs=1e-9)


def _springs(work: int) -> Potential:
    """Free springs to the start, after `work` products of matrices that change nothing."""
    atoms = molecule("CH3OH")
    rest = jnp.asarray(atoms.positions, jnp.float32)

    def energy(positions: Any, lists: Any) -> Any:
        ballast = jnp.eye(200) + 0 * positions[0, 0]
        for _ in range(work):
            ballast = ballast @ (jnp.eye(200) + 0 * positions[1, 1])
        return 5.0 * ((positions - rest) ** 2).sum() + 1e-30 * ballast.sum()

    return Potential.from_energy(
        energy,
        allocate=lambda positions, previous=None: jnp.zeros(()),
        update=lambda lists, positions: lists,
        overflow=lambda lists, positions: jnp.zeros((), bool),
        numbers=atoms.numbers,
        dtype=np.float32,
    )


def test_speed_is_compared_side_by_side():
    speed = compare_md_speed(_springs(6), _springs(0), molecule("CH3OH"), repeats=2)
    assert speed["md_speedup"] > 1
    assert speed["md_speedup_range"][0] <= speed["md_speedup"] <= speed["md_speedup_range"][1]
    assert speed["teacher_us_per_atom_step"] > speed["student_us_per_atom_step"] > 0
    assert speed["batch"] == 1
    # Springs have no rows; of a student the name of the kernel is recorded.
    assert speed["kernel"] is None


def _certificate(dataset: Dataset, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "teacher": {"teacher": "springs", "n_members": 1, "n_parameters": 3},
        "student": _student(dataset),
        "atoms": molecule("CH3OH"),
        "dataset": dataset,
        "parts": {"train": [0, 3, 6, 9], "validation": [1, 4], "test": [2, 5]},
        "accuracy": {
            "force_mae_mev_per_ang": 12.0,
            "force_rmse_mev_per_ang": 20.0,
            "force_r2": 0.999,
            "energy_mae_mev_per_atom": 0.3,
            "force_label_std_mev_per_ang": 900.0,
            "force_mae_by_element_mev_per_ang": {"H": 10.0},
            "structures": 2,
        },
        "nve": {
            "drift_mev_per_atom_per_ps": 0.01,
            "duration_ps": 5.0,
            "timestep_fs": 0.5,
            "mean_temperature_k": 300.0,
            "energy_fluctuation_mev_per_atom": 0.1,
        },
        "speed": compare_md_speed(_springs(1), _springs(0), molecule("CH3OH"), repeats=1),
        "precision": "float32",
        "targets": Targets(md_speedup=0.0),
        "timings": {"training": 3.0},
    }
    return make_certificate(**{**arguments, **changes})


def test_certificate_has_the_agreed_keys():
    certificate = _certificate(_labelled())
    for key in (
        "teacher",
        "student.parameters",
        "system",
        "device",
        "precision",
        "versions",
        "accuracy.force_mae_mev_per_ang",
        "accuracy.force_rmse_mev_per_ang",
        "accuracy.force_r2",
        "accuracy.energy_mae_mev_per_atom",
        "nve.drift_mev_per_atom_per_ps",
        "nve.duration_ps",
        "speed.teacher_us_per_atom_step",
        "speed.student_us_per_atom_step",
        "speed.md_speedup",
    ):
        value: Any = certificate
        for name in key.split("."):
            value = value[name]
        assert value not in (None, {}, ""), key
    assert all(check["passed"] for check in certificate["checks"])
    assert certificate["data"]["trajectories"] == {
        "train": ["t0"],
        "validation": ["t1"],
        "test": ["t2"],
    }


def test_elements_that_training_never_saw_fail_the_certificate(tmp_path):
    certificate = _certificate(_labelled(), atoms=molecule("CH3CN"))
    assert certificate["data"]["elements_in_training"] == ["H", "C", "O"]
    assert certificate["data"]["elements_not_in_training"] == ["N"]
    failed = [check["name"] for check in certificate["checks"] if not check["passed"]]
    assert failed == ["elements not in training"]
    _, page = save_certificate(certificate, tmp_path)
    assert "not in training: N" in page.read_text()
    assert "**no**" in page.read_text()


def test_rare_elements_are_a_warning(tmp_path):
    dataset = _labelled()
    numbers = dataset.subset([0, 3, 6, 9]).numbers
    certificate = _certificate(dataset)
    rare = {chemical_symbols[z]: int((numbers == z).sum()) for z in dataset.elements}
    rare = {symbol: count for symbol, count in rare.items() if count < 10}
    assert certificate["data"]["rare_elements"] == rare
    assert "O" in rare
    _, page = save_certificate(certificate, tmp_path)
    assert f"**warning**: O was seen in {rare['O']} environments" in page.read_text()


def test_a_nan_is_a_miss_and_the_file_stays_valid_json(tmp_path):
    dataset = _labelled()
    nve = {**_certificate(dataset)["nve"], "drift_mev_per_atom_per_ps": float("nan")}
    certificate = _certificate(dataset, nve=nve)
    path, _ = save_certificate(certificate, tmp_path)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    read = json.loads(path.read_text(), parse_constant=refuse)
    assert read["nve"]["drift_mev_per_atom_per_ps"] is None
    passed = {check["name"]: check["passed"] for check in read["checks"]}
    assert not passed["NVE drift (meV/atom/ps)"]


def test_plots_are_written(tmp_path):
    rng = np.random.default_rng(1)
    forces = rng.normal(size=(40, 3))
    row = {"step": 10.0, "validation_force_mae": 0.02, "validation_force_rmse": 0.03}
    paths = save_plots(
        tmp_path / "new",
        accuracy=Accuracy(forces, forces + 0.01, np.zeros(2), np.zeros(2), np.ones(40, int)),
        metrics=[row, {**row, "step": 20.0}],
        nve=_frames(rng.normal(size=30)),
        drift=0.1,
        speed=_certificate(_labelled())["speed"],
        n_atoms=2,
        title="springs",
    )
    assert {path.name for path in paths} == {
        "force_parity.png",
        "learning_curve.png",
        "nve_energy.png",
        "speed.png",
        "summary.png",
    }
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000
