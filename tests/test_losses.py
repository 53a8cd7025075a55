"""Terms of the loss, each against numpy on arrays made by hand or against differences of forces."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import molecule

from distill.data import Batch, Dataset, GraphLoader, HessianProducts, Labels
from distill.errors import ConfigError, TrainingError
from distill.potential import Evaluation, evaluate
from distill.students import Student, StudentSpec, initialise_student
from distill.training import LossConfig, TrainingConfig, fit
from distill.training.config import TERMS
from distill.training.losses import error_sums, weighted_loss
from distill.training.schedules import (
    controls_at,
    lower_hessian_weight,
    never_halved,
    new_record,
    term_factors,
)
from distill.training.step import (
    initial_state,
    make_evaluation_step,
    make_optimizer,
    make_train_step,
)

TRAIN, VALIDATION = np.arange(6), np.arange(6, 9)
OFF = dict.fromkeys(TERMS, 0.0)
pytestmark = pytest.mark.usefixtures("quick_compilation")


def make_dataset() -> Dataset:
    """Nine displaced waters with every kind of label, the labels drawn at random.

    What they are worth as physics is no matter here: all that counts is that they differ.
    """
    rng = np.random.default_rng(0)
    structures = [molecule("H2O") for _ in range(9)]
    for atoms in structures:
        atoms.positions += rng.normal(scale=0.05, size=(3, 3))
    own = [np.array([-3.0, -1.0, -1.2]) + 0.1 * rng.standard_normal(3) for _ in structures]
    labels = Labels(
        np.array([x.sum() for x in own]),
        list(rng.standard_normal((9, 3, 3))),
        per_atom_energy=own,
        uncertainty=list(rng.uniform(0.05, 0.5, (9, 3))),
    )
    made = Dataset.from_structures(structures, [f"t{i // 3}" for i in range(9)], "random")
    parts = [
        HessianProducts.of_structure(*rng.standard_normal((2, 2, 3, 3)), 0.0, True)
        for _ in structures
    ]
    return made.labelled(labels, hessian=HessianProducts.join(parts, range(9)))


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return make_dataset()


@pytest.fixture(scope="module")
def student(dataset: Dataset) -> Student:
    options = {"n_channels": 2, "n_radial": 3, "max_l": 1, "n_triples": 0, "hidden": (3,)}
    spec = StudentSpec("moment", dataset.elements, 3.0, options)
    return initialise_student(spec, dataset, TRAIN)


def loader_of(dataset: Dataset, student: Student, size: int = 4, **options: Any) -> GraphLoader:
    return GraphLoader(
        dataset,
        TRAIN,
        student.cutoff,
        student.elements,
        size,
        atomic_energies=student.reference_energies,
        **options,
    )


def sums_with(forces: np.ndarray, batch: Batch, loss: LossConfig) -> dict[str, float]:
    """Error sums of an invented result whose forces are `forces`."""
    zeros = np.zeros_like(batch.stress)
    result = Evaluation(batch.energy, forces, zeros, np.zeros_like(batch.uncertainty))
    found = error_sums(result, batch, loss)
    return {name: float(value) for name, value in found.items()}


def forces_and_error(batch: Batch, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Forces `[N, 3]` for `batch` with errors from small to large, and those of real atoms."""
    rng = np.random.default_rng(seed)
    error = rng.standard_normal(batch.forces.shape) * rng.choice([0.01, 0.3, 3.0], (1, 3))
    forces = (batch.forces + error).astype(np.float32)
    real = np.asarray(batch.graph.atom_mask)
    return forces, (forces.astype(np.float64) - batch.forces)[real]


def huber(error: np.ndarray, delta: float) -> np.ndarray:
    """Squares within `delta`, and beyond it the tangent there."""
    size = np.abs(error)
    return np.where(size <= delta, error**2, delta**2 + 2 * delta * (size - delta))


@pytest.mark.parametrize("kind", ["mse", "mae", "huber"])
def test_the_penalty_of_the_forces(dataset, student, kind):
    batch = loader_of(dataset, student).batch(0)
    assert not np.all(batch.graph.atom_mask), "padding is part of the test"
    loss = LossConfig(**{**OFF, "forces": 2.0}, force_kind=kind, huber_delta=0.2)
    forces, error = forces_and_error(batch)
    penalty = {"mse": error**2, "mae": np.abs(error), "huber": huber(error, 0.2)}[kind]
    sums = sums_with(forces, batch, loss)
    assert sums["forces_weight"] == error.size
    assert sums["forces_penalty"] == pytest.approx(penalty.sum(), rel=1e-5)
    assert float(weighted_loss(sums, loss)) == pytest.approx(2 * penalty.mean(), rel=1e-5)
    # What is reported stays the plain error, whatever the loss makes of it.
    assert sums["forces_absolute"] == pytest.approx(np.abs(error).sum(), rel=1e-5)
    assert sums["forces_squared"] == pytest.approx((error**2).sum(), rel=1e-5)


