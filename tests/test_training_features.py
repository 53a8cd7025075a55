"""Features of training: rates, optimisers, averages, ensembles, devices, rollbacks, reports."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from builders import morse_dataset

from distill.data import Dataset, GraphLoader, concatenate
from distill.errors import ConfigError, MissingDependencyError, TrainingError
from distill.students import Student, StudentSpec, initialise_student
from distill.training import FitResult, LossConfig, TrainingConfig, fit, read_metrics
from distill.training.checkpoints import Checkpoints
from distill.training.losses import weighted_loss
from distill.training.schedules import (
    ROLLBACK_FACTOR,
    after_validation,
    controls_at,
    learning_rate,
    new_record,
)
from distill.training.step import GOOD, initial_state, make_optimizer, make_train_step

ROOT = Path(__file__).resolve().parent.parent
TRAIN, VALIDATION = np.arange(7), np.arange(7, 10)
QUICK = TrainingConfig(
    max_steps=8, batch_size=4, validation_every=4, warmup_steps=2, learning_rate=1e-2
)
FIT = importlib.import_module("distill.training.fit")  # `distill.training.fit` is the function
pytestmark = pytest.mark.usefixtures("quick_compilation")


def make_student(dataset: Dataset, seed: int = 0) -> Student:
    options = {"n_channels": 2, "n_radial": 3, "max_l": 0, "n_triples": 0, "hidden": (3,)}
    spec = StudentSpec("moment", dataset.elements, 3.0, options)
    return initialise_student(spec, dataset, TRAIN, seed)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return morse_dataset(count=10, per_trajectory=3)


@pytest.fixture(scope="module")
def student(dataset: Dataset) -> Student:
    return make_student(dataset)


@pytest.fixture(scope="module")
def second(dataset: Dataset, student: Student) -> Student:
    """The student that an ensemble takes for its second member."""
    return initialise_student(student.spec, dataset, TRAIN, QUICK.seed + 1)


@pytest.fixture(scope="module")
def compiled() -> dict[Any, Any]:
    return {}


@pytest.fixture
def shared_steps(
    monkeypatch: pytest.MonkeyPatch, compiled: dict[Any, Any], second: Student
) -> None:
    """Runs of this file share compiled functions: those depend on few of the settings."""
    make, evaluate = FIT.make_train_step, FIT.make_evaluation_step

    def step(module: Any, statistics: Any, optimizer: Any, config: TrainingConfig) -> Any:
        key = (config.ensemble, config.loss.hessian, str(config.loss.schedule))
        if key not in compiled:
            compiled[key] = make(module, statistics, optimizer, config)
        return compiled[key]

    def evaluation(module: Any, statistics: Any, loss: Any, members: int) -> Any:
        if members not in compiled:
            compiled[members] = evaluate(module, statistics, loss, members)
        return compiled[members]

    monkeypatch.setattr(FIT, "make_train_step", step)
    monkeypatch.setattr(FIT, "make_evaluation_step", evaluation)
    monkeypatch.setattr(FIT, "initialise_student", lambda *_: second)


def loader_of(
    dataset: Dataset, student: Student, indices: np.ndarray = TRAIN, **options: Any
) -> GraphLoader:
    arguments = (dataset, indices, student.cutoff, student.elements, QUICK.batch_size)
    return GraphLoader(*arguments, atomic_energies=student.reference_energies, **options)


def run(student: Student, dataset: Dataset, folder: Path, **changes: Any) -> FitResult:
    config = replace(QUICK, **changes)
    return fit(student, dataset, TRAIN, VALIDATION, config, folder, progress=False)


def assert_close(first: Any, second: Any, rtol: float = 1e-5, atol: float = 1e-7) -> None:
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def assert_equal(first: Any, second: Any) -> None:
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


def named(tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(x) for p, x in leaves}


# Rates


def test_the_cosine_falls_from_peak_to_floor():
    config = replace(QUICK, max_steps=100, warmup_steps=10, final_learning_rate=0.1)
    steps = np.arange(10, 101)
    expected = 1e-2 * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * (steps - 10) / 90)))
    np.testing.assert_allclose([learning_rate(config, s) for s in steps], expected)
    assert learning_rate(config, 0) == pytest.approx(1e-3)
    assert learning_rate(config, 5) == pytest.approx(5.5e-3)
    assert learning_rate(config, 55, 0.3) == pytest.approx(0.3 * learning_rate(config, 55))


def test_a_plateau_lowers_the_rate_after_patience_down_to_the_floor():
    config = replace(
        QUICK,
        max_steps=1000,
        warmup_steps=10,
        schedule="plateau",
        plateau_patience=2,
        plateau_factor=0.5,
        final_learning_rate=0.2,
    )
    record, rates = new_record({}), []
    improved = [True, False, True, False, False, False, False, False, False, False]
    for better in improved:
        after_validation(record, config, better)
        rates.append(learning_rate(config, 500, record["rate_factor"]) / config.learning_rate)
    assert rates == pytest.approx([1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2])
    assert record["since_best"] == 7, "drops of the rate are no improvements"
    assert learning_rate(config, 20, 0.5) == learning_rate(config, 900, 0.5)
    # The floor is that of plateaus: a run that diverged there has to slow down all the same.
    rolled_back = ROLLBACK_FACTOR * record["rate_factor"]
    assert learning_rate(config, 500, rolled_back) == pytest.approx(0.06 * config.learning_rate)
    record["rate_factor"] = rolled_back
    for _ in range(4):
        after_validation(record, config, False)
    assert record["rate_factor"] == rolled_back
    hasty, record = replace(config, plateau_patience=0), new_record({})
    for better, factor in ((True, 1.0), (False, 0.5), (True, 0.5)):
        after_validation(record, hasty, better)
        assert record["rate_factor"] == factor
    cosine, record = replace(config, schedule="cosine"), new_record({})
    for _ in range(9):
        after_validation(record, cosine, False)
    assert record["rate_factor"] == 1.0


def one_step(student: Student, batch: Any, config: TrainingConfig) -> Any:
    optimizer = make_optimizer(config)
    step = make_train_step(student.module, student.variables["statistics"], optimizer, config)
    params = student.variables["params"]
    return step(initial_state(params, optimizer), batch, controls_at(config, 4))[0].params


def test_groups_have_rates_of_their_own(dataset, student):
    batch = loader_of(dataset, student).batch(0)
    start = named(student.variables["params"])
    plain = named(one_step(student, batch, QUICK))
    # Of two factors that fit `hidden_0/own/kernel` the first counts.
    rates = {"radial_": 0.0, "hidden_0": 0.5, "kernel": 0.25}
    slowed = named(one_step(student, batch, replace(QUICK, rates=rates, weight_decay=0.0)))
    assert any("radial_" in name for name in start)
    for name, before in start.items():
        assert not np.array_equal(plain[name], before), name
        factor = next((f for part, f in rates.items() if part in name), 1.0)
        if factor == 0:
            np.testing.assert_array_equal(slowed[name], before, err_msg=name)
        move = plain[name] - before
        np.testing.assert_allclose(
            slowed[name] - before, factor * move, rtol=1e-4, atol=1e-7, err_msg=name
        )


# Optimisers


def test_muon_takes_the_matrix_of_each_element_and_leaves_vectors_to_adam(student):
    params = {
        **student.variables["params"],
        "all": {"kernel": jnp.ones((4, 3))},
        "factor": jnp.ones((2, 3)),
    }
    rng = np.random.default_rng(0)
    gradient = jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape), p.dtype), params)
    optimizer = make_optimizer(replace(QUICK, optimizer="muon", gradient_clip=1e9))
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    adam = optax.adamw(1.0, weight_decay=0.0, nesterov=True)
    by_adam = named(adam.update(gradient, adam.init(params), params)[0])
    by_muon = set()
    for name, update in named(updates).items():
        if np.allclose(update, by_adam[name], rtol=1e-4):
            continue
        by_muon.add(name)
        matrices = update.reshape(-1, *update.shape[-2:])
        width = max(1.0, update.shape[-1] / update.shape[-2]) ** 0.5
        for matrix in matrices:
            # Newton-Schulz brings singular values close to 1, not to it.
            values = np.linalg.svd(matrix, compute_uv=False) / width
            assert (values > 0.3).all() and (values < 1.4).all(), (name, values)
    assert by_muon == {"layer_0/radial_0", "hidden_0/own/kernel", "all/kernel"}


@pytest.mark.parametrize("name", ["adam", "muon"])
def test_weight_decay_is_that_of_all_parameters(student, name):
    params = jax.tree.map(lambda p: p + 1.0, student.variables["params"])
    optimizer = make_optimizer(replace(QUICK, optimizer=name, weight_decay=0.1))
    nothing = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(nothing, optimizer.init(params), params)
    assert_close(updates, jax.tree.map(lambda p: -0.1 * p, params))


def test_muon_makes_progress_with_an_ensemble_too(dataset, student):
    config = replace(QUICK, optimizer="muon", max_steps=40, ensemble=2)
    optimizer = make_optimizer(config)
    step = make_train_step(student.module, student.variables["statistics"], optimizer, config)
    params = student.variables["params"]
    twice = jax.tree.map(lambda p: jnp.stack([p, 0.9 * p]), params)
    state, losses = initial_state(twice, optimizer, 2), []
    batch = loader_of(dataset, student).batch(0)
    for number in range(40):
        state, metrics = step(state, batch, controls_at(config, number))
        losses.append(np.asarray(metrics["loss"]))
    assert (losses[-1] < 0.7 * losses[0]).all()
    assert int(state.bad_step) == GOOD


# Averages and ensembles


def test_the_plain_average_is_that_of_the_last_steps(dataset, student):
    config = replace(QUICK, max_steps=6, average_last=0.5)
    optimizer = make_optimizer(config)
    step = make_train_step(student.module, student.variables["statistics"], optimizer, config)
    states = [initial_state(student.variables["params"], optimizer)]
    loader = loader_of(dataset, student)
    for number in range(6):
        states.append(step(states[-1], loader.batch(number), controls_at(config, number))[0])
    assert [int(state.mean_count) for state in states] == [0, 0, 0, 0, 1, 2, 3]
    own = [jax.tree.map(lambda p: np.asarray(p, np.float64), s.params) for s in states]
    expected = jax.tree.map(lambda *leaves: np.mean(leaves, 0), *own[4:])
    assert_close(states[-1].mean_params, expected, rtol=1e-5)
    assert_equal(states[3].mean_params, states[0].params)


@pytest.mark.usefixtures("shared_steps")
def test_the_better_of_both_averages_is_kept(dataset, student, tmp_path):
    result = run(student, dataset, tmp_path, max_steps=4, average_last=1.0)
    state = initial_state(student.variables["params"], make_optimizer(QUICK))
    arrays, _ = Checkpoints(tmp_path).restore({"state": state, "best": {"params": state.params}})
    averages = [arrays["state"].ema_params, arrays["state"].mean_params]
    evaluation = FIT.make_evaluation_step(
        student.module, student.variables["statistics"], QUICK.loss, 1
    )
    loader = loader_of(dataset, student, VALIDATION, shuffle=False)
    losses = [
        float(weighted_loss(FIT.validate(evaluation, params, loader), QUICK.loss))
        for params in averages
    ]
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)
    assert result.best_loss == pytest.approx(min(losses), rel=1e-5)
    assert_equal(result.student.variables["params"], averages[int(np.argmin(losses))])


@pytest.mark.usefixtures("shared_steps")
def test_members_of_an_ensemble_are_single_runs(dataset, student, second, tmp_path):
    short = {"max_steps": 4, "validation_every": 4}
    result = run(student, dataset, tmp_path, ensemble=2, **short)
    assert len(result.members) == 2
    assert_equal(result.student.variables, result.members[0].variables)
    config = replace(QUICK, **short)
    optimizer, statistics = make_optimizer(config), student.variables["statistics"]
    step = make_train_step(student.module, statistics, optimizer, config)
    loader = loader_of(dataset, student, seed=config.seed)
    for start, member in zip((student, second), result.members, strict=True):
        state = initial_state(start.variables["params"], optimizer)
        for number in range(4):
            state, _ = step(state, loader.batch(number), controls_at(config, number))
        assert_close(member.variables["params"], state.ema_params, rtol=1e-4, atol=1e-6)
        assert_equal(member.variables["statistics"], statistics)
    forces = [m.label([dataset.structure(0)]).forces[0] for m in result.members]
    assert np.abs(forces[0] - forces[1]).max() > 1e-3


class _Stop(Exception):
    pass


def stop_at(step: int) -> Any:
    def stop(done: int, metrics: dict[str, float]) -> None:
        if done == step:
            raise _Stop

    return stop


@pytest.mark.usefixtures("shared_steps")
def test_a_run_with_everything_is_resumed_bit_for_bit(dataset, student, second, tmp_path):
    config = replace(
        QUICK,
        max_steps=12,
        validation_every=2,
        schedule="plateau",
        plateau_patience=1,
        learning_rate=0.3,  # too high, so that there are plateaus
        average_last=0.75,
        ensemble=2,
    )
    arguments = (student, dataset, TRAIN, VALIDATION, config)
    whole = fit(*arguments, tmp_path / "whole", progress=False)
    with pytest.raises(_Stop):
        fit(*arguments, tmp_path / "parts", progress=False, on_validation=stop_at(6))
    parts = fit(*arguments, tmp_path / "parts", progress=False)
    for first, other in zip(whole.members, parts.members, strict=True):
        assert_equal(first.variables, other.variables)
    params = [student.variables["params"], second.variables["params"]]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    state = initial_state(stacked, make_optimizer(config), 2)
    like = {"state": state, "best": {"params": state.params}}
    (first, record), (other, resumed) = (
        Checkpoints(tmp_path / name).restore(like) for name in ("whole", "parts")
    )
    assert_equal(first, other)
    assert {**record, "seconds": 0} == {**resumed, "seconds": 0}
    assert record["rate_factor"] < 1 and int(first["state"].mean_count) == 9
    rows = [read_metrics(tmp_path / name / "metrics.csv") for name in ("whole", "parts")]
    assert [{**r, "seconds": 0} for r in rows[0]] == [{**r, "seconds": 0} for r in rows[1]]


# Devices


def compare_steps() -> None:
    """Steps on one and on two devices; this file is run as a script with two of them."""
    dataset = morse_dataset(count=10, per_trajectory=3)
    student = make_student(dataset)
    params, statistics = student.variables["params"], student.variables["statistics"]
    results = []
    for devices in (1, 2):
        config = replace(QUICK, devices=devices)
        optimizer = make_optimizer(config)
        step = make_train_step(student.module, statistics, optimizer, config)
        state = FIT.place_state(initial_state(params, optimizer), devices)
        metrics, sizes = [], set()
        # Short batches of 3, which are divided unevenly, and of 1, which leave a device nothing.
        for indices in (TRAIN, TRAIN[:5]):
            loader = loader_of(dataset, student, indices, shards=devices)
            for number in range(2):
                batch = FIT.shard_batch(loader.batch(number), devices)
                sizes.add(int(np.sum(batch.energy_mask)))
                if devices > 1:
                    assert len(batch.energy.devices()) == devices
                state, own = step(state, batch, controls_at(config, number))
                metrics.append(own)
        assert step._cache_size() == 1
        assert sizes == {1, 3, 4}
        results.append((state.params, state.ema_params, metrics))
    assert_close(*results, rtol=2e-4, atol=1e-6)


def compare_runs(folder: Path) -> None:
    """A run on two devices that is stopped, resumed and taken back, and one on one device."""
    dataset = morse_dataset(count=10, per_trajectory=3)
    student = make_student(dataset)
    alone = run(student, dataset, folder / "one")
    arguments = (student, dataset, TRAIN, VALIDATION, replace(QUICK, devices=2))
    with pytest.raises(_Stop):
        fit(*arguments, folder / "two", progress=False, on_validation=stop_at(4))
    two = fit(*arguments, folder / "two", progress=False)
    assert two.best_step == alone.best_step
    assert_close(alone.student.variables, two.student.variables, rtol=1e-3, atol=1e-5)
    poison(GraphLoader, 6, once=True)
    back = fit(*arguments, folder / "back", progress=False)
    assert back.rollbacks == (6,) and back.steps == 8


def on_two_devices(*arguments: str) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, env=environment, timeout=600, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_steps_on_two_devices_are_those_on_one():
    on_two_devices()


@pytest.mark.slow
def test_a_run_on_two_devices_is_resumed_and_taken_back(tmp_path):
    on_two_devices(str(tmp_path))


def test_more_devices_than_there_are_is_an_error(dataset, student, tmp_path):
    there = len(jax.local_devices())
    wanted = there + 1
    with pytest.raises(ConfigError, match=rf"devices is {wanted}, but there are {there} local"):
        run(student, dataset, tmp_path, devices=wanted, batch_size=wanted)
    with pytest.raises(ConfigError, match="batch_size 5 cannot be divided over 2 devices"):
        replace(QUICK, batch_size=5, devices=2)


# Batches


def test_the_iterator_gives_the_batches_and_keeps_its_place(dataset, student):
    loader = loader_of(dataset, student)
    expected = [loader.batch(step) for step in range(7)]
    for first in (0, 3, 7):
        given = list(loader.iterator(first, 7))
        assert len(given) == 7 - first
        assert_equal(given, expected[first:])
    iterator = loader.iterator(1, 7)
    next(iterator), next(iterator)
    state = iterator.get_state()
    rest = list(iterator)
    assert_equal(rest, expected[3:])
    iterator.set_state(state)
    assert_equal(list(iterator), rest)
    other = loader.iterator(0, 7)
    other.set_state(state)
    assert_equal(next(other), expected[3])


# Divergence


def poison(target: Any, step: int, once: bool, setattr_: Any = setattr) -> list[int]:
    """Make the energies of one step's batch NaN; the list holds the steps where that was done."""
    original, seen = target.batch, []

    def batch(self: GraphLoader, number: int) -> Any:
        made = original(self, number)
        if number != step or (once and seen):
            return made
        seen.append(number)
        return replace(made, energy=made.energy * np.nan)

    setattr_(target, "batch", batch)
    return seen


