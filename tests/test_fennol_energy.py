"""The pure energy of a FeNNol teacher inside JAX and jax-md, and its overflow flag."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from builders import numerical_forces, triclinic_cell
from jax_md import simulate, space

from distill.simulation import MDConfig, run_md
from distill.teachers import load
from distill.units import AMU_TO_EV_FS2_PER_ANG2

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def teacher(demo_teacher_path):
    return load(f"fennol:{demo_teacher_path}")


@pytest.fixture(scope="module")
def exact_teacher(demo_teacher_path):
    with jax.enable_x64(True):
        return load(f"fennol:{demo_teacher_path}", dtype=np.float64)


def wide_water() -> Atoms:
    """One water in a box of more than two cutoffs, across its border."""
    atoms = molecule("H2O")
    atoms.set_cell(np.eye(3) * 10.5)
    atoms.pbc = True
    return atoms


@pytest.mark.parametrize("make", [wide_water, triclinic_cell])
def test_energy_under_transformations_of_jax(make, exact_teacher, x64):
    atoms = make()
    function = exact_teacher.energy_function(atoms)
    cell = jnp.asarray(atoms.cell.array)
    rng = np.random.default_rng(0)
    many = atoms.positions + 0.03 * rng.standard_normal((3, len(atoms), 3))
    moved = [atoms.copy() for _ in many]
    for copy, positions in zip(moved, many, strict=True):
        copy.positions[:] = positions
    expected = exact_teacher.label(moved)

    @jax.jit
    def all_at_once(batch: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.vmap(jax.value_and_grad(function.energy), (0, None))(batch, cell)

    energies, gradients = all_at_once(jnp.asarray(many))
    np.testing.assert_allclose(energies + function.self_energy, expected.energy, rtol=0, atol=1e-8)
    np.testing.assert_allclose(-gradients, np.stack(expected.forces), rtol=0, atol=1e-8)


def test_gradient_equals_finite_differences_and_loops_run(exact_teacher, x64):
    atoms = wide_water()
    function, cell = exact_teacher.energy_function(atoms), jnp.asarray(atoms.cell.array)
    gradient = jax.jit(jax.grad(function.energy, argnums=(0, 1)))
    of_positions, of_cell = gradient(jnp.asarray(atoms.positions), cell)
    numerical = numerical_forces(exact_teacher.label, atoms)
    np.testing.assert_allclose(
        -of_positions, numerical, rtol=0, atol=1e-6 * np.abs(numerical).max()
    )
    # Moving the cell at fixed positions only moves images, which are out of reach here.
    np.testing.assert_allclose(of_cell, 0, atol=1e-12)

    @jax.jit
    def descend(positions: jax.Array) -> jax.Array:
        def step(_: Any, x: jax.Array) -> jax.Array:
            return x - 0.005 * jax.grad(function.energy)(x, cell)

        return jax.lax.fori_loop(0, 20, step, positions)

    stretched, relaxed = atoms.copy(), atoms.copy()
    stretched.positions *= 1.05
    relaxed.positions[:] = descend(jnp.asarray(stretched.positions))
    before, after = exact_teacher.label([stretched, relaxed]).energy
    assert after < before - 0.01


def test_periodic_energy_without_cell_is_refused(teacher):
    with pytest.raises(ValueError, match="pass its cell"):
        teacher.energy_function(wide_water()).energy(jnp.zeros((3, 3)))


def test_dynamics_in_jax_md_conserve_energy(teacher):
    atoms = molecule("CH3CH2OH")
    potential = teacher.potential(atoms)
    _, shift = space.free()
    init, step = simulate.nve(potential.forces, shift, dt=0.5)
    mass = jnp.asarray(atoms.get_masses() * AMU_TO_EV_FS2_PER_ANG2, jnp.float32)
    positions = jnp.asarray(atoms.positions, jnp.float32)
    lists = potential.allocate(positions)

    @jax.jit
    def begin(positions: jax.Array, lists: Any) -> Any:
        state = init(jax.random.PRNGKey(0), positions, kT=0.026, mass=mass, neighbors=lists)
        return state, potential.energy(positions, neighbors=lists)

    @jax.jit
    def run(state: Any, lists: Any) -> Any:
        def one(_: Any, carry: Any) -> Any:
            state, lists = carry
            lists = potential.update(lists, state.position)
            return step(state, neighbors=lists), lists

        state, lists = jax.lax.fori_loop(0, 100, one, (state, lists))
        return state, lists, potential.energy(state.position, neighbors=lists)

    def kinetic(state: Any) -> float:
        return float(0.5 * (state.momentum**2 / state.mass).sum())

    start, before = begin(positions, lists)
    end, lists, energy = run(start, lists)
    assert not bool(lists.overflow)
    assert np.abs(end.position - start.position).max() > 0.05
    # 0.5 fs against C-H vibrations at room temperature: a few meV of ripple for nine atoms.
    assert abs(float(energy - before) + kinetic(end) - kinetic(start)) < 0.02


def cluster(scale: float) -> Atoms:
    """Five waters on a ring whose radius is scaled, the molecules unchanged."""
    atoms = Atoms()
    for k in range(5):
        water = molecule("H2O")
        angle = 2 * np.pi * k / 5
        water.positions += scale * 6.0 * np.array([np.cos(angle), np.sin(angle), 0])
        atoms += water
    return atoms


def test_overflow_is_never_a_wrong_number(teacher):
    loose = cluster(1.5)
    function = teacher.energy_function(loose)
    run = jax.jit(function.energy)
    flagged = jax.jit(function.energy_and_overflow)
    caught = []
    for scale in (1.5, 1.2, 0.8, 0.6, 0.45, 0.35):
        atoms = cluster(scale)
        positions = atoms.positions.astype(np.float32)
        energy, flag = float(run(positions)), bool(flagged(positions)[1])
        assert np.isnan(energy) == flag
        caught.append(flag)
        if not flag:
            fresh = teacher.label([atoms]).energy[0] - function.self_energy
            assert energy == pytest.approx(fresh, abs=1e-3)
    assert not caught[0] and caught[-1]


def test_cell_too_small_for_the_minimum_image_raises_the_flag(teacher):
    atoms = wide_water()
    function = teacher.energy_function(atoms)
    assert function.minimum_image
    cell = atoms.cell.array.astype(np.float32)
    run = jax.jit(function.energy_and_overflow)
    positions = atoms.positions.astype(np.float32)
    assert not bool(run(positions, cell)[1])
    sheared = cell.copy()
    sheared[1, 0] = 9.0  # long vectors, but the planes stand closer than two cutoffs
    assert bool(run(positions, sheared)[1])
    assert bool(run(positions, 0.9 * cell)[1])
    assert not teacher.energy_function(triclinic_cell()).minimum_image


@pytest.mark.slow
def test_simulation_grows_lists_that_overflow(teacher):
    atoms = cluster(1.5)
    potential = teacher.potential(atoms)
    inwards = np.repeat(-cluster(1.0).positions.reshape(5, 3, 3).mean(1), 3, axis=0)
    # 0.1 Å/fs towards the centre: waters meet within the run, far more pairs than at the start.
    velocities = 0.1 * inwards / np.linalg.norm(inwards, axis=1, keepdims=True)
    config = MDConfig(steps=60, timestep=1.0, record_every=20, block_steps=20)
    result = run_md(potential, atoms.positions, config, velocities=velocities, progress=False)
    assert result.n_reallocations > 0
    last = atoms.copy()
    last.positions[:] = result.frames.positions[-1]
    expected = teacher.label([last]).energy[0] - teacher.energy_function(last).self_energy
    assert result.frames.potential_energy[-1] == pytest.approx(expected, abs=2e-3)
    total = result.frames.potential_energy + result.frames.kinetic_energy
    assert np.ptp(total) < 0.01 * result.frames.kinetic_energy[0]