def test_huber_is_smooth_where_its_two_parts_meet(dataset, student):
    batch = loader_of(dataset, student).batch(0)
    delta, h = 0.25, 1e-6
    loss = LossConfig(force_kind="huber", huber_delta=delta)
    with jax.enable_x64(True):
        exact = jax.tree.map(
            lambda x: x.astype(np.float64) if x.dtype == np.float32 else x,
            replace(batch, forces=np.zeros_like(batch.forces)),
        )

        def penalty(size: float) -> float:
            forces = np.zeros(batch.forces.shape)
            forces[0, 0] = size
            return sums_with(forces, exact, loss)["forces_penalty"]

        for sign in (1, -1):
            at = sign * delta
            assert penalty(at - h) == pytest.approx(penalty(at + h), abs=2.1 * 2 * delta * h)
            slopes = [(penalty(at + h * (k + 1)) - penalty(at + h * k)) / h for k in (-3, -2, 1, 2)]
            np.testing.assert_allclose(slopes, sign * 2 * delta, rtol=1e-4)
        assert penalty(3 * delta) == pytest.approx(delta * (2 * 3 * delta - delta))


def test_forces_that_the_teacher_is_unsure_of_count_less(dataset, student):
    spread = dataset.uncertainty.copy()
    spread[1] = np.nan  # unknown: full weight
    batch = loader_of(replace(dataset, uncertainty=spread), student, 6, shuffle=False).batch(0)
    loss = LossConfig(**{**OFF, "forces": 1.0}, uncertainty_scale=0.2)
    forces, error = forces_and_error(batch)
    rows = np.concatenate([np.arange(18)[dataset.rows(int(i))] for i in batch.indices if i >= 0])
    weight = 1 / (1 + (np.nan_to_num(spread[rows]) / 0.2) ** 2)
    expected = (weight[:, None] * error**2).sum() / (3 * weight.sum())
    sums = sums_with(forces, batch, loss)
    assert float(weighted_loss(sums, loss)) == pytest.approx(expected, rel=1e-5)
    alike = replace(loss, uncertainty_scale=0.0)
    sums = sums_with(forces, batch, alike)
    assert float(weighted_loss(sums, alike)) == pytest.approx((error**2).mean(), rel=1e-5)


def test_reference_energies_are_means_where_atoms_have_energies(dataset, student):
    rows = np.arange(18)
    means = [dataset.per_atom_energy[rows][dataset.numbers[rows] == z].mean() for z in (1, 8)]
    np.testing.assert_allclose(student.reference_energies, means, rtol=1e-12)
    without = replace(dataset, per_atom_energy=None)
    other = initialise_student(student.spec, without, TRAIN).reference_energies
    assert not np.allclose(other, means, atol=0.1)
    assert other @ [2, 1] == pytest.approx(dataset.energy[TRAIN].mean())


def test_the_term_of_the_atoms_energies(dataset, student):
    partly = dataset.per_atom_energy.copy()
    partly[4] = np.nan
    loader = loader_of(replace(dataset, per_atom_energy=partly), student, 6, shuffle=False)
    batch = loader.batch(0)
    sums = make_evaluation_step(student.module, student.variables["statistics"])(
        student.variables["params"], batch
    )
    chosen = [int(i) for i in batch.indices if i >= 0]
    structures = [dataset.structure(i) for i in chosen]
    # `label` adds the reference energies, of which the batch's labels are free.
    predicted = np.concatenate(student.label(structures).per_atom_energy)
    error = predicted - np.concatenate([partly[dataset.rows(i)] for i in chosen])
    assert int(sums["per_atom_energy_count"]) == 17
    squared, absolute = np.nansum(error**2), np.nansum(np.abs(error))
    assert float(sums["per_atom_energy_squared"]) == pytest.approx(squared, rel=1e-4)
    assert float(sums["per_atom_energy_absolute"]) == pytest.approx(absolute, rel=1e-4)
    weights = LossConfig(**{**OFF, "per_atom_energy": 3.0})
    assert float(weighted_loss(sums, weights)) == pytest.approx(3 * squared / 17, rel=1e-4)


@pytest.mark.parametrize("name", ["per_atom_energy", "hessian"])
def test_the_new_terms_can_be_learnt_alone(dataset, student, name):
    config = TrainingConfig(
        max_steps=60, learning_rate=2e-2, warmup_steps=5, loss=LossConfig(**{**OFF, name: 1.0})
    )
    optimizer = make_optimizer(config)
    step = make_train_step(student.module, student.variables["statistics"], optimizer, config)
    batch = loader_of(dataset, student, 6, shuffle=False).batch(0)
    state, losses = initial_state(student.variables["params"], optimizer), []
    for number in range(60):
        state, metrics = step(state, batch, controls_at(config, number))
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.9 * losses[0]