def test_each_shape_is_compiled_once_whatever_happens(student, tmp_path, monkeypatch):
    """Rates and factors change at each step, and the run goes back to a checkpoint once."""
    mixed = morse_dataset(("H2", "H2O2"), 20, 3)
    train, validation = np.arange(12), np.arange(12, 18)
    made, make = [], FIT.make_train_step

    def kept(*arguments: Any) -> Any:
        made.append(make(*arguments))
        return made[-1]

    monkeypatch.setattr(FIT, "make_train_step", kept)
    poison(GraphLoader, 9, True, monkeypatch.setattr)
    loss = LossConfig(schedule={"energy": [[0, 1], [1, 10]], "forces": [[0, 2], [1, 1]]})
    config = replace(QUICK, max_steps=12, average_last=0.5, loss=loss)
    result = fit(student, mixed, train, validation, config, tmp_path, progress=False)
    assert result.rollbacks == (9,) and result.steps == 12
    shapes = GraphLoader(mixed, train, student.cutoff, student.elements, 4).plan.buckets
    assert len(shapes) == 2
    (step,) = made
    assert step._cache_size() == len(shapes)


@pytest.mark.usefixtures("shared_steps")
def test_a_nan_that_comes_once_is_survived(dataset, student, tmp_path, monkeypatch):
    poison(GraphLoader, 6, True, monkeypatch.setattr)
    result = run(student, dataset, tmp_path)
    assert result.rollbacks == (6,)
    assert result.steps == 8
    assert np.isfinite(result.best_loss)
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [row["step"] for row in rows] == [4, 8]
    expected = [learning_rate(QUICK, 4), ROLLBACK_FACTOR * learning_rate(QUICK, 8)]
    assert [row["learning_rate"] for row in rows] == pytest.approx(expected)
    (note,) = (tmp_path / "notes.txt").read_text().splitlines()
    members = [int(i) for i in loader_of(dataset, student).batch(6).indices if i >= 0]
    assert "NaN" in note and f"at step 6, batch of structures {members}" in note
    assert "back to step 4 at 0.3 times the rate" in note


