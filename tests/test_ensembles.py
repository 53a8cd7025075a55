"""Thermostats against theory: fluctuations, conserved quantities, momentum, velocities."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.constants
import scipy.stats
from ase.data import atomic_masses

from distill.simulation import ENSEMBLES, MDConfig, run_md
from distill.simulation.thermostats import csvr_factor

pytestmark = pytest.mark.usefixtures("x64")

KB = scipy.constants.k / scipy.constants.e  # eV/K
AMU = scipy.constants.atomic_mass / scipy.constants.e * 1e10  # eV fs²/Å² per amu
FIXED = [name for name in ENSEMBLES if not name.startswith("npt")]
NVT = [name for name in FIXED if name != "nve"]
NUMBERS = np.array([18, 10, 18, 10, 18, 10, 18, 10])
CORNERS = 3.6 * np.array(list(np.ndindex(2, 2, 2)), float)


def anharmonic_crystal(positions: jax.Array) -> jax.Array:
    """Eight atoms, every pair on a spring with a quartic part; chaotic, no field from outside."""
    first, second = np.triu_indices(8, 1)
    lengths = np.linalg.norm(CORNERS[first] - CORNERS[second], axis=1)
    stretch = jnp.sqrt(((positions[first] - positions[second]) ** 2).sum(-1)) - lengths
    return (0.2 * stretch**2 + 0.5 * stretch**4).sum()


def crystal(toy_potential, dtype=np.float64):
    return toy_potential(anharmonic_crystal, NUMBERS, dtype)


def momenta_of(frames) -> np.ndarray:
    return atomic_masses[NUMBERS][:, None] * AMU * frames.velocities


@pytest.mark.slow
@pytest.mark.parametrize("ensemble", NVT)
def test_kinetic_energy_is_canonical(ensemble, toy_potential):
    """Mean and variance of a gamma distribution with 21 degrees of freedom, and its shape."""
    temperature, replicas = 300.0, 40
    config = MDConfig(
        ensemble, 2.0, temperature, 0.02, 20_000, 250, 20_000, seed=3, thermostat_time=60.0
    )
    starts = np.tile(CORNERS, (replicas, 1, 1))
    frames = run_md(crystal(toy_potential), starts, config, progress=False).frames
    internal = 0.5 * 21 * KB * frames.temperature[20:]  # [T, R], motion about the centre of mass
    in_units = internal / (KB * temperature)
    # Each replica is an independent estimate, whatever the correlation in time.
    for values, expected in (
        (in_units.mean(0), 10.5),
        (((in_units - 10.5) ** 2).mean(0), 10.5),
    ):
        error = values.std(ddof=1) / np.sqrt(replicas)
        assert error < 0.1 * expected
        assert abs(values.mean() - expected) < 4 * error
    sample = in_units[::10].ravel()
    assert scipy.stats.kstest(sample, scipy.stats.gamma(10.5).cdf).pvalue > 1e-3
    # Equipartition: light and heavy atoms have the same share, less that of the centre of mass.
    mass = atomic_masses[NUMBERS] * AMU
    velocities = frames.velocities[20:]
    velocities = velocities - np.einsum("n,trna->tra", mass / mass.sum(), velocities)[:, :, None]
    share = (0.5 * mass[:, None] * velocities**2).sum(-1) / (KB * temperature)
    of_atoms = share.mean(0)  # [R, n]
    error = of_atoms.std(0, ddof=1) / np.sqrt(replicas)
    assert (np.abs(of_atoms.mean(0) - 1.5 * (1 - mass / mass.sum())) < 4.5 * error).all()


def test_energy_of_a_harmonic_crystal_fluctuates_as_theory_says(toy_potential):
    """21 vibrations: potential energy of a gamma distribution of 21 / 2, total energy of 21."""
    temperature, replicas = 250.0, 600

    def harmonic(positions: jax.Array) -> jax.Array:
        moved = positions - CORNERS
        relative = moved - moved.mean(0)
        return 0.5 * (relative**2 * jnp.asarray([1.0, 2.0, 4.0])).sum()

    potential = toy_potential(harmonic, NUMBERS, np.float64)
    config = MDConfig("nvt_langevin", 4.0, temperature, 0.02, 400, 400, 400, seed=5)
    starts = np.tile(CORNERS, (replicas, 1, 1))
    frames = run_md(potential, starts, config, progress=False).frames
    vibration = frames.potential_energy[-1] / (KB * temperature)
    internal = vibration + 0.5 * 21 * frames.temperature[-1] / temperature
    for values, shape in ((vibration, 10.5), (internal, 21.0)):
        assert abs(values.mean() / shape - 1) < 4 / np.sqrt(shape * replicas)
        # The variance of a sample has a relative deviation of sqrt((2 + 6 / shape) / replicas).
        assert abs(values.var(ddof=1) / shape - 1) < 4 * np.sqrt((2 + 6 / shape) / replicas)
        assert scipy.stats.kstest(values, scipy.stats.gamma(shape).cdf).pvalue > 1e-3


@pytest.mark.parametrize("ensemble", FIXED)
def test_the_conserved_quantity_improves_with_the_square_of_the_timestep(ensemble, toy_potential):
    spreads, starts = [], np.tile(CORNERS, (16, 1, 1))
    for timestep in (4.0, 2.0):
        steps = round(2000 / timestep)
        config = MDConfig(ensemble, timestep, 300.0, 0.01, steps, 4, steps, thermostat_time=100.0)
        run = run_md(crystal(toy_potential), starts, config, progress=False)
        spreads.append(run.frames.conserved_energy.std(0).mean())
    energy = run.frames.total_energy
    if ensemble != "nve":
        assert energy.std(0).min() > 0.05  # the bath did something
    assert spreads[1] < 0.01 * run.frames.kinetic_energy.std()
    # Different noise at different timesteps: not the same trajectories, so only about 4.
    assert 3 < spreads[0] / spreads[1] < 6


@pytest.mark.parametrize("ensemble", ["nvt_nose_hoover", "nvt_csvr"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_global_thermostats_hold_the_centre_of_mass(ensemble, dtype, toy_potential):
    velocities = np.full((8, 3), 0.01)  # only drift, and a little motion
    velocities[0] += 0.003
    config = MDConfig(ensemble, 2.0, 300.0, steps=2000, record_every=100, block_steps=1000)
    frames = run_md(
        crystal(toy_potential, dtype), CORNERS, config, velocities=velocities, progress=False
    ).frames
    momenta = momenta_of(frames)
    rounding = 20 * np.finfo(dtype).eps
    assert np.abs(momenta.sum(1)).max() < rounding * np.abs(momenta).max()
    assert frames.temperature[-5:].mean() > 50


def test_factor_of_velocity_rescaling_relaxes_to_the_canonical_distribution():
    """Kinetic energies far from equilibrium: mean after one long and after many short steps."""
    freedom, thermal = 4, 0.03  # a small number, where the sign and the square of noise matter
    keys = jax.random.split(jax.random.PRNGKey(1), (40, 20_000))

    def draw(own, kinetic, ratio):
        return jax.vmap(lambda k, e: csvr_factor(k, e, thermal, ratio, freedom))(own, kinetic)

    factor = jax.jit(draw)
    kinetic = jnp.full(20_000, 0.3)
    once = kinetic * factor(keys[0], kinetic, 0.7) ** 2
    # d<K>/dt = (<K>_T - K) / tau, exactly.
    expected = 0.06 + (0.3 - 0.06) * np.exp(-0.7)
    assert abs(once.mean() - expected) < 4 * once.std() / np.sqrt(20_000)
    for own in keys:
        kinetic = kinetic * factor(own, kinetic, 0.2) ** 2
    distribution = scipy.stats.gamma(freedom / 2, scale=thermal)
    assert scipy.stats.kstest(np.asarray(kinetic), distribution.cdf).pvalue > 1e-3


def test_initial_velocities_of_a_molecule_of_two_unlike_atoms(toy_potential):
    """Both atoms have the temperature of their relative motion, the light one not more."""
    temperature, replicas = 300.0, 4000
    potential = toy_potential(lambda positions: 0.0 * positions.sum(), np.array([1, 17]))
    config = MDConfig("nve", 1e-3, temperature, steps=1, record_every=1, block_steps=1)
    starts = np.tile([[0, 0, 0], [1.3, 0, 0]], (replicas, 1, 1))
    frames = run_md(potential, starts, config, progress=False).frames
    deviation = temperature * np.sqrt(2 / (3 * replicas))
    assert abs(frames.temperature[0].mean() - temperature) < 4 * deviation
