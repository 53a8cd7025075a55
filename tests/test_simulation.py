"""Molecular dynamics: conservation, order, reversibility, thermostat, units, agreement with ASE."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.constants
import scipy.stats
from ase import Atoms, units
from ase.calculators.lj import LennardJones
from ase.data import atomic_masses
from ase.md.verlet import VelocityVerlet
from builders import ethanol, small_student, triclinic_cell

from distill.calculators import StudentCalculator
from distill.errors import SimulationError
from distill.simulation import MDConfig, run_md

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")

KB = scipy.constants.k / scipy.constants.e  # eV/K
AMU = scipy.constants.atomic_mass / scipy.constants.e * 1e10  # eV fs²/Å² per amu

STUDENT = small_student(max_l=1, n_triples=0)
SIGMA, EPSILON = 3.4, 0.0104  # Lennard-Jones of argon, Å and eV


def pair_distances(positions):
    first, second = np.triu_indices(len(positions), 1)
    return jnp.sqrt(((positions[first] - positions[second]) ** 2).sum(-1))


def lennard_jones(positions):
    inverse = (SIGMA / pair_distances(positions)) ** 6
    return 4 * EPSILON * (inverse**2 - inverse).sum()


def argon_cluster(seed: int = 0) -> Atoms:
    """Tetrahedron and one more atom, near their minimum."""
    a = SIGMA * 2 ** (1 / 6)
    corners = a / np.sqrt(2) * np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0], [1, 1, -1.0]])
    return Atoms("Ar5", corners + 0.05 * np.random.default_rng(seed).standard_normal((5, 3)))


def thermal_velocities(numbers, temperature: float, seed: int = 0) -> np.ndarray:
    """Å/fs, without net momentum."""
    masses = atomic_masses[numbers][:, None] * AMU
    draw = np.random.default_rng(seed).standard_normal((len(numbers), 3))
    velocities = np.sqrt(KB * temperature / masses) * draw
    return velocities - (masses * velocities).sum(0) / masses.sum()


def energy_of(frames) -> np.ndarray:
    return frames.potential_energy + frames.kinetic_energy


def nve(potential, positions, velocities, timestep, duration, every=1, **options):
    steps = round(duration / timestep)
    config = MDConfig(timestep=timestep, steps=steps, record_every=every, block_steps=steps)
    return run_md(potential, positions, config, velocities=velocities, progress=False, **options)


# NVE


def test_energy_error_falls_with_the_square_of_the_timestep(toy_potential):
    atoms = argon_cluster()
    potential = toy_potential(lennard_jones, atoms.numbers, np.float64)
    velocities = thermal_velocities(atoms.numbers, 40.0)
    kinetic = 0.5 * (atomic_masses[18] * AMU * velocities**2).sum()
    exact = kinetic + float(lennard_jones(jnp.asarray(atoms.positions)))
    errors = []
    for timestep, every in ((4.0, 1), (2.0, 2)):
        run = nve(potential, atoms.positions, velocities, timestep, 2000.0, every)
        errors.append(np.sqrt(np.mean((energy_of(run.frames) - exact) ** 2)))
    assert errors[1] < 0.02 * kinetic
    # 4 in the limit; the next order, (ω dt)² relative, is about 1 % here.
    np.testing.assert_allclose(errors[0] / errors[1], 4, rtol=0.05)


def test_a_student_conserves_energy_and_momentum():
    atoms = ethanol()
    potential = STUDENT.potential(atoms, dtype=np.float64)
    velocities = thermal_velocities(atoms.numbers, 30.0)
    spreads = []
    for timestep, every in ((0.2, 1), (0.1, 2)):
        frames = nve(potential, atoms.positions, velocities, timestep, 30.0, every).frames
        spreads.append(energy_of(frames).std())
        masses = atomic_masses[atoms.numbers][:, None] * AMU
        momenta = masses * frames.velocities
        scale = np.abs(momenta).max()
        np.testing.assert_allclose(momenta.sum(-2), 0, atol=1e-12 * scale)
    assert frames.kinetic_energy.std() > 1e-3  # there was something to conserve
    assert spreads[1] < 1e-3 * frames.kinetic_energy.std()
    np.testing.assert_allclose(spreads[0] / spreads[1], 4, rtol=0.15)


def test_reversed_velocities_lead_back_to_the_start(toy_potential):
    atoms = argon_cluster()
    potential = toy_potential(lennard_jones, atoms.numbers, np.float64)
    velocities = thermal_velocities(atoms.numbers, 40.0)
    there = nve(potential, atoms.positions, velocities, 4.0, 2000.0, 100).frames
    assert np.abs(there.positions[-1] - atoms.positions).max() > 0.1
    back = nve(potential, there.positions[-1], -there.velocities[-1], 4.0, 2000.0, 100).frames
    np.testing.assert_allclose(back.positions[-1], atoms.positions, rtol=0, atol=1e-9)
    np.testing.assert_allclose(back.velocities[-1], -velocities, rtol=0, atol=1e-11)


@pytest.mark.parametrize("case", ["Lennard-Jones", "molecule", "triclinic"])
def test_same_steps_as_ase(case, toy_potential):
    """The independent reference, step by step, with the potential of ASE or of our student."""
    if case == "Lennard-Jones":
        atoms = argon_cluster()
        potential = toy_potential(lennard_jones, atoms.numbers, np.float64)
        atoms.calc = LennardJones(sigma=SIGMA, epsilon=EPSILON, rc=1e4)
        timestep, temperature = 4.0, 40.0
    else:
        atoms = ethanol() if case == "molecule" else triclinic_cell()
        potential = STUDENT.potential(atoms, dtype=np.float64)
        atoms.calc = StudentCalculator(STUDENT, dtype=np.float64)
        timestep, temperature = 0.5, 300.0
    velocities = thermal_velocities(atoms.numbers, temperature)
    frames = nve(potential, atoms.positions, velocities, timestep, 25 * timestep).frames
    atoms.set_velocities(velocities / units.fs)
    reference = 0.0 if case == "Lennard-Jones" else STUDENT.reference_energy(atoms.numbers)
    dynamics = VelocityVerlet(atoms, timestep * units.fs)
    moved = frames.positions[-1] - atoms.positions
    for step in range(25):
        dynamics.run(1)
        np.testing.assert_allclose(frames.positions[step], atoms.positions, rtol=0, atol=1e-9)
        np.testing.assert_allclose(
            frames.velocities[step], atoms.get_velocities() * units.fs, rtol=0, atol=1e-10
        )
        assert abs(frames.kinetic_energy[step] - atoms.get_kinetic_energy()) < 1e-8
        energy = atoms.get_potential_energy() - reference
        assert abs(frames.potential_energy[step] - energy) < 1e-8
    assert np.abs(moved).max() > 0.02


def test_period_of_a_diatomic_molecule(toy_potential):
    """fs and amu: HCl as two masses on a spring against 2π sqrt(μ / k)."""
    spring, length = 30.0, 1.27  # eV/Å², Å
    numbers = np.array([1, 17])

    def energy(positions):
        return 0.5 * spring * ((pair_distances(positions) - length) ** 2).sum()

    start = np.array([[0, 0, 0], [length + 0.01, 0, 0]])
    run = nve(
        toy_potential(energy, numbers, np.float64), start, np.zeros((2, 3)), 0.02, 100.0, every=5
    )
    stretch = run.frames.positions[:, 1, 0] - run.frames.positions[:, 0, 0] - length
    (falling,) = np.nonzero((stretch[:-1] > 0) & (stretch[1:] <= 0))
    share = stretch[falling] / (stretch[falling] - stretch[falling + 1])
    crossings = run.frames.time[falling] + share * (run.frames.time[1] - run.frames.time[0])
    period = np.diff(crossings).mean()
    reduced = AMU * atomic_masses[1] * atomic_masses[17] / (atomic_masses[1] + atomic_masses[17])
    expected = 2 * np.pi * np.sqrt(reduced / spring)
    assert len(crossings) > 5
    np.testing.assert_allclose(period, expected, rtol=1e-4)


# Replicas and frames


def test_replicas_are_single_runs_side_by_side(toy_potential):
    atoms = argon_cluster()
    potential = toy_potential(lennard_jones, atoms.numbers, np.float64)
    positions = np.stack([argon_cluster(seed).positions for seed in range(3)])
    velocities = np.stack([thermal_velocities(atoms.numbers, 40.0, seed) for seed in range(3)])
    together = nve(potential, positions, velocities, 4.0, 400.0, 10).frames
    assert together.positions.shape == together.velocities.shape == (10, 3, 5, 3)
    assert together.potential_energy.shape == together.temperature.shape == (10, 3)
    for i in range(3):
        alone = nve(potential, positions[i], velocities[i], 4.0, 400.0, 10).frames
        np.testing.assert_allclose(together.positions[:, i], alone.positions, rtol=0, atol=1e-10)
        np.testing.assert_allclose(together.temperature[:, i], alone.temperature, rtol=1e-9)


def test_frames_do_not_depend_on_the_blocks(toy_potential):
    atoms = argon_cluster()
    potential = toy_potential(lennard_jones, atoms.numbers, np.float64)
    config = MDConfig(timestep=4.0, temperature=40.0, steps=50, record_every=5, block_steps=50)
    seen = []
    one = run_md(potential, atoms.positions, config, progress=False).frames
    blocks = replace(config, block_steps=20)  # 20, 20 and 10
    many = run_md(potential, atoms.positions, blocks, on_frames=seen.append, progress=False).frames
    np.testing.assert_array_equal(one.time, 4.0 * 5 * np.arange(1, 11))
    assert [len(frames.time) for frames in seen] == [4, 4, 2]
    for name in ("time", "positions", "velocities", "potential_energy", "kinetic_energy"):
        np.testing.assert_allclose(getattr(one, name), getattr(many, name), rtol=0, atol=1e-12)
        np.testing.assert_array_equal(
            getattr(many, name), np.concatenate([getattr(frames, name) for frames in seen])
        )


# Thermostat


def test_langevin_samples_the_canonical_distribution(toy_potential):
    """Independent oscillators: both distributions are normal, with kT/m and kT/k."""
    n, spring, temperature = 100, 2.0, 250.0
    potential = toy_potential(
        lambda positions: 0.5 * spring * (positions**2).sum(), np.full(n, 18), np.float64
    )
    config = MDConfig("nvt_langevin", 2.0, temperature, 0.05, 12_000, 100, 6000, seed=4)
    frames = run_md(potential, np.zeros((n, 3)), config, progress=False).frames
    thermal = KB * temperature
    samples = {
        "velocity": frames.velocities[10:] * np.sqrt(atomic_masses[18] * AMU / thermal),
        "position": frames.positions[10:] * np.sqrt(spring / thermal),
    }
    for name, values in samples.items():
        # Frames are 200 fs apart, correlated by exp(-5) at most; coordinates are independent.
        of_coordinates = (values**2).mean(0).ravel()
        error = of_coordinates.std() / np.sqrt(of_coordinates.size)
        assert error < 0.02
        assert abs(of_coordinates.mean() - 1) < 4 * error, name
        assert scipy.stats.kstest(values[::2].ravel(), "norm").pvalue > 1e-3, name


def test_temperature_is_that_of_the_bath_also_for_few_atoms(toy_potential):
    """The bath moves the centre of mass too, which is no heat of a molecule of two atoms."""
    temperature, replicas = 300.0, 200
    potential = toy_potential(
        lambda positions: 5.0 * ((pair_distances(positions) - 1.2) ** 2).sum(),
        np.array([6, 8]),
        np.float64,
    )
    start = np.tile([[0, 0, 0], [1.2, 0, 0]], (replicas, 1, 1))
    config = MDConfig("nvt_langevin", 1.0, temperature, 0.05, 2000, 200, 2000)
    frames = run_md(potential, start, config, progress=False).frames
    means = frames.temperature[2:].mean(0)
    assert abs(means.mean() - temperature) < 4 * means.std() / np.sqrt(replicas)


def test_initial_velocities_have_the_temperature_and_no_net_momentum(toy_potential):
    numbers = np.array([1, 8] * 200)
    potential = toy_potential(lambda positions: 0.0 * positions.sum(), numbers, np.float64)
    config = MDConfig(temperature=400.0, steps=1, record_every=1, block_steps=1, seed=1)
    frames = run_md(potential, np.zeros((400, 3)), config, progress=False).frames
    # 1197 degrees of freedom: the temperature has a relative deviation of sqrt(2 / 1197) = 4 %.
    assert abs(frames.temperature[0] / 400.0 - 1) < 4 * np.sqrt(2 / 1197)
    masses = atomic_masses[numbers][:, None]
    momentum = (masses * frames.velocities[0]).sum(0)
    assert np.abs(momentum).max() < 1e-12 * np.abs(masses * frames.velocities[0]).sum()


# Bad input


def test_nan_is_reported_with_time_and_atoms(toy_potential):
    def energy(positions):  # NaN as soon as an atom is beyond 1 Å
        return 1e-3 * jnp.sqrt(1 - positions[:, 0]).sum()

    potential = toy_potential(energy, np.full(3, 18), np.float64)
    velocities = np.zeros((3, 3))
    velocities[1, 0] = 0.0195  # Å/fs: over the edge between 51 and 52 fs
    start = np.full((3, 3), -50.0)
    start[1] = 0
    with pytest.raises(SimulationError, match=r"atoms \[1\] became NaN.* before 60\.0 fs"):
        nve(potential, start, velocities, 1.0, 200.0, 10)
    with pytest.raises(SimulationError, match=r"atoms \[1\] of replicas \[1\] became NaN"):
        both = np.stack([0 * velocities, velocities])
        nve(potential, np.stack([start, start]), both, 1.0, 200.0, 10)


def test_starts_that_cannot_be_run(toy_potential):
    potential = toy_potential(lennard_jones, np.full(3, 18))
    with pytest.raises(ValueError, match=r"\[n, 3\] or \[R, n, 3\] with n = 3, got \(4, 3\)"):
        run_md(potential, np.zeros((4, 3)), MDConfig())
    with pytest.raises(SimulationError, match="initial positions are NaN or infinite"):
        run_md(potential, np.full((3, 3), np.nan), MDConfig())
    with pytest.raises(ValueError, match="real elements"):
        run_md(toy_potential(lennard_jones, [0, 18]), np.eye(3)[:2], MDConfig())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ensemble": "npt"}, "ensemble must be one of nve, nvt_langevin, .*: 'npt'"),
        ({"timestep": 0.0}, "timestep must be larger than zero, got 0.0"),
        ({"timestep": float("nan")}, "timestep must be larger than zero, got nan"),
        ({"steps": -10}, "steps must be larger than zero, got -10"),
        ({"record_every": 0}, "record_every must be larger than zero"),
        ({"block_steps": 0}, "block_steps must be larger than zero"),
        ({"temperature": -1.0}, "temperature and friction must not be negative"),
        ({"friction": -0.1}, "temperature and friction must not be negative"),
        ({"block_steps": 505}, r"block_steps \(505\) and steps \(1000\) must be multiples"),
        ({"steps": 1005}, "must be multiples of record_every"),
        ({"ensemble": "nvt_csvr", "temperature": 0.0}, "nvt_csvr needs a temperature above zero"),
        ({"ensemble": "nvt_nose_hoover", "thermostat_time": 4.0}, r"thermostat_time \(4.0 fs\)"),
        ({"chain_length": 1}, "chain_length must be at least 2, got 1"),
    ],
)
def test_bad_settings(values, message):
    with pytest.raises(ValueError, match=message):
        MDConfig(**values)
