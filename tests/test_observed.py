"""A block evaluates in one place: records and the first forces are those of other evaluations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from builders import random_uncertainty, small_student, triclinic_cell, water_box

from distill.evaluation.timing import count_rebuilds
from distill.potential import Evaluation, Potential
from distill.simulation import MDConfig, bath_of, mass_of, run_md
from distill.simulation.barostat import BarostatState, internal_pressure
from distill.simulation.blocks import make_block
from distill.simulation.observed import lacks_forces
from distill.simulation.programs import Programs
from distill.units import GPA

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")

ENSEMBLES = ("nve", "nvt_langevin", "nvt_csvr", "nvt_nose_hoover", "npt_scr")
SKEWED, WATER = triclinic_cell(), water_box(3)


def student_potential(atoms: Atoms, kernel: str | None = None) -> Potential:
    student = replace(small_student(), uncertainty=random_uncertainty(8))
    return student.potential(atoms, dtype=np.float64, kernel=kernel)


def config_of(ensemble: str) -> MDConfig:
    return MDConfig(
        ensemble,
        steps=6,
        record_every=3,
        block_steps=6,
        temperature=100.0,
        thermostat_time=20.0,
        barostat_time=50.0,
    )


def evaluated(atoms: Atoms, positions: np.ndarray, cell: np.ndarray) -> Evaluation:
    """By another kernel, with lists for this cell."""
    own = atoms.copy()
    own.set_cell(cell)
    other = student_potential(own, kernel="reference")
    assert other.evaluate is not None
    return other.evaluate(jnp.asarray(positions), other.allocate(positions), jnp.asarray(cell))


@pytest.mark.parametrize("atoms", [SKEWED, WATER], ids=["all at once", "grouped"])
@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_records_are_those_of_an_evaluation_of_their_own(ensemble, atoms):
    """Virial and uncertainty are asked for in every third step only."""
    potential = student_potential(atoms)
    assert potential.observe is not None
    frames = run_md(potential, atoms.positions, config_of(ensemble), progress=False).frames
    mass = mass_of(atoms.numbers)
    for t in range(2):
        found = evaluated(atoms, frames.positions[t], frames.cell[t])
        assert frames.potential_energy[t] == pytest.approx(float(found.energy[0]), rel=1e-10)
        np.testing.assert_allclose(frames.uncertainty[t], found.beside[0], rtol=1e-8)
        volume = jnp.asarray(abs(np.linalg.det(frames.cell[t])))
        momenta = jnp.asarray(frames.velocities[t] * mass)
        expected = internal_pressure(momenta, jnp.asarray(mass), found.virial[0], volume)
        assert frames.pressure[t] == pytest.approx(float(expected) / GPA, rel=1e-8)


@pytest.mark.parametrize("atoms", [SKEWED, WATER], ids=["side by side", "in turn"])
@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_a_start_without_forces_is_one_with_them(ensemble, atoms):
    """Noise, heat, chain and cell too; two replicas."""
    config, potential = config_of(ensemble), student_potential(atoms)
    starts = np.stack([atoms.positions, atoms.positions + 0.02])
    programs = Programs(potential, config, replicas=True)
    keys = jax.random.split(jax.random.PRNGKey(0), 2)
    fresh, lists = programs.first(keys, starts, None, bath_of(config, 2))
    assert bool(lacks_forces(fresh))
    there = [evaluated(atoms, own, atoms.cell.array) for own in starts]
    known = {"force": jnp.stack([found.forces for found in there])}
    if isinstance(fresh, BarostatState):
        known["virial"] = jnp.stack([found.virial[0] for found in there])
    ends = [programs.block(state, lists, 2) for state in (fresh, replace(fresh, **known))]
    for found, expected in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_functions_put_in_place_are_used():
    """A bias, or a potential without uncertainty, must not be passed by."""
    potential = student_potential(WATER)

    def biased(positions: jax.Array, lists: Any) -> tuple[jax.Array, jax.Array]:
        energy, forces = potential.energy_and_forces(positions, lists)
        return energy + 0.5 * (positions**2).sum(), forces - positions

    config = config_of("nve")
    other = replace(potential, energy_and_forces=biased, with_uncertainty=None, evaluate=None)
    assert potential.observe is not None and other.observe is None
    frames = run_md(other, WATER.positions, config, progress=False).frames
    lists = potential.allocate(frames.positions[-1])
    expected, _ = biased(jnp.asarray(frames.positions[-1]), lists)
    assert frames.potential_energy[-1] == pytest.approx(float(expected), rel=1e-10)
    assert frames.uncertainty.shape == (2, 0) and np.isnan(frames.pressure).all()
    total = frames.potential_energy + frames.kinetic_energy
    assert np.ptp(total) < 0.01 * np.ptp(frames.potential_energy)


def test_rebuilds_are_counted_from_a_start_without_forces():
    config = replace(config_of("nve"), temperature=1500.0)
    potential = student_potential(WATER)
    start, _ = make_block(potential, config)
    lists = potential.allocate(WATER.positions)
    fresh = start(jax.random.PRNGKey(0), WATER.positions, lists)
    known = replace(fresh, force=evaluated(WATER, WATER.positions, WATER.cell.array).forces)
    counts = [count_rebuilds(potential, config, own, lists, 30) for own in (fresh, known)]
    assert counts[0] == counts[1] > 0
