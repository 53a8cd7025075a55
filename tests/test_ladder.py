"""Replicas with their own temperatures in one program, and the choice of temperatures."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.constants

from distill.simulation import (
    BAROSTATS,
    ENSEMBLES,
    MDConfig,
    bath_of,
    blocks,
    expected_acceptance,
    make_block,
    propose_ladder,
    run_md,
)

pytestmark = pytest.mark.usefixtures("x64")

KB = scipy.constants.k / scipy.constants.e  # eV/K
CORNERS = 3.6 * np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0.0]])


def tetrahedron(positions):
    """Four atoms, every pair on a spring with a quartic part."""
    first, second = np.triu_indices(4, 1)
    stretch = jnp.sqrt(((positions[first] - positions[second]) ** 2).sum(-1)) - 3.6 * np.sqrt(2)
    return (0.2 * stretch**2 + 0.5 * stretch**4).sum()


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("ensemble", sorted(set(ENSEMBLES) - set(BAROSTATS)))
def test_a_replica_is_a_single_run_at_its_temperature(ensemble, toy_potential):
    potential = toy_potential(tetrahedron, np.full(4, 18), np.float64)
    temperatures = (150.0, 300.0, 600.0)
    config = MDConfig(ensemble, 2.0, steps=200, record_every=20, temperatures=temperatures)
    keys = jax.random.split(jax.random.PRNGKey(5), 3)
    lists = jnp.zeros(3)
    start, block = make_block(potential, config, replicas=True)
    state = start(keys, jnp.tile(CORNERS, (3, 1, 1)), lists)
    _, _, together, _ = block(state, lists, 10)
    kinetic = []
    start_one, block_one = make_block(potential, replace(config, temperatures=()))
    for i, temperature in enumerate(temperatures):
        bath = bath_of(replace(config, temperatures=(), temperature=temperature), None)
        single = start_one(keys[i], jnp.asarray(CORNERS), jnp.zeros(()), None, bath)
        kinetic.append(float(0.5 * (single.momentum**2 / single.mass).sum()))
        _, _, records, _ = block_one(single, jnp.zeros(()), 10)
        for own, of_many in zip(records[:5], together[:5], strict=True):
            np.testing.assert_allclose(of_many[:, i], own, rtol=1e-9, atol=1e-9)
    assert kinetic[0] < kinetic[1] < kinetic[2]


@pytest.mark.usefixtures("quick_compilation")
def test_one_program_serves_all_temperatures(toy_potential):
    potential = toy_potential(tetrahedron, np.full(4, 18), np.float64)
    ladders = ((100.0, 200.0, 300.0), (300.0, 310.0, 320.0))
    config = MDConfig(
        "nvt_nose_hoover", steps=100, temperatures=ladders[0], exchange_every=50, block_steps=50
    )
    start, block = make_block(potential, config, replicas=True)
    keys, lists = jax.random.split(jax.random.PRNGKey(0), 3), jnp.zeros(3)
    for ladder in ladders:
        bath = bath_of(replace(config, temperatures=ladder), 3)
        state = start(keys, jnp.tile(CORNERS, (3, 1, 1)), lists, None, bath)
        for _ in range(3):
            state, lists, _, _ = block(state, lists, 5)
        order = state.exchange.walker
        own = state.walkers.thermal_energy[order]
        np.testing.assert_allclose(own, KB * np.array(ladder), rtol=1e-6)
    assert block._cache_size() == start._cache_size() == 1


@pytest.mark.usefixtures("quick_compilation")
def test_one_after_the_other_is_side_by_side(toy_potential, monkeypatch):
    """Replicas of many atoms take turns within an exchange period; nothing else may change."""
    potential = toy_potential(tetrahedron, np.full(4, 18), np.float64)
    config = MDConfig(
        "nvt_langevin", steps=100, temperatures=(200.0, 300.0), exchange_every=20, block_steps=100
    )
    starts = np.tile(CORNERS, (2, 1, 1))
    together = run_md(potential, starts, config, progress=False)
    monkeypatch.setattr(blocks, "SEQUENTIAL_FROM", 1)
    in_turn = run_md(potential, starts, config, progress=False)
    assert int(together.state.exchange.accepted.sum()) > 0
    for one, other in zip(
        jax.tree.leaves(together.state), jax.tree.leaves(in_turn.state), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(together.frames.walker, in_turn.frames.walker)
    np.testing.assert_allclose(together.frames.positions, in_turn.frames.positions, atol=1e-9)


def test_a_proposed_ladder_is_accepted_as_often_as_wanted():
    rng = np.random.default_rng(0)
    heat_capacity, wanted = 30.0, 0.25
    energies = rng.gamma(heat_capacity, KB * 300.0, 20_000)
    ladder = propose_ladder(300.0, 900.0, energies, 300.0, wanted)
    ratios = np.array(ladder[1:]) / ladder[:-1]
    np.testing.assert_allclose(ratios, ratios[0])
    assert (ladder[0], ladder[-1]) == (300.0, pytest.approx(900.0))
    # The definition, by drawing: the mean of min(1, exp(...)) over both distributions.
    for ends, enough in ((ladder, True), (np.geomspace(300, 900, len(ladder) - 1), False)):
        cold, hot = (rng.gamma(heat_capacity, KB * t, 200_000) for t in ends[:2])
        exponent = (1 / (KB * ends[0]) - 1 / (KB * ends[1])) * (cold - hot)
        share = np.exp(np.minimum(exponent, 0)).mean()
        assert (share > wanted) == enough
        assert abs(share - expected_acceptance(*ends[:2], heat_capacity)) < 0.005


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lowest": 900.0}, "lowest and highest must be above zero and rising, got 900.0 and 900"),
        ({"acceptance": 1.0}, r"acceptance must lie between 0 and 1, got 1\.0"),
        ({"potential_energy": np.ones(5)}, "at least two different and finite energies"),
        ({"potential_energy": np.array([1.0])}, "at least two different and finite energies"),
        ({"temperature": 0.0}, "temperature must be larger than zero"),
        ({"potential_energy": np.array([-1e3, 1e3])}, "needs more than 1000 temperatures"),
    ],
)
def test_ladders_that_cannot_be_proposed(changes, message):
    arguments = {
        "lowest": 300.0,
        "highest": 900.0,
        "potential_energy": np.array([0.0, 0.1]),
        "temperature": 300.0,
    }
    with pytest.raises(ValueError, match=message):
        propose_ladder(**{**arguments, **changes})


EXCHANGE = {"ensemble": "nvt_csvr", "temperatures": (300.0, 350.0), "exchange_every": 100}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ensemble": "nve"}, "exchange_every needs an ensemble nvt_..., a bath and a fixed cell"),
        ({"ensemble": "npt_scr"}, "a bath and a fixed cell, not npt_scr"),
        ({"temperatures": ()}, r"needs temperatures, at least two, above zero and rising: \[\]"),
        ({"temperatures": (300.0, 300.0)}, r"above zero and rising: \[300.0, 300.0\]"),
        ({"temperatures": (300.0, -1.0)}, "temperatures must be at least 0 and finite"),
        ({"temperatures": (300.0, float("nan"))}, "temperatures must be at least 0 and finite"),
        ({"temperatures": (0.0, 300.0)}, "nvt_csvr needs a temperature above zero"),
        ({"exchange_every": 15}, r"\(15\) must be a multiple of record_every \(10\)"),
        ({"exchange_every": -10}, r"\(-10\) must be a multiple of record_every"),
        ({"exchange_every": 300}, r"block_steps \(500\) and steps \(1000\) must be multiples of"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        MDConfig(**{**EXCHANGE, **changes})


def test_as_many_replicas_as_temperatures(toy_potential):
    potential = toy_potential(tetrahedron, np.full(4, 18), np.float64)
    for shape in ((3, 4, 3), (4, 3)):
        n = 3 if len(shape) == 3 else 1
        with pytest.raises(ValueError, match=rf"temperatures has 2 values for {n} replicas"):
            run_md(potential, np.zeros(shape), MDConfig(**EXCHANGE))
