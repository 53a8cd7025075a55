"""Exchanges across interruptions and overflowing lists: nothing is lost, nothing is stale."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ase.io
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from test_restart import assert_same, inwards, potential_of, spheres

from distill.simulation import MDCheckpoints, MDConfig, TrajectoryWriter, run_md
from distill.simulation.blocks import allocate_lists

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = MDConfig(
    "nvt_langevin",
    timestep=2.0,
    steps=200,
    record_every=10,
    block_steps=40,
    friction=0.02,
    thermostat_time=100.0,
    temperatures=(200.0, 230.0, 260.0),
    exchange_every=20,
)


def springs(positions):
    return 2.0 * ((positions[1:] - positions[:-1] - 1.0) ** 2).sum()


class Killed(BaseException):
    """Nothing of `distill` catches it: as after SIGKILL, only what is on the disk remains."""


def writers_of(folder: Path, atoms: Atoms) -> list[TrajectoryWriter]:
    return [
        TrajectoryWriter(folder / name, atoms, append=True, replica=r)
        for r, name in enumerate(("run.extxyz", "run_1.extxyz", "run_2.extxyz"))
    ]


def interrupted_and_whole(potential, starts, config, tmp_path):
    """Results of a run that died after it had written frames, and of one that did not."""
    atoms, seen = Atoms(potential.numbers, starts[0]), []

    def die(frames):
        seen.append(frames.time[-1])
        if len(seen) == 4:
            raise Killed

    def go_on(name, *followers):
        return run_md(
            potential,
            starts,
            config,
            on_frames=[*writers_of(tmp_path / name, atoms), *followers],
            checkpoints=MDCheckpoints(tmp_path / name),
            progress=False,
        )

    with pytest.raises(Killed):
        go_on("parts", die)
    parts, whole = go_on("parts", die), go_on("whole")
    assert seen == [80.0, 160.0, 240.0, 320.0, 320.0, 400.0]
    assert_same(parts, whole, tmp_path / "parts", tmp_path / "whole")
    for name in ("run_1.extxyz", "run_2.extxyz"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    return parts, whole


@pytest.mark.parametrize("ensemble", ["nvt_langevin", "nvt_csvr", "nvt_nose_hoover"])
def test_restart_with_exchanges_is_exact(ensemble, tmp_path, toy_potential):
    potential = toy_potential(springs, np.full(4, 18))
    starts = np.tile(np.arange(4.0)[:, None] * np.ones(3), (3, 1, 1))
    config = replace(CONFIG, ensemble=ensemble)
    parts, whole = interrupted_and_whole(potential, starts, config, tmp_path)
    assert parts.state.exchange.rounds == 10
    assert int(whole.state.exchange.accepted.sum()) > 0
    images = [ase.io.read(tmp_path / "parts" / f"run{r}.extxyz", ":") for r in ("", "_1", "_2")]
    walkers = np.array([[image.info["walker"] for image in own] for own in images]).T
    np.testing.assert_array_equal(walkers, whole.frames.walker)
    assert (walkers != np.arange(3)).any()


def test_lists_stay_valid_when_temperatures_are_exchanged():
    """Every replica has its atoms elsewhere, and lists that grow on the way."""
    atoms = spheres()
    potential = potential_of(atoms)
    rng = np.random.default_rng(1)
    starts = np.stack([rng.permutation(atoms.positions) for _ in range(3)])
    velocities = np.stack([inwards(Atoms(positions=start)) for start in starts])
    config = replace(CONFIG, ensemble="nvt_csvr", thermostat_time=1000.0)
    run = run_md(potential, starts, config, velocities=velocities, progress=False)
    assert run.n_reallocations > 0 and int(run.state.exchange.accepted.sum()) > 1
    positions = run.frames.positions[1::2].reshape(-1, len(atoms), 3)
    fresh = jax.jit(jax.vmap(potential.energy))(
        jnp.asarray(positions), allocate_lists(potential, positions, None, True)
    )
    recorded = run.frames.potential_energy[1::2].ravel()
    assert recorded.std() > 0.01
    np.testing.assert_allclose(fresh, recorded, rtol=1e-4, atol=1e-6)
