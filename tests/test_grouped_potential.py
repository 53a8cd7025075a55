"""Molecular dynamics on grouped lists: the same numbers as by the plain path."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from builders import (
    CUTOFF,
    ELEMENTS,
    ethanol,
    random_uncertainty,
    small_student,
    triclinic_cell,
    water_box,
)

from distill.neighbors import NeighborList
from distill.neighbors.build import build
from distill.neighbors.grouped import GroupedList
from distill.potential import Potential
from distill.simulation import MDConfig, run_md
from distill.simulation.blocks import allocate_lists, make_block
from distill.students import Student, StudentSpec

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")

# How a larger model is evaluated is the matter of test_moment_kernel.py.
OPTIONS: dict[str, Any] = {"max_l": 1, "n_channels": 2, "n_triples": 0, "hidden": (8,)}
STUDENT = small_student(**OPTIONS)


@pytest.fixture(autouse=True)
def small_systems_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.potential.GROUPED_FROM", 1)


def slab() -> Atoms:
    atoms = water_box(2)
    atoms.pbc = (True, False, True)
    return atoms


def apart() -> Atoms:
    """Two atoms out of reach of each other."""
    return Atoms("OH", [[0, 0, 0], [30, 0, 0]])


STRUCTURES = {
    "molecule": ethanol,
    "small skewed cell": triclinic_cell,
    "liquid": lambda: water_box(2),
    "blocks of rows": water_box,
    "slab": slab,
    "no neighbours": apart,
}


def both(atoms: Atoms, student: Student = STUDENT, **options: Any) -> tuple[Potential, Potential]:
    """On grouped lists, and by the reference."""
    options = {"dtype": np.float64, **options}
    return student.potential(atoms, **options), student.potential(
        atoms, kernel="reference", **options
    )


def results(potential: Potential, positions: Any, function: str = "energy_and_forces") -> Any:
    lists = potential.allocate(positions)
    assert not potential.overflow(lists, positions)
    return jax.jit(getattr(potential, function))(jnp.asarray(positions), lists)


@pytest.mark.parametrize("name", STRUCTURES)
def test_equals_the_reference(name: str) -> None:
    atoms = STRUCTURES[name]()
    grouped, plain = both(atoms)
    assert isinstance(grouped.allocate(atoms.positions), GroupedList)
    assert isinstance(plain.allocate(atoms.positions), NeighborList)
    energy, forces = results(grouped, atoms.positions)
    expected, by_reference = results(plain, atoms.positions)
    np.testing.assert_allclose(energy, expected, rtol=0, atol=1e-11)
    np.testing.assert_allclose(forces, by_reference, rtol=0, atol=1e-11)
    if name != "no neighbours":
        assert np.abs(forces).max() > 1e-3


def test_embedded_elements_and_single_precision() -> None:
    atoms = water_box(2)
    grouped, plain = both(atoms, small_student(**OPTIONS, n_embeddings=2))
    expected = results(plain, atoms.positions)
    for found, value in zip(results(grouped, atoms.positions), expected, strict=True):
        np.testing.assert_allclose(found, value, rtol=0, atol=1e-11)
    single, _ = both(atoms, small_student(**OPTIONS, n_embeddings=2), dtype=np.float32)
    energy, forces = results(single, atoms.positions.astype(np.float32))
    assert energy.dtype == forces.dtype == np.float32
    np.testing.assert_allclose(forces, expected[1], rtol=0, atol=1e-5)


def test_lists_follow_moving_and_wrapped_atoms() -> None:
    atoms = slab()
    grouped, plain = both(atoms)
    rng = np.random.default_rng(1)
    update, function = jax.jit(grouped.update), jax.jit(grouped.energy_and_forces)
    lists = grouped.allocate(atoms.positions)
    positions = jnp.asarray(atoms.positions)
    for step in range(4):
        positions = positions + 0.05 * rng.normal(size=positions.shape).clip(-1.5, 1.5)
        if step == 2:  # whole cells away
            positions = positions + rng.integers(-2, 3, positions.shape) * [1, 0, 1] @ atoms.cell
        lists = update(lists, positions)
        energy, forces = function(positions, lists)
        expected, by_reference = results(plain, positions)
        np.testing.assert_allclose(energy, expected, rtol=0, atol=1e-11)
        np.testing.assert_allclose(forces, by_reference, rtol=0, atol=1e-11)


def test_forces_are_differences_of_the_energy() -> None:
    atoms = triclinic_cell()
    grouped, _ = both(atoms)
    lists = grouped.allocate(atoms.positions)
    function = jax.jit(grouped.energy_and_forces)
    _, forces = function(jnp.asarray(atoms.positions), lists)
    for atom, axis in ((0, 0), (2, 1), (5, 2)):
        step = np.zeros_like(atoms.positions)
        step[atom, axis] = 2e-5  # the error falls with its square
        up, down = (function(jnp.asarray(atoms.positions + s * step), lists)[0] for s in (1, -1))
        assert float(down - up) / 4e-5 == pytest.approx(float(forces[atom, axis]), abs=1e-8)


def test_uncertainty_is_in_the_order_of_the_atoms() -> None:
    uncertainty = random_uncertainty(8)
    atoms = triclinic_cell()
    found, expected = (
        results(potential, atoms.positions, "with_uncertainty")
        for potential in both(atoms, replace(STUDENT, uncertainty=uncertainty))
    )
    assert found[2].shape == (len(atoms),) and np.ptp(found[2]) > 0.01
    for mine, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, reference, rtol=0, atol=1e-11)


def test_energy_is_conserved_across_rebuilds() -> None:
    atoms = water_box(2)
    grouped, _ = both(atoms, small_student(), skin=0.3)  # the small one collapses
    spreads = []
    for timestep in (1.0, 0.5):
        config = MDConfig(
            timestep=timestep, steps=int(80 / timestep), record_every=1, block_steps=40
        )
        run = run_md(
            grouped, atoms.positions, config, velocities=velocities_of(atoms), progress=False
        )
        spreads.append(run.frames.total_energy.std())
    moved = np.linalg.norm(run.frames.positions[-1] - atoms.positions, axis=1).max()
    assert moved > 2 * 0.3  # the list was rebuilt several times
    assert np.ptp(run.frames.potential_energy) > 1e-2
    np.testing.assert_allclose(spreads[0] / spreads[1], 4, rtol=0.25)


def velocities_of(atoms: Atoms, seed: int = 0) -> np.ndarray:
    return 0.004 * np.random.default_rng(seed).standard_normal((len(atoms), 3))


def test_a_block_with_a_list_that_is_too_small_is_flagged_and_rerun() -> None:
    atoms = water_box(2)
    grouped, _ = both(atoms)
    enough = grouped.allocate(atoms.positions)
    (part,) = enough.layout.parts
    few = replace(enough.layout, parts=(replace(part, groups=(8, 0, 8)),))
    found = build(few, STUDENT.species(atoms.numbers), enough.reference_positions, enough.center)
    tight = replace(enough, layout=few, **found._asdict())
    config = MDConfig(steps=10, record_every=10, block_steps=10)
    start, block = make_block(grouped, config)
    state = start(jax.random.PRNGKey(0), jnp.asarray(atoms.positions), enough, velocities_of(atoms))
    *_, expected, overflow = block(state, enough, 1)
    assert not overflow and block(state, tight, 1)[3]
    *_, rerun, overflow = block(state, grouped.allocate(atoms.positions, tight), 1)
    assert not overflow
    for mine, reference in zip(rerun, expected, strict=True):
        np.testing.assert_allclose(mine, reference, rtol=0, atol=1e-11)


def test_what_lacks_in_one_replica_grows_in_all() -> None:
    atoms = ethanol()
    grouped, _ = both(atoms)
    starts = np.stack([atoms.positions] * 2)
    lists = allocate_lists(grouped, starts, None, True)
    short = replace(lists, lacking=lists.lacking.at[1, 3].set(True))
    assert jax.vmap(grouped.overflow)(short, jnp.asarray(starts)).tolist() == [False, True]
    larger = allocate_lists(grouped, starts, short, True)
    assert larger.neighbors[0].shape[0] == 2 and not larger.lacking.any()
    assert larger.groups[0] > lists.groups[0] and larger.groups[1:] == lists.groups[1:]


def test_replicas_that_start_far_from_each_other_are_single_runs() -> None:
    atoms = ethanol()
    grouped, _ = both(atoms)
    starts = np.stack([atoms.positions, 1.3 * atoms.positions, atoms.positions + 50.0])
    config = MDConfig(steps=10, record_every=5, block_steps=10)
    velocities = np.stack([velocities_of(atoms, seed) for seed in (0, 1, 0)])
    together = run_md(grouped, starts, config, velocities=velocities, progress=False)
    alone = run_md(grouped, starts[1], config, velocities=velocities[1], progress=False)
    np.testing.assert_allclose(
        together.frames.positions[:, 1], alone.frames.positions, rtol=0, atol=1e-10
    )
    np.testing.assert_allclose(
        together.frames.positions[:, 2] - 50.0, together.frames.positions[:, 0], rtol=0, atol=1e-9
    )


def test_fluctuations_do_not_recompile() -> None:
    atoms = water_box(2)
    grouped, _ = both(atoms)
    traces = []

    @jax.jit
    def step(positions: jax.Array, lists: GroupedList) -> Any:
        traces.append(1)
        lists = grouped.update(lists, positions)
        return lists, grouped.energy_and_forces(positions, lists)

    rng = np.random.default_rng(0)
    lists = grouped.allocate(atoms.positions)
    for _ in range(8):
        positions = atoms.positions + 0.1 * rng.normal(size=atoms.positions.shape)
        lists, (_, forces) = step(jnp.asarray(positions), lists)
        assert not lists.lacking.any() and np.isfinite(forces).all()
    assert len(traces) == 1


def test_what_keeps_plain_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    atoms = ethanol()
    messages = replace(STUDENT, spec=StudentSpec.of_size("message-m", ELEMENTS, CUTOFF))
    assert isinstance(messages.potential(atoms).allocate(atoms.positions), NeighborList)
    monkeypatch.undo()
    assert isinstance(STUDENT.potential(atoms).allocate(atoms.positions), NeighborList)