@pytest.mark.usefixtures("shared_steps")
def test_a_nan_before_any_checkpoint_returns_to_the_start(dataset, student, tmp_path, monkeypatch):
    poison(GraphLoader, 1, True, monkeypatch.setattr)
    result = run(student, dataset, tmp_path, max_steps=4)
    assert result.rollbacks == (1,) and result.steps == 4
    assert "back to step 0" in (tmp_path / "notes.txt").read_text()


@pytest.mark.usefixtures("shared_steps")
def test_a_nan_that_stays_names_the_structures(dataset, student, tmp_path, monkeypatch):
    members = [int(i) for i in loader_of(dataset, student).batch(6).indices if i >= 0]
    trajectories = ", ".join(sorted({f"t{i // 3}" for i in members}))
    poison(GraphLoader, 6, False, monkeypatch.setattr)
    with pytest.raises(TrainingError, match="at step 6") as error:
        run(student, dataset, tmp_path, max_rollbacks=2)
    assert f"structures {members} (trajectories {trajectories})" in str(error.value)
    assert "after 2 returns" in str(error.value)
    notes = (tmp_path / "notes.txt").read_text().splitlines()
    assert len(notes) == 2 and "0.09 times" in notes[1]
    assert Checkpoints(tmp_path).latest == 4


