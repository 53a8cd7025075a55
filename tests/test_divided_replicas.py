"""Replicas that devices divide among them move as on one device."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ase import Atoms
from builders import run_on_devices
from test_restart import CONFIG, inwards, potential_of, spheres

from distill.simulation import MDCheckpoints, MDConfig, run_md

LADDER = replace(
    CONFIG,
    ensemble="nvt_langevin",
    temperatures=(200.0, 210.0, 220.0, 230.0),
    exchange_every=20,
)
"""Temperatures are exchanged, while neighbour lists grow as in all these runs."""


def run(config: MDConfig, devices: Any, folder: Path | None = None) -> Any:
    atoms = spheres()
    rng = np.random.default_rng(1)
    starts = np.stack([rng.permutation(atoms.positions) for _ in range(4)])
    return run_md(
        potential_of(atoms),
        starts,
        config,
        velocities=np.stack([inwards(Atoms(positions=start)) for start in starts]),
        checkpoints=None if folder is None else MDCheckpoints(folder),
        devices=devices,
        progress=False,
    )


def test_divided_replicas_are_those_of_one_device(tmp_path: Path) -> None:
    run_on_devices(2, __file__, str(tmp_path))


def test_replicas_that_do_not_divide_are_refused() -> None:
    device = jax.devices()[0]
    with pytest.raises(ValueError, match="must be different ones"):
        run(CONFIG, [device, device])
    atoms = spheres()
    with pytest.raises(ValueError, match="one system cannot be divided among 1 devices"):
        run_md(potential_of(atoms), atoms.positions, CONFIG, devices=[device])


def check(folder: Path) -> None:
    both = jax.devices()
    alone, divided = run(LADDER, ()), run(LADDER, both)
    assert alone.n_reallocations > 0
    assert len(divided.state.position.sharding.device_set) == len(both)
    # Two devices, then one: an interrupted run may go on with another number.
    run(replace(LADDER, steps=80), both, folder)
    resumed = run(LADDER, (), folder)
    for one, other, third in zip(
        *(jax.tree.leaves(found.state) for found in (alone, divided, resumed)), strict=True
    ):
        # XLA may fuse, and so round, differently for another number of devices.
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(third, one, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(divided.frames.positions, alone.frames.positions, atol=1e-5)
    np.testing.assert_array_equal(divided.frames.walker, alone.frames.walker)
    assert int(divided.state.exchange.accepted.sum()) > 1


if __name__ == "__main__":
    jax.config.update("jax_disable_most_optimizations", True)
    check(Path(sys.argv[1]))
