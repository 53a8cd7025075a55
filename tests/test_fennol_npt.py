"""FeNNol teachers where the cell moves: the virial in cells that the lists cover, and NPT."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from builders import numerical_stress, structures_of, triclinic_cell

from distill.simulation import MDConfig, run_md
from distill.teachers import load
from distill.units import GPA

pytestmark = pytest.mark.usefixtures("quick_compilation", "x64")


@pytest.fixture(scope="module")
def teacher(demo_teacher_path):
    with jax.enable_x64(True):
        return load(f"fennol:{demo_teacher_path}", dtype=np.float64)


def wide_pair() -> Atoms:
    """Two waters across the border of a cell of more than two cutoffs."""
    atoms = molecule("H2O") + molecule("H2O")
    atoms.positions[3:] += [0.4, 0.5, 2.9]
    atoms.set_cell(np.eye(3) * 11.5)
    atoms.pbc = True
    return atoms


@pytest.mark.parametrize(("make", "one_image"), [(wide_pair, True), (triclinic_cell, False)])
def test_lists_of_a_smaller_cell_give_the_labels_of_a_larger_one(make, one_image, teacher):
    atoms = make()
    larger = atoms.copy()
    larger.set_cell(atoms.cell.array * 1.04, scale_atoms=True)
    function = teacher.energy_function(atoms)
    assert function.minimum_image == one_image
    potential = teacher.potential(larger).with_cell(atoms.cell.array)
    np.testing.assert_array_equal(potential.cell, atoms.cell.array)
    lists = potential.allocate(atoms.positions)
    evaluate = jax.jit(potential.evaluate)
    for chosen in (atoms, larger):
        found = evaluate(jnp.asarray(chosen.positions), lists, jnp.asarray(chosen.cell.array))
        expected = teacher.label([chosen])
        energy = found.energy + function.self_energy
        np.testing.assert_allclose(energy, expected.energy, rtol=0, atol=1e-8)
        np.testing.assert_allclose(found.forces, expected.forces[0], rtol=0, atol=1e-8)
        stress = found.stress(jnp.asarray(chosen.cell.array)[None])[0]
        np.testing.assert_allclose(stress, expected.stress[0], rtol=0, atol=1e-10)
    if one_image:
        return
    numerical = numerical_stress(teacher.label, larger)
    assert np.abs(numerical).max() > 1e-5
    np.testing.assert_allclose(stress, numerical, rtol=0, atol=1e-6 * np.abs(numerical).max())


@pytest.mark.slow
def test_constant_pressure_with_a_teacher(teacher):
    """A box that is compressed: every frame has the labels of its own cell."""
    atoms = triclinic_cell()
    config = MDConfig(
        "npt_scr",
        timestep=0.1,
        temperature=100.0,
        steps=60,
        record_every=10,
        block_steps=60,
        thermostat_time=50.0,
        pressure=20.0,
        barostat_time=20.0,
        seed=3,
    )
    run = run_md(teacher.potential(atoms), atoms.positions, config, progress=False)
    frames = run.frames
    lengths = np.cbrt(frames.volume / atoms.cell.volume)
    assert lengths[-1] < 0.975 and run.n_reallocations > 0, "the reference cell was left"
    seen = structures_of(atoms, frames)
    expected = teacher.label(seen)
    offset = teacher.energy_function(atoms).self_energy
    np.testing.assert_allclose(frames.potential_energy + offset, expected.energy, atol=1e-7)
    kinetic = 2 * frames.kinetic_energy / (3 * frames.volume)
    virial = np.trace(expected.stress, axis1=1, axis2=2) / 3
    np.testing.assert_allclose(frames.pressure, (kinetic - virial) / GPA, rtol=1e-6)
    # What is conserved moves little beside what the baths gave and took.
    total = frames.total_energy + config.pressure * GPA * frames.volume
    assert np.ptp(total) > 0.1 and np.ptp(frames.conserved_energy) < 0.02 * np.ptp(total)