@pytest.mark.usefixtures("shared_steps")
def test_an_exploding_validation_takes_the_run_back(dataset, student, tmp_path, monkeypatch):
    """One giant step, at the first try only: the loss stays finite, but is no longer any good."""
    plain = FIT.controls_at

    def controls(config: TrainingConfig, step: int, rate: float, hessian: float) -> Any:
        made = plain(config, step, rate, hessian)
        giant = step == 7 and rate == 1.0
        return replace(made, learning_rate=np.float32(100.0)) if giant else made

    monkeypatch.setattr(FIT, "controls_at", controls)
    result = run(student, dataset, tmp_path)
    assert result.rollbacks == (7,), "the step after which the validation failed"
    assert result.steps == 8
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.csv")] == [4, 8]
    note = (tmp_path / "notes.txt").read_text()
    assert "validation loss exploded at step 7" in note and "back to step 4" in note


# Identity and reports


@pytest.mark.usefixtures("shared_steps")
def test_a_dataset_that_grew_is_refused(dataset, student, tmp_path):
    run(student, dataset, tmp_path)
    before = (tmp_path / "metrics.csv").read_text()
    grown = concatenate([dataset, morse_dataset(count=3, per_trajectory=3)])
    longer = np.append(TRAIN, [10, 11, 12])
    with pytest.raises(TrainingError, match="was made with other data: use another folder"):
        run(student, grown, tmp_path)
    with pytest.raises(TrainingError, match="was made with other data, split: use another folder"):
        fit(student, grown, longer, VALIDATION, QUICK, tmp_path, progress=False)
    assert (tmp_path / "metrics.csv").read_text() == before


