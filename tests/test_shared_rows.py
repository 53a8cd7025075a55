"""One system on several devices gives what one device gives."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from builders import (
    AT_ANY_COST,
    CUTOFF,
    ELEMENTS,
    ethanol,
    random_uncertainty,
    run_on_devices,
    small_student,
    water_box,
)

from distill import potential
from distill.errors import UnsupportedStructureError
from distill.neighbors import parts
from distill.neighbors.build import build
from distill.shared_rows import Share
from distill.simulation import MDCheckpoints, MDConfig, run_md
from distill.students import Student, StudentSpec, save_bundle

OPTIONS: dict[str, Any] = {"max_l": 1, "n_channels": 2, "n_triples": 0, "hidden": (8,)}


def with_uncertainty() -> Student:
    return replace(small_student(**OPTIONS), uncertainty=random_uncertainty(8))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shares_take_every_row_once(count: int) -> None:
    rows = np.repeat([0, 1, 3], [7, 4, 1])
    values = np.random.default_rng(0).normal(size=(len(rows), 2))
    total = np.zeros_like(values)
    for number in range(count):
        share = Share(jnp.int32(number), count, rows)
        taken = share.taken(jnp.asarray(values))
        np.testing.assert_array_equal(share.taken(jnp.asarray(rows)), share.elements)
        assert len(taken) <= -(-len(rows) // count) + 3
        total += share.spread(taken)
    np.testing.assert_allclose(total, values.astype(total.dtype), rtol=1e-6)


def test_only_rows_that_are_independent_are_shared() -> None:
    devices = jax.devices()[:1]
    with pytest.raises(UnsupportedStructureError, match="strictly local students of at least 32"):
        small_student().potential(ethanol(), devices=devices)
    spec = StudentSpec.of_size("message-m", ELEMENTS, CUTOFF)
    student = replace(small_student(), spec=spec)
    with pytest.raises(UnsupportedStructureError, match="leave `devices` out"):
        student.potential(water_box(3), devices=devices)


def test_results_and_runs_are_those_of_one_device() -> None:
    run_on_devices(3, __file__, "3")


def test_a_script_with_two_devices(tmp_path: Path) -> None:
    save_bundle(small_student(**OPTIONS), tmp_path / "student", {})
    water_box(2).write(tmp_path / "water.xyz", format="extxyz")
    run_on_devices(1, __file__, "2", str(tmp_path))


def check_results(count: int, side: int = 2) -> None:
    atoms = water_box(side)
    make = partial(with_uncertainty().potential, atoms, dtype=np.float64)
    alone, shared = make(), make(devices=jax.devices()[:count])
    positions, cell = jnp.asarray(atoms.positions), jnp.asarray(1.01 * atoms.cell.array)
    lists = alone.allocate(positions)
    expected = jax.jit(alone.evaluate)(positions, lists, cell)
    found = jax.jit(shared.evaluate)(positions, lists, cell)
    assert len(found.beside) == 1  # the expected errors
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-11)
    assert len(found.forces.sharding.device_set) == count


def check_lists(count: int, boxes: Sequence[Atoms]) -> None:
    """Rebuilt together: the same list."""
    for atoms in boxes:
        make = partial(small_student(**OPTIONS).potential, atoms)
        alone, shared = make(), make(devices=jax.devices()[:count])
        start = jnp.asarray(atoms.positions, jnp.float32)
        lists = alone.allocate(start)
        moved = start + 0.2 * np.random.default_rng(0).normal(size=start.shape)
        expected, found = (jax.jit(one.update)(lists, moved) for one in (alone, shared))
        assert not (expected.overflow | (expected.neighbors[0] == lists.neighbors[0]).all())
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(one, other)
        # Still the list where nothing is close to the border of the skin.
        kept = jax.jit(shared.update)(found, moved)
        for one, other in zip(kept.neighbors, found.neighbors, strict=True):
            np.testing.assert_array_equal(one, other)


def check_two_parts(count: int) -> None:
    """Rows with fewer slots and with more, as in large boxes."""
    for name, value in AT_ANY_COST.items():
        setattr(parts, name, value)
    box = water_box(3)
    lists = small_student(**OPTIONS).potential(box).allocate(box.positions)
    assert len(lists.layout.parts) == 2
    check_results(count, 3)
    check_lists(count, [box])


def check_runs(count: int) -> None:
    atoms = water_box(2)
    make = partial(with_uncertainty().potential, atoms, dtype=np.float64)
    md = MDConfig(ensemble="nve", steps=20, record_every=10, block_steps=10)
    shared = make(devices=jax.devices()[:count])
    expected, found = (
        run_md(own, atoms.positions, md, progress=False).frames for own in (make(), shared)
    )
    np.testing.assert_allclose(found.positions, expected.positions, rtol=0, atol=1e-8)
    np.testing.assert_allclose(found.pressure, expected.pressure, rtol=1e-6)
    np.testing.assert_allclose(found.uncertainty, expected.uncertainty, rtol=1e-6)
    assert (expected.uncertainty > 0).all()


def check_restart(count: int, folder: Path) -> None:
    """Interrupted after a block, the run of all devices ends as if it had not been."""
    atoms = water_box(2)
    shared = small_student(**OPTIONS).potential(atoms, devices=jax.devices()[:count])
    md = MDConfig("nvt_csvr", steps=20, record_every=10, block_steps=10)

    def run(steps: int, name: str) -> Any:
        kept = MDCheckpoints(folder / name, {"model": "small"})
        own = replace(md, steps=steps)
        return run_md(shared, atoms.positions, own, checkpoints=kept, progress=False)

    whole = run(20, "whole")
    run(10, "halves")
    for one, other in zip(
        jax.tree.leaves(whole.state), jax.tree.leaves(run(20, "halves").state), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def check_small_lists(count: int) -> None:
    """A list that is too small is found so by all devices, and a larger one suffices."""
    atoms = water_box(2)
    student = small_student(**OPTIONS)
    shared = student.potential(atoms, devices=jax.devices()[:count], dtype=np.float64)
    positions = jnp.asarray(atoms.positions)
    enough = shared.allocate(positions)
    update = jax.jit(shared.update)
    (part,) = enough.layout.parts
    part = replace(part, groups=tuple(min(8, slots) for slots in part.groups))
    few = replace(enough.layout, parts=(part,))
    species = student.species(atoms.numbers)
    found = build(few, species, enough.reference_positions, enough.center)
    fields = found._asdict() | {"lacking": jnp.zeros_like(found.lacking)}
    moved = positions + 0.1  # 0.17 Å: rebuilt, by the devices, and not too old
    full = update(replace(enough, layout=few, **fields), moved)
    assert full.lacking[3:].any() and not full.stale
    larger = shared.allocate(positions, full)
    assert all(one >= other for one, other in zip(larger.groups, enough.groups, strict=True))
    rebuilt = update(larger, moved)
    assert (rebuilt.reference_positions == moved).all() and not rebuilt.overflow


def check_pallas(count: int) -> None:
    """Rows that the fused kernel evaluates are shared as those of the blocked one."""
    atoms = water_box(2)
    make = partial(small_student(**OPTIONS).potential, atoms)
    alone = make(kernel="blocked")
    shared = make(kernel="pallas", devices=jax.devices()[:count])
    positions = jnp.asarray(atoms.positions, jnp.float32)
    lists = alone.allocate(positions)
    expected = jax.jit(alone.energy_and_forces)(positions, lists)
    energy, forces = jax.jit(shared.energy_and_forces)(positions, lists)
    np.testing.assert_allclose(energy, expected[0], rtol=1e-5)
    np.testing.assert_allclose(forces, expected[1], rtol=0, atol=1e-4)


def check_script(count: int, folder: Path) -> None:
    import simulate  # experiments/ is on the path of this process

    config = simulate.SimulateConfig(
        model=str(folder / "student"),
        structure=str(folder / "water.xyz"),
        md=MDConfig(steps=20, record_every=10, block_steps=10),
    )

    def temperature(devices: int, replicas: int) -> float:
        output = folder / f"{devices}_{replicas}"
        own = replace(config, devices=devices, replicas=replicas, output=output)
        return float(simulate.run(own)["temperature_K"])

    # Two devices share one system, and divide replicas.
    for replicas in (1, count):
        assert abs(temperature(count, replicas) / temperature(1, replicas) - 1) < 1e-4
    assert jax.device_count() == count


if __name__ == "__main__":
    jax.config.update("jax_disable_most_optimizations", True)
    potential.GROUPED_FROM = 1
    if len(sys.argv) > 2:
        # The script asks for devices itself.
        del os.environ["XLA_FLAGS"]
        check_script(int(sys.argv[1]), Path(sys.argv[2]))
    else:
        jax.config.update("jax_enable_x64", True)
        check_results(int(sys.argv[1]))
        # One grid cell (with images left out), and many.
        boxes = [water_box(2), water_box(4), water_box(4).repeat((1, 1, 2))]
        check_lists(int(sys.argv[1]), boxes)
        check_runs(int(sys.argv[1]))
        check_small_lists(int(sys.argv[1]))
        check_pallas(int(sys.argv[1]))
        with tempfile.TemporaryDirectory() as kept:
            check_restart(int(sys.argv[1]), Path(kept))
        check_two_parts(int(sys.argv[1]))
