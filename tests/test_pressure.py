"""Pressure and cell of frames, against ASE and where they are not defined."""

from __future__ import annotations

import warnings

import ase.units
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from builders import small_student, triclinic_cell, water_box

from distill.calculators import StudentCalculator
from distill.simulation import MDConfig, run_md

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")


@pytest.mark.parametrize("atoms", [triclinic_cell(), water_box(3)], ids=["skewed", "grouped"])
def test_pressure_is_that_of_ase(atoms):
    """Kinetic and virial part, in a small skewed cell and with grouped lists, replicas too."""
    student = small_student()
    starts = np.stack([atoms.positions, atoms.positions + 0.02])
    velocities = np.random.default_rng(0).normal(scale=0.01, size=starts.shape) + 0.02
    config = MDConfig(steps=2, record_every=1, block_steps=2)
    potential = student.potential(atoms, dtype=np.float64)
    frames = run_md(potential, starts, config, velocities=velocities, progress=False).frames
    assert frames.pressure.shape == (2, 2) and frames.cell.shape == (2, 2, 3, 3)
    assert (frames.cell == atoms.cell.array).all()
    for t, r in np.ndindex(2, 2):
        image = atoms.copy()
        image.positions = frames.positions[t, r]
        image.set_velocities(frames.velocities[t, r] / ase.units.fs)
        image.set_momenta(
            image.get_momenta()
            - image.get_masses()[:, None] * image.get_momenta().sum(0) / image.get_masses().sum()
        )
        image.calc = StudentCalculator(student, dtype=np.float64)
        stress = image.get_stress(voigt=False, include_ideal_gas=True)
        expected = -np.trace(stress) / 3 / ase.units.GPa
        assert frames.pressure[t, r] == pytest.approx(expected, rel=1e-8)


def flat(atoms: Atoms) -> Atoms:
    atoms.set_cell([6.0, 6.0, 0.0])
    atoms.pbc = True, True, False
    return atoms


@pytest.mark.parametrize("atoms", [molecule("H2O"), flat(molecule("H2O"))], ids=["free", "slab"])
def test_no_pressure_without_a_volume(atoms):
    config = MDConfig(steps=2, record_every=1, block_steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        potential = small_student().potential(atoms)
        frames = run_md(potential, atoms.positions, config, progress=False).frames
    assert np.isnan(frames.pressure).all() and np.isfinite(frames.potential_energy).all()
    assert (frames.cell == atoms.cell.array).all()


def test_no_pressure_without_a_virial(toy_potential):
    cell, pbc = np.eye(3) * 5.0, np.ones(3, bool)
    potential = toy_potential(lambda x: (x**2).sum(), [18, 18], cell=cell, pbc=pbc)
    config = MDConfig(steps=2, record_every=1, block_steps=2)
    frames = run_md(potential, np.eye(3)[:2], config, progress=False).frames
    assert np.isnan(frames.pressure).all() and (frames.cell == cell).all()
