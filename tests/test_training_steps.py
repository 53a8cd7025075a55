"""The parts of a training step, and a run that is killed: averages, clipping, compilations."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import morse_dataset

from distill.data import Dataset, GraphLoader, load, save
from distill.errors import TrainingError
from distill.students import Student, StudentSpec, initialise_student
from distill.training import TrainingConfig, fit, read_metrics
from distill.training.checkpoints import Checkpoints
from distill.training.schedules import controls_at
from distill.training.step import initial_state, make_optimizer, make_train_step

ROOT = Path(__file__).resolve().parent.parent
TRAIN, VALIDATION = np.arange(12), np.arange(12, 18)
QUICK = TrainingConfig(
    max_steps=40, batch_size=4, validation_every=20, warmup_steps=5, learning_rate=1e-2
)
pytestmark = pytest.mark.usefixtures("quick_compilation")


def make_student(dataset: Dataset) -> Student:
    options = {"n_channels": 2, "n_radial": 4, "max_l": 1, "n_triples": 0, "hidden": (4,)}
    return initialise_student(StudentSpec("moment", dataset.elements, 3.0, options), dataset, TRAIN)


def steps_of(student: Student, config: TrainingConfig, batches: list[Any]) -> tuple[Any, list[Any]]:
    """The step function, and the states after each batch."""
    optimizer = make_optimizer(config)
    step = make_train_step(student.module, student.variables["statistics"], optimizer, config)
    states = [initial_state(student.variables["params"], optimizer)]
    for number, batch in enumerate(batches):
        states.append(step(states[-1], batch, controls_at(config, number))[0])
    return step, states


def assert_close(first: Any, second: Any, rtol: float = 1e-5) -> None:
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7)


def loader_of(dataset: Dataset, student: Student, batch_size: int = 4) -> GraphLoader:
    return GraphLoader(
        dataset,
        TRAIN,
        student.cutoff,
        student.elements,
        batch_size,
        atomic_energies=student.reference_energies,
    )


def test_the_average_is_exponential_and_short_at_first():
    dataset = morse_dataset()
    student = make_student(dataset)
    loader = loader_of(dataset, student)
    config = replace(QUICK, ema_decay=0.3)
    _, states = steps_of(student, config, [loader.batch(i) for i in range(6)])
    average = states[0].params
    for number, state in enumerate(states[1:]):
        decay = min(0.3, (1 + number) / (10 + number))
        average = jax.tree.map(
            lambda old, new, d=decay: d * np.asarray(old) + (1 - d) * np.asarray(new),
            average,
            state.params,
        )
        assert_close(state.ema_params, average)


def test_a_batch_that_is_not_finite_changes_nothing():
    dataset = morse_dataset()
    student = make_student(dataset)
    good = loader_of(dataset, student).batch(0)
    bad = replace(good, forces=np.full_like(good.forces, np.inf))
    _, states = steps_of(student, QUICK, [good, bad, good])
    assert [int(state.bad_step) for state in states] == [-1, -1, 1, 1]
    for state in states[2:]:
        assert int(state.step) == 1
        for name in ("params", "ema_params", "opt_state"):
            assert_close(getattr(state, name), getattr(states[1], name), rtol=0)


def test_large_gradients_are_shortened_to_the_limit():
    direction = {"a": jnp.array([0.6, 0.0]), "b": jnp.array([[0.8]])}  # of norm 1

    def two_updates(clip: float, first: float) -> Any:
        """Adam forgets the scale of a first gradient; the second update still shows it."""
        optimizer = make_optimizer(replace(QUICK, gradient_clip=clip))
        state = optimizer.init(direction)
        for scale in (first, 0.5):
            gradient = jax.tree.map(lambda g, s=scale: s * g, direction)
            update, state = optimizer.update(gradient, state, direction)
        return update

    assert_close(two_updates(1.0, 1e4), two_updates(1.0, 1.0))
    assert_close(two_updates(1e9, 0.7), two_updates(1.0, 0.7))
    with pytest.raises(AssertionError):
        assert_close(two_updates(1e9, 1e4), two_updates(1.0, 1e4))


def test_one_compilation_for_each_bucket():
    dataset = morse_dataset(("H2O", "CH3OH", "C2H6"))
    student = make_student(dataset)
    loader = loader_of(dataset, student, batch_size=2)
    n_buckets = len(loader.plan.buckets)
    assert n_buckets > 1
    step, _ = steps_of(student, QUICK, [loader.batch(i) for i in range(3 * len(loader))])
    assert step._cache_size() == n_buckets


class _Stop(Exception):
    pass


def _stop(step: int, metrics: dict[str, float]) -> None:
    raise _Stop


def test_the_whole_state_is_resumed_bit_for_bit(tmp_path):
    """Not the best parameters only: those of now, their average and the optimiser's moments."""
    dataset = morse_dataset()
    student = make_student(dataset)
    arguments = (student, dataset, TRAIN, VALIDATION, QUICK)
    fit(*arguments, tmp_path / "whole", progress=False)
    with pytest.raises(_Stop):
        fit(*arguments, tmp_path / "parts", progress=False, on_validation=_stop)
    fit(*arguments, tmp_path / "parts", progress=False)
    state = initial_state(student.variables["params"], make_optimizer(QUICK))
    like = {"state": state, "best": {"params": state.params}}
    whole, parts = (Checkpoints(tmp_path / name).restore(like)[0] for name in ("whole", "parts"))
    assert int(whole["state"].step) == 40
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_array_equal(a, b)


def test_other_data_or_another_student_in_the_folder_are_refused(tmp_path):
    dataset = morse_dataset()
    student = make_student(dataset)
    short = replace(QUICK, max_steps=2, validation_every=2)
    fit(student, dataset, TRAIN, VALIDATION, short, tmp_path, progress=False)
    before = (tmp_path / "metrics.csv").read_text()
    shifted = replace(dataset, energy=dataset.energy + 1e-3)
    with pytest.raises(TrainingError, match=r"made with other data: use another folder"):
        fit(student, shifted, TRAIN, VALIDATION, short, tmp_path, progress=False)
    spec = replace(student.spec, options={**student.spec.options, "hidden": (5,)})
    other = initialise_student(spec, dataset, TRAIN)
    with pytest.raises(TrainingError, match=r"does not fit this model .*use another run folder"):
        fit(other, dataset, TRAIN, VALIDATION, short, tmp_path, progress=False)
    assert (tmp_path / "metrics.csv").read_text() == before


def run_in_subprocess(folder: str) -> None:
    """What the killed process does: this file is run as a script."""
    dataset = load(Path(folder) / "data.h5")
    config = replace(QUICK, max_steps=400, validation_every=10)
    arguments = (make_student(dataset), dataset, TRAIN, VALIDATION, config)
    fit(*arguments, Path(folder) / "killed", progress=False)


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path):
    save(morse_dataset(), tmp_path / "data.h5")
    command = [sys.executable, __file__, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    metrics = tmp_path / "killed" / "metrics.csv"
    process = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 300
    while len(read_metrics(metrics)) < 3 and time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    subprocess.run(command, env=environment, check=True, timeout=300)
    resumed = read_metrics(metrics)
    assert [row["step"] for row in resumed] == list(range(10, 401, 10))
    (tmp_path / "killed").rename(tmp_path / "first")
    subprocess.run(command, env=environment, check=True, timeout=300)
    whole = read_metrics(metrics)
    for first, second in zip(resumed, whole, strict=True):
        assert {**first, "seconds": 0} == {**second, "seconds": 0}


if __name__ == "__main__":
    run_in_subprocess(sys.argv[1])
