"""Checks of a run: the fault, the atoms and the time, and what then happens."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace

import ase.io
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from builders import frames_of, two_waters

from distill.errors import SimulationError
from distill.simulation import Frames, MDCheckpoints, MDConfig, SafetyConfig, Watch, run_md
from distill.simulation.drift import Drift

pytestmark = pytest.mark.usefixtures("quick_compilation")

IGNORED = dict.fromkeys(("contacts", "bonds", "temperature", "uncertainty", "drift"), "ignore")


def faulty_frames(kind: str) -> Frames:
    """Two replicas; the second shows the fault in its third frame."""
    positions = np.tile(two_waters().positions, (5, 2, 1, 1))
    temperature, uncertainty = np.full((5, 2), 310.0), np.full((5, 2, 6), 0.1)
    if kind == "contacts":
        positions[2, 1, 1] = positions[2, 1, 0] + [0.0, 0.3, 0.0]
    if kind == "bonds":
        positions[2, 1, 1] += [0.0, 1.0, 0.0]
    temperature[2, 1], uncertainty[2, 1, 4] = 1000.0, 1.9
    return frames_of(positions, temperature=temperature, uncertainty=uncertainty)


MESSAGES = {
    "contacts": r"atoms 0 and 1 were 0\.30 Å apart in replica 1 at 30 fs",
    "bonds": r"bonds of atoms \[0, 1\] had changed in replica 1 at 30 fs",
    "temperature": r"the temperature was 1000 K in replica 1 at 30 fs",
    "uncertainty": r"the expected force error was 1\.90 eV/Å, atoms \[4\] in replica 1 at 30 fs",
}


@pytest.mark.parametrize("kind", MESSAGES)
@pytest.mark.filterwarnings("error::UserWarning")
def test_each_fault_stops_warns_or_is_ignored(kind, tmp_path):
    atoms = two_waters()
    frames = faulty_frames(kind)
    saved = tmp_path / "stopped.extxyz"

    def watch(action):
        config = SafetyConfig(**{**IGNORED, kind: action}, geometry_every=1)
        return Watch(atoms, frames.positions[0], 300.0, config, save_to=saved)

    ignoring = watch("ignore")
    ignoring(frames)
    assert ignoring.findings == []
    warning = watch("warn")
    with pytest.warns(UserWarning, match=MESSAGES[kind]):
        warning(frames)
    warning(frames)  # says nothing more
    assert len(warning.findings) == 1
    assert not saved.exists()
    with pytest.raises(SimulationError, match=MESSAGES[kind] + r": the run was stopped.*stopped"):
        watch("stop")(frames)
    image = ase.io.read(saved)
    assert image.info["replica"] == 1 and image.info["time_fs"] == 30.0
    np.testing.assert_allclose(image.positions, frames.positions[2, 1], atol=1e-7)


def test_a_bond_must_stay_changed_for_its_time():
    """The same bond in two frames, a pause, and then in all: only what lasts counts."""
    atoms = two_waters()
    positions = np.tile(atoms.positions, (12, 2, 1, 1))
    away = [1, 2, 5, 6, 7, 8, 9, 10, 11]
    positions[away, 1, 1] += [0.0, 1.0, 0.0]
    frames = frames_of(positions)
    config = SafetyConfig(**{**IGNORED, "bonds": "warn"}, geometry_every=1, bond_time=30.0)
    expected = r"bonds of atoms \[0, 1\] had changed for 30 fs in replica 1 at 90 fs"

    def part(first, last):
        return Frames(**{name: value[first:last] for name, value in vars(frames).items()})

    whole = Watch(atoms, frames.positions[0], 300.0, config)
    with pytest.warns(UserWarning, match=expected):
        whole(frames)
    for cut in (2, 7, 8):  # a restart remembers since when
        before = Watch(atoms, frames.positions[0], 300.0, config)
        before(part(0, cut))
        assert before.findings == []
        after = Watch(atoms, frames.positions[0], 300.0, config)
        after.rewind(json.loads(json.dumps(before.mark())))
        with pytest.warns(UserWarning, match=expected):
            after(part(cut, 12))
        assert after.findings == whole.findings


def test_images_are_neighbours_too():
    atoms = Atoms("Ar", cell=[8, 8, 8], pbc=True) + Atoms("Ar", [[7.7, 0, 0]])
    frames = frames_of(np.tile(atoms.positions, (1, 1, 1)), cell=atoms.cell.array[None])
    watch = Watch(atoms, atoms.positions, 300.0, SafetyConfig())
    with pytest.raises(SimulationError, match=r"atoms 0 and 1 were 0\.30 Å apart at 10 fs"):
        watch(frames)


def test_drift_is_told_from_noise():
    """2 meV/atom/ps under noise of 5 meV/atom: the slope comes out, and noise alone is no drift."""
    rng = np.random.default_rng(0)
    drift = Drift(2, 10)
    for block in range(200):
        time = 50.0 * block + np.arange(50.0)
        noise = 0.005 * 10 * rng.standard_normal((50, 2))
        drift.add(time, noise + 10 * np.outer(2e-6 * time, [1, 0]) - 500.0)
    slope, error = drift.slopes()
    assert np.all(np.abs(slope - [2, 0]) < 4 * error) and np.all(error < 0.1)
    ((replica, message),) = drift.faults(1.0)
    assert replica == 0 and "drifts by" in message and "smaller timestep" in message
    again = Drift(2, 10)
    again.rewind(json.loads(json.dumps(drift.mark())))
    np.testing.assert_array_equal(again.slopes(), drift.slopes())


def test_energy_that_comes_from_nowhere_is_found(toy_potential):
    """Forces that turn a molecule on a spring: the thermostat hides it, the check does not."""

    def make(swirl):
        spring = toy_potential(
            lambda x: 5.0 * (((x[1] - x[0]) ** 2).sum() ** 0.5 - 1.0) ** 2, atoms.numbers
        )

        def energy_and_forces(x, lists):
            energy, forces = spring.energy_and_forces(x, lists)
            turning = swirl * jnp.cross(jnp.asarray([0.0, 0.0, 1.0], x.dtype), x[1] - x[0])
            return energy, forces + jnp.stack([-turning, turning])

        return replace(spring, energy_and_forces=energy_and_forces)

    atoms = Atoms("O2", [[0, 0, 0], [1.0, 0, 0]])
    config = MDConfig("nvt_csvr", 0.5, 300.0, steps=4000, block_steps=400)
    for swirl in (0.0, 0.1):
        watch = Watch(atoms, atoms.positions, 0.0, SafetyConfig(**{**IGNORED, "drift": "warn"}))
        expectation = pytest.warns(UserWarning, match="drifts by") if swirl else nullcontext()
        with expectation:
            run_md(make(swirl), atoms.positions, config, on_frames=watch, progress=False)
        assert len(watch.findings) == (1 if swirl else 0)


def test_a_stopped_run_can_go_on_with_other_limits(tmp_path, toy_potential):
    """The state before the fault is saved; the fault comes again unless the limit is changed."""
    atoms = Atoms("Ar2", [[0, 0, 0], [5.0, 0, 0]])
    potential = toy_potential(lambda x: 0.0 * x.sum(), atoms.numbers)
    config = MDConfig(timestep=1.0, steps=200, record_every=10, block_steps=50)
    velocities = np.array([[0.01, 0, 0], [-0.02, 0, 0]])  # 2 Å apart after 100 fs

    def run(limit):
        watch = Watch(
            atoms, atoms.positions, 0.0, SafetyConfig(min_distance=limit, geometry_every=1)
        )
        return run_md(
            potential,
            atoms.positions,
            config,
            velocities=velocities,
            on_frames=watch,
            checkpoints=MDCheckpoints(tmp_path, every=100),
            progress=False,
        )

    for _ in range(2):
        with pytest.raises(SimulationError, match=r"1\.\d\d Å apart at 110 fs: the run was stop"):
            run(2.0)
    frames = run(1e-3).frames
    assert frames.time[0] == 110.0 and frames.time[-1] == 200.0


def test_settings_are_checked():
    with pytest.raises(ValueError, match="min_distance must be larger than zero and finite"):
        SafetyConfig(min_distance=0.0)
    with pytest.raises(ValueError, match="bond_time must be zero or larger and finite"):
        SafetyConfig(bond_time=-1.0)
    assert replace(SafetyConfig(), bonds="stop").bonds == "stop"