def fake_wandb() -> SimpleNamespace:
    rows: list[Any] = []
    started: list[Any] = []

    def init(**options: Any) -> SimpleNamespace:
        started.append(options)
        return SimpleNamespace(
            log=lambda row, step: rows.append((step, row)), finish=lambda: rows.append("finished")
        )

    return SimpleNamespace(init=init, rows=rows, started=started)


@pytest.mark.usefixtures("shared_steps")
def test_weights_and_biases_receive_the_rows(dataset, student, tmp_path, monkeypatch):
    module = fake_wandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    run(student, dataset, tmp_path, wandb_project="potentials")
    rows = read_metrics(tmp_path / "metrics.csv")
    assert module.rows[-1] == "finished"
    assert [step for step, _ in module.rows[:-1]] == [4, 8]
    for (step, logged), row in zip(module.rows, rows, strict=False):
        assert {"step": step, **logged} == pytest.approx(row)
    (options,) = module.started
    assert options["project"] == "potentials" and options["resume"] == "allow"
    assert options["config"]["learning_rate"] == QUICK.learning_rate
    run(student, dataset, tmp_path, wandb_project="potentials")  # done, but opened again
    assert module.started[1]["id"] == options["id"]


@pytest.mark.usefixtures("shared_steps")
def test_weights_and_biases_that_are_missing(dataset, student, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingDependencyError, match=r"pip install .*wandb"):
        run(student, dataset, tmp_path, wandb_project="potentials")


if __name__ == "__main__":
    jax.config.update("jax_disable_most_optimizations", True)
    compare_runs(Path(sys.argv[1])) if sys.argv[1:] else compare_steps()