def test_the_hessian_term_is_a_difference_of_forces(dataset, student):
    """The product in the loss, in double precision: each component is recovered from the sums."""
    with jax.enable_x64(True):
        loader = loader_of(dataset, student, 2, dtype=np.float64, shuffle=False)
        batch = loader.batch(0)
        variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), student.variables)
        loss = LossConfig(**{**OFF, "hessian": 1.0})
        evaluation = make_evaluation_step(student.module, variables["statistics"], loss)
        plain = jax.jit(
            lambda graph: evaluate(lambda *rows: student.module.apply(variables, *rows), graph)
        )

        def forces(step: float) -> np.ndarray:
            moved = batch.graph.positions + step * batch.direction
            return np.asarray(plain(replace(batch.graph, positions=moved)).forces)

        h = 1e-4
        near, far = ((forces(-k * h) - forces(k * h)) / (2 * k * h) for k in (1, 2))
        expected = (4 * near - far) / 3  # Richardson: free of the error in h²
        real = np.asarray(batch.graph.atom_mask)
        assert batch.graph.positions.dtype == np.float64 and batch.hessian_mask.sum() == 2
        assert np.abs(expected[real]).max() > 1e-2
        # Probed with products of its own, the squared error tells the student's product.
        sums = evaluation(variables["params"], replace(batch, product=expected))
        assert int(sums["hessian_count"]) == 18
        assert float(sums["hessian_absolute"]) / 18 < 1e-7 * np.abs(expected).max()
        sums = evaluation(variables["params"], batch)
        error = (expected - batch.product)[real]
        assert float(sums["hessian_squared"]) == pytest.approx((error**2).sum(), rel=1e-6)
        assert float(weighted_loss(sums, loss)) == pytest.approx((error**2).mean(), rel=1e-6)
        absolute = replace(loss, hessian_kind="mae")
        assert float(weighted_loss(sums, absolute)) == pytest.approx(np.abs(error).mean(), rel=1e-6)
    chosen = [int(i) for i in batch.indices if i >= 0]
    for k, index in enumerate(chosen):
        directions, products = dataset.hessian.of(index)
        own = slice(3 * k, 3 * k + 3)
        drawn = [np.array_equal(d, batch.direction[own]) for d in directions]
        assert sum(drawn) == 1
        np.testing.assert_array_equal(products[drawn.index(True)], batch.product[own])


def test_each_product_of_a_structure_is_drawn_at_times(dataset, student):
    loader = loader_of(dataset, student, 6)
    first = dataset.hessian.of(0)[0].astype(np.float32)
    drawn = set()
    for step in range(12):
        batch = loader.batch(step)
        atoms = np.asarray(batch.graph.system) == int(np.argmax(batch.indices == 0))
        own = batch.direction[atoms & np.asarray(batch.graph.atom_mask)]
        drawn |= {k for k in range(2) if np.array_equal(first[k], own)}
    assert drawn == {0, 1}


def test_a_term_of_weight_0_changes_nothing(dataset, student):
    """Not even by what stands in its labels."""
    loader = loader_of(dataset, student)
    batch = loader.batch(0)
    config = TrainingConfig(loss=LossConfig(**{**OFF, "forces": 1.0, "energy": 1.0}))
    optimizer = make_optimizer(config)
    step = make_train_step(student.module, student.variables["statistics"], optimizer, config)
    state = initial_state(student.variables["params"], optimizer)
    controls = controls_at(config, 0)
    other = replace(
        batch,
        per_atom_energy=np.full_like(batch.per_atom_energy, np.nan),
        product=batch.product + 7,
        stress=batch.stress + 7,
    )
    factors = {**controls.factors, "hessian": np.float32(9), "stress": np.float32(9)}
    first, metrics = step(state, batch, controls)
    second, _ = step(state, other, replace(controls, factors=factors))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)
    assert "hessian_squared" not in metrics, "the products were computed for nothing"
    sums = {name: float(value) for name, value in metrics.items()}
    assert float(weighted_loss(sums, config.loss)) == pytest.approx(
        sums["energy_squared"] / sums["energy_count"]
        + sums["forces_penalty"] / sums["forces_weight"]
    )


