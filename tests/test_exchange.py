"""Replica exchange: temperatures keep their canonical distributions, and barriers are crossed."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.constants
import scipy.stats

from distill.simulation import (
    MDConfig,
    exchange_summary,
    expected_acceptance,
    run_md,
)
from distill.simulation.exchange import (
    ExchangeState,
    attempt,
    exchanged,
    first_exchange,
)
from distill.simulation.thermostats import ThermostatState

pytestmark = pytest.mark.usefixtures("x64")

KB = scipy.constants.k / scipy.constants.e  # eV/K
AMU = scipy.constants.atomic_mass / scipy.constants.e * 1e10  # eV fs²/Å² per amu
THERMOSTATS = ["nvt_langevin", "nvt_csvr", "nvt_nose_hoover"]

BARRIER, WIDTH, TILT, SPRING = 0.3, 0.5, 0.02, 4.0  # eV, Å, eV/Å, eV/Å²
LADDER = (300.0, 450.0, 675.0, 1000.0, 1500.0)


def double_well(positions):
    x, y, z = positions.T
    wells = BARRIER * ((x / WIDTH) ** 2 - 1) ** 2 + TILT * x
    return (wells + 0.5 * SPRING * (y**2 + z**2)).sum()


def on_the_right(temperature: float) -> float:
    """Exact probability of x > 0."""
    x = np.linspace(-1.5, 1.5, 20_001)
    energies = BARRIER * ((x / WIDTH) ** 2 - 1) ** 2 + TILT * x
    weight = np.exp(-(energies - energies.min()) / (KB * temperature))
    return weight[x > 0].sum() / weight.sum()


def test_two_wells_are_populated_as_boltzmann_says(toy_potential):
    """A barrier of 12 kT at 300 K, which plain dynamics does not cross in the same time."""
    potential = toy_potential(double_well, [2], np.float64)
    config = MDConfig(
        "nvt_langevin", 2.0, 300.0, 0.05, 200_000, 20, 100_000, temperatures=LADDER, seed=1
    )
    start = np.tile([[[-WIDTH, 0.0, 0.0]]], (len(LADDER), 1, 1))
    plain = run_md(potential, start[:1], replace(config, temperatures=()), progress=False)
    assert (plain.frames.positions[:, 0, 0, 0] < 0).all()
    run = run_md(potential, start, replace(config, exchange_every=20), progress=False)
    x, y, z = np.moveaxis(run.frames.positions[100:, :, 0], -1, 0)
    for rung, temperature in enumerate(LADDER):
        thermal = KB * temperature
        for values, expected, accuracy in (
            ((x > 0)[:, rung], on_the_right(temperature), 0.15),
            (y[:, rung] ** 2, thermal / SPRING, 0.1),
            (z[:, rung] ** 2, thermal / SPRING, 0.1),
        ):
            blocks = values[: len(values) // 30 * 30].reshape(30, -1).mean(1)
            error = blocks.std(ddof=1) / np.sqrt(30)
            assert error < accuracy * expected
            assert abs(blocks.mean() - expected) < 4 * error
    summary = exchange_summary(run.state, 400.0)
    assert summary["rounds"] == 10_000 and min(summary["round_trips"]) > 20
    pairs = summary["pairs"]
    np.testing.assert_allclose([p["temperatures_K"] for p in pairs], np.c_[LADDER[:-1], LADDER[1:]])
    assert [pair["attempts"] for pair in pairs] == [5000] * 4


def harmonic_state(key, temperatures, n_atoms: int, spring: float):
    """Walkers drawn from the canonical distribution of independent oscillators."""
    thermal = KB * jnp.asarray(temperatures)
    position_key, momentum_key = jax.random.split(key)
    shape = (len(thermal), n_atoms, 3)
    width = jnp.sqrt(thermal)[:, None, None]
    mass = jnp.full((len(thermal), n_atoms, 1), 40 * AMU)
    position = width / np.sqrt(spring) * jax.random.normal(position_key, shape)
    momentum = width * jnp.sqrt(mass) * jax.random.normal(momentum_key, shape)
    none = jnp.zeros(len(thermal))
    return ThermostatState(position, momentum, -spring * position, mass, none, thermal, none, none)


def test_an_exchange_leaves_the_canonical_distributions_as_they_are():
    """Exact samples go in; potential and kinetic energies must come out distributed alike."""
    temperatures, n_atoms, n_ladders = (300.0, 360.0, 450.0, 500.0), 4, 20_000
    ladder = first_exchange(jax.random.PRNGKey(0), 4)

    def once(key, parity):
        sample, own = jax.random.split(key)
        walkers = harmonic_state(sample, temperatures, n_atoms, 2.0)
        energy = (walkers.position**2).sum((1, 2))
        before = ExchangeState(walkers, replace(ladder, rng=own, rounds=parity))
        after = exchanged(before, energy)
        kinetic = (after.walkers.momentum**2 / after.walkers.mass).sum((1, 2)) / 2
        order = after.exchange.walker
        total = energy + kinetic
        first = energy + (walkers.momentum**2 / walkers.mass).sum((1, 2)) / 2
        booked = total[order] - after.walkers.heat[order] - first
        bath = after.walkers.thermal_energy[order]
        return energy[order], kinetic[order], after.exchange.accepted, booked, bath

    keys = jax.random.split(jax.random.PRNGKey(1), n_ladders)
    parity = jnp.arange(n_ladders, dtype=jnp.int32) % 2
    energy, kinetic, accepted, booked, bath = jax.jit(jax.vmap(once))(keys, parity)
    np.testing.assert_allclose(bath, np.tile(KB * np.array(temperatures), (n_ladders, 1)))
    np.testing.assert_allclose(booked, 0, atol=1e-12)
    for rung, temperature in enumerate(temperatures):
        exact = scipy.stats.gamma(1.5 * n_atoms, scale=KB * temperature)
        for values in (energy, kinetic):
            assert scipy.stats.kstest(np.asarray(values[:, rung]), exact.cdf).pvalue > 1e-3
    for pair in range(3):
        share = accepted[pair % 2 :: 2, pair].mean()
        expected = expected_acceptance(*temperatures[pair : pair + 2], 1.5 * n_atoms)
        assert 0.2 < expected < 0.9
        assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / (n_ladders / 2))
        assert not accepted[1 - pair % 2 :: 2, pair].any()


def test_detailed_balance_of_an_exchange():
    """There and back of two given energies: rates in the ratio of their probabilities."""
    thermal = KB * jnp.array([300.0, 400.0])
    keys = jax.random.split(jax.random.PRNGKey(2), 100_000)

    def share(energies):
        energies = jnp.array(energies)
        ladder = first_exchange(keys[0], 2)
        rung = jax.vmap(lambda key: attempt(replace(ladder, rng=key), energies, thermal).rung)(keys)
        return (np.asarray(rung)[:, 0] == 1).mean()

    there, back = share([0.1, 0.2]), share([0.2, 0.1])
    ratio = np.exp((1 / thermal[0] - 1 / thermal[1]) * (0.1 - 0.2))
    assert back == 1
    assert abs(there - ratio) < 4 * np.sqrt(ratio * (1 - ratio) / len(keys))


@pytest.mark.parametrize("n_replicas", [2, 5])
def test_round_trips_are_from_the_lowest_to_the_highest_and_back(n_replicas):
    """Equal energies: every attempt succeeds, and the walkers go round in turn."""
    ladder = first_exchange(jax.random.PRNGKey(0), n_replicas)
    expected_heading, expected_trips = {0: "up"}, np.zeros(n_replicas, int)
    step = jax.jit(attempt)
    for round_number in range(31):
        before = np.asarray(ladder.walker)
        thermal = KB * (300.0 + ladder.rung)
        ladder = step(ladder, jnp.zeros(n_replicas), thermal)
        after = before.copy()
        for low in range(round_number % 2, n_replicas - 1, 2):
            after[[low, low + 1]] = after[[low + 1, low]]
        np.testing.assert_array_equal(ladder.walker, after)
        lowest, highest = after[0], after[-1]
        if expected_heading.get(highest) == "up":
            expected_heading[highest] = "down"
        expected_trips[lowest] += expected_heading.get(lowest) == "down"
        expected_heading[lowest] = "up"
    np.testing.assert_array_equal(ladder.round_trips, expected_trips)
    assert expected_trips.sum() > 0
    np.testing.assert_array_equal(ladder.tried, ladder.accepted)


CRYSTAL = 3.6 * np.array(list(np.ndindex(2, 2, 2)), float)


def anharmonic_crystal(positions):
    first, second = np.triu_indices(8, 1)
    lengths = np.linalg.norm(CRYSTAL[first] - CRYSTAL[second], axis=1)
    stretch = jnp.sqrt(((positions[first] - positions[second]) ** 2).sum(-1)) - lengths
    return (0.2 * stretch**2 + 0.5 * stretch**4).sum()


@pytest.mark.parametrize("ensemble", THERMOSTATS)
def test_what_is_recorded_belongs_to_its_temperature(ensemble, toy_potential):
    """Baths, continuous walkers, a conserved energy that exchanges do not disturb, acceptance."""
    temperatures = (200.0, 240.0, 290.0, 350.0)
    potential = toy_potential(anharmonic_crystal, np.full(8, 18), np.float64)
    config = MDConfig(
        ensemble,
        4.0,
        steps=20_000,
        record_every=10,
        block_steps=10_000,
        friction=0.02,
        thermostat_time=100.0,
        temperatures=temperatures,
        exchange_every=50,
    )
    starts = np.tile(CRYSTAL, (4, 1, 1))
    run = run_md(potential, starts, config, progress=False)
    frames = run.frames
    assert frames.walker.shape == frames.temperature.shape == (2000, 4)
    assert (np.sort(frames.walker) == np.arange(4)).all() and (frames.walker[:5] == range(4)).all()
    for rung, temperature in enumerate(temperatures):
        own = frames.temperature[100:, rung].reshape(19, 100).mean(1)
        error = own.std(ddof=1) / np.sqrt(19)
        assert error < 0.05 * temperature and abs(own.mean() - temperature) < 4 * error
    jumps = np.abs(np.diff(frames.conserved_energy, axis=0))
    energy_jumps = np.abs(np.diff(frames.total_energy, axis=0))
    assert energy_jumps.max() > 0.3 and jumps.max() < 0.03 * energy_jumps.max()
    assert frames.conserved_energy.std(0).max() < 0.05 * frames.total_energy.std(0).min()
    followed = np.take_along_axis(
        frames.positions, np.argsort(frames.walker)[..., None, None], axis=1
    )
    internal = followed - followed.mean(-2, keepdims=True)
    assert np.abs(np.diff(internal, axis=0)).max() < 0.6
    for pair in exchange_summary(run.state, 80.0)["pairs"]:
        expected = expected_acceptance(*pair["temperatures_K"], 10.5)
        assert abs(pair["acceptance"] - expected) < 0.15
