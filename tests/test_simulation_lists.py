"""Neighbour lists during a simulation: never silently too small, never silently too old."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms

from distill.errors import CapacityError, SimulationError
from distill.neighbors import neighbor_list
from distill.potential import Potential, local_potential
from distill.simulation import MDConfig, run_md

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")

CUTOFF, SKIN, SPACING = 3.0, 0.5, 3.8


def repulsion(displacements, neighbor_species, mask, species):
    """Soft spheres: smooth at the cutoff, and gentle enough for atoms to be pressed together."""
    distances = jnp.sqrt((displacements**2).sum(-1) + 1e-12)
    return jnp.where(mask, 0.1 * jnp.maximum(1 - distances / CUTOFF, 0) ** 3, 0).sum(1)


def crowding(periodic: bool) -> tuple[Atoms, np.ndarray]:
    """27 atoms without a neighbour in reach, and velocities (Å/fs) that press them together."""
    grid = SPACING * (np.array(list(np.ndindex(3, 3, 3))) - 1.0)
    cell = np.eye(3) * 20.0 if periodic else None
    atoms = Atoms("Ar27", grid + 0.01 * np.random.default_rng(0).standard_normal(grid.shape))
    atoms.set_cell(cell)
    atoms.pbc = periodic
    return atoms, -0.01 * grid / SPACING


def potential_of(atoms: Atoms) -> Potential:
    return local_potential(
        repulsion, atoms, np.zeros(len(atoms), int), CUTOFF, skin=SKIN, dtype=np.float64
    )


def with_room(potential: Potential, atoms: Atoms) -> Potential:
    """The same with lists that hold every other atom from the start."""
    lists = neighbor_list(atoms.cell.array, atoms.pbc, CUTOFF, skin=SKIN)
    return replace(
        potential,
        allocate=lambda positions, previous=None: lists.allocate(
            jnp.asarray(positions), minimum_capacity=100
        ),
    )


@pytest.mark.parametrize("periodic", [False, True], ids=["free", "periodic"])
def test_a_list_that_is_too_small_changes_nothing(periodic):
    atoms, velocities = crowding(periodic)
    potential = potential_of(atoms)
    config = MDConfig(timestep=2.0, steps=120, record_every=10, block_steps=40)
    roomy = run_md(
        with_room(potential, atoms), atoms.positions, config, velocities=velocities, progress=False
    )
    tight = run_md(potential, atoms.positions, config, velocities=velocities, progress=False)
    assert roomy.n_reallocations == 0
    assert tight.n_reallocations > 0
    closest = np.linalg.norm(roomy.frames.positions[-1, 13] - roomy.frames.positions[-1, 14])
    assert closest < 0.75 * SPACING
    assert np.ptp(roomy.frames.potential_energy) > 0.1
    # Equal but for the order of the sums.
    for name in ("positions", "velocities", "potential_energy"):
        np.testing.assert_allclose(
            getattr(tight.frames, name), getattr(roomy.frames, name), rtol=0, atol=1e-12
        )


def test_replicas_whose_lists_overflow_at_different_times():
    atoms, inwards = crowding(periodic=False)
    potential = potential_of(atoms)
    config = MDConfig(timestep=2.0, steps=120, record_every=20, block_steps=40)
    starts, velocities = np.stack([atoms.positions] * 2), np.stack([0.1 * inwards, inwards])
    tight, roomy = (
        run_md(p, starts, config, velocities=velocities, progress=False)
        for p in (potential, with_room(potential, atoms))
    )
    assert tight.n_reallocations > 0 and roomy.n_reallocations == 0
    np.testing.assert_allclose(tight.frames.positions, roomy.frames.positions, rtol=0, atol=1e-12)


def test_replicas_may_start_far_from_each_other():
    """Further than the skin: each needs a list of its own from the start."""
    atoms, inwards = crowding(periodic=False)
    starts = np.stack([atoms.positions, 0.7 * atoms.positions, atoms.positions[::-1]])
    velocities = np.zeros_like(starts)
    config = MDConfig(timestep=2.0, steps=20, record_every=10, block_steps=20)
    potential = potential_of(atoms)
    together = run_md(potential, starts, config, velocities=velocities, progress=False)
    alone = run_md(potential, starts[1], config, velocities=velocities[1], progress=False)
    assert alone.frames.potential_energy[0] > 0.01
    np.testing.assert_allclose(
        together.frames.positions[:, 1], alone.frames.positions, rtol=0, atol=1e-12
    )
    np.testing.assert_allclose(
        together.frames.positions[:, 2], together.frames.positions[:, 0, ::-1], atol=1e-12
    )


def test_a_step_longer_than_the_skin_is_refused():
    atoms, _ = crowding(periodic=True)
    velocities = np.zeros((27, 3))
    velocities[5, 0] = 0.3  # 0.6 Å in one step
    config = MDConfig(timestep=2.0, steps=20, record_every=10, block_steps=20)
    with pytest.raises(CapacityError, match=r"at 0\.0 fs: .*smaller timestep or a larger skin"):
        run_md(potential_of(atoms), atoms.positions, config, velocities=velocities, progress=False)


@pytest.mark.parametrize("replicas", [False, True], ids=["one", "replicas"])
def test_a_fast_atom_only_makes_rebuilds_come_earlier(replicas):
    """A list is used until an atom moved 0.19 Å, and holds until 0.25 Å: too late for this one."""
    atoms, inwards = crowding(periodic=True)
    velocities = inwards.copy()
    velocities[5] = [0.08, 0.03, 0.0]  # 0.17 Å in one step
    starts = atoms.positions
    if replicas:
        starts, velocities = np.stack([starts] * 2), np.stack([velocities, 0.1 * inwards])
    config = MDConfig(timestep=2.0, steps=120, record_every=10, block_steps=40)
    narrow, wide = (
        run_md(
            local_potential(
                repulsion, atoms, np.zeros(27, int), CUTOFF, skin=skin, dtype=np.float64
            ),
            starts,
            config,
            velocities=velocities,
            progress=False,
        )
        for skin in (SKIN, 2.0)
    )
    assert 0 < narrow.n_reallocations <= 4
    for name in ("positions", "potential_energy"):
        np.testing.assert_allclose(
            getattr(narrow.frames, name), getattr(wide.frames, name), rtol=0, atol=1e-10
        )


def test_atoms_that_are_lost_are_not_mistaken_for_crowding():
    """NaN makes any list look too old; the report must name the atoms, not the list."""

    def breaks_down(displacements, neighbor_species, mask, species):
        distances = jnp.sqrt((displacements**2).sum(-1) + 1e-12)
        return jnp.where(mask, 1e-6 * jnp.sqrt(distances - 1.0), 0).sum(1)  # NaN below 1 Å

    atoms = Atoms("Ar3", [[0, 0, 0], [1.53, 0, 0], [9, 0, 0]])
    potential = local_potential(
        breaks_down, atoms, np.zeros(3, int), CUTOFF, skin=SKIN, dtype=np.float64
    )
    velocities = np.zeros((3, 3))
    velocities[1, 0] = -0.01  # together closer than 1 Å after 53 fs
    config = MDConfig(timestep=1.0, steps=100, record_every=10, block_steps=100)
    with pytest.raises(SimulationError, match=r"atoms \[0, 1\] became NaN.* before 60\.0 fs"):
        run_md(potential, atoms.positions, config, velocities=velocities, progress=False)