def test_factors_of_the_terms_follow_their_schedule():
    points = {"energy": [[0.0, 1.0], [0.8, 1.0], [1.0, 100.0]], "hessian": [[0.2, 4.0], [0.4, 0.0]]}
    loss = LossConfig(hessian=1.0, schedule=points)
    expected = {0.0: (1, 4), 0.2: (1, 4), 0.3: (1, 2), 0.8: (1, 0), 0.9: (50.5, 0), 1.0: (100, 0)}
    for share, (energy, hessian) in expected.items():
        factors = term_factors(loss, share)
        assert set(factors) == set(TERMS)
        assert (factors["energy"], factors["hessian"]) == pytest.approx((energy, hessian))
        assert factors["forces"] == factors["stress"] == 1
    assert term_factors(loss, 0.0, hessian=0.5)["hessian"] == 2
    config = TrainingConfig(max_steps=10, loss=loss)
    assert controls_at(config, 9).factors["energy"] == pytest.approx(50.5)
    sums = {f"{n}_{k}": 2.0 for n in ("energy", "hessian") for k in ("squared", "count")}
    sums |= {"forces_penalty": 2.0, "forces_weight": 2.0}
    weighted = float(weighted_loss(sums, loss, term_factors(loss, 0.3)))
    assert weighted == pytest.approx(10.0 + 1.0 + 2.0)


def test_the_weight_of_the_hessian_is_halved_once():
    loss, record = LossConfig(hessian=1.0), new_record({})
    for rmse, spread, factor in (
        (0.2, 0.1, 1.0),
        (0.1, np.nan, 1.0),
        (0.104, 0.1, 0.5),
        (0.05, 0.1, 0.5),
    ):
        lower_hessian_weight(record, loss, rmse, spread)
        assert record["hessian_factor"] == factor
    kept = new_record({})
    lower_hessian_weight(kept, replace(loss, halve_hessian=False), 0.0, 0.1)
    assert kept["hessian_factor"] == 1.0


@pytest.mark.parametrize(
    ("name", "points"),
    [
        ("virial", [[0, 1]]),
        ("energy", [[0.5, 1], [0.2, 1]]),
        ("energy", [[0, 1, 2]]),
        ("energy", [[0]]),
        ("energy", []),
        ("energy", [0, 1]),
    ],
)
def test_bad_schedules_are_refused(name, points):
    with pytest.raises(ConfigError, match=rf"schedule of '{name}' must be rising pairs"):
        LossConfig(schedule={name: points})


def test_a_loss_of_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"huber_delta is 0\.0"):
        LossConfig(force_kind="huber", huber_delta=0.0)
    with pytest.raises(ConfigError, match="all weights of the loss are 0"):
        LossConfig(**OFF)


@pytest.mark.parametrize("name", ["stress", "per_atom_energy", "hessian"])
def test_a_term_without_labels_is_refused(dataset, student, tmp_path, name):
    """Labels of the validation structures alone teach nothing either."""
    there = np.zeros(len(dataset), bool)
    there[VALIDATION] = True
    atoms = np.repeat(there, dataset.n_atoms)
    late = [HessianProducts.of_structure(*np.ones((2, 1, 3, 3)), 0.0, True) for _ in VALIDATION]
    changed = replace(
        dataset,
        stress=np.where(there[:, None, None], 0.1, np.nan) * np.ones((3, 3)),
        per_atom_energy=np.where(atoms, dataset.per_atom_energy, np.nan),
        hessian=HessianProducts.join(late, VALIDATION),
    )
    config = TrainingConfig(max_steps=1, batch_size=2, loss=LossConfig(**{**OFF, name: 2.0}))
    with pytest.raises(TrainingError, match=rf"loss\.{name} is 2\.0.*no\s+such labels"):
        fit(student, changed, TRAIN, VALIDATION, config, tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_weight_by_uncertainty_without_uncertainties_is_refused(dataset, student, tmp_path):
    """Those of the validation structures alone weigh nothing in training either."""
    atoms = np.repeat(np.isin(np.arange(len(dataset)), VALIDATION), dataset.n_atoms)
    changed = replace(dataset, uncertainty=np.where(atoms, dataset.uncertainty, np.nan))
    config = TrainingConfig(max_steps=1, batch_size=2, loss=LossConfig(uncertainty_scale=0.2))
    wanted = r"loss\.uncertainty_scale is 0\.2.*uncertainty=true, or set it to 0"
    with pytest.raises(TrainingError, match=wanted):
        fit(student, changed, TRAIN, VALIDATION, config, tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_hessian_weight_that_is_never_halved_is_noted_once(dataset, student, tmp_path):
    loss = LossConfig(hessian=1.0)
    assert not never_halved(loss, 0.1) and never_halved(loss, np.nan)
    assert not never_halved(replace(loss, halve_hessian=False), np.nan)
    changed = replace(dataset, uncertainty=None)
    config = TrainingConfig(max_steps=2, batch_size=2, validation_every=1, loss=loss)
    arguments = (student, changed, TRAIN, VALIDATION, config, tmp_path)

    def stop(step: int, metrics: dict[str, float]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(*arguments, progress=False, on_validation=stop)
    fit(*arguments, progress=False)
    notes = (tmp_path / "notes.txt").read_text()
    assert notes.count("weight of the Hessian stays") == 1
