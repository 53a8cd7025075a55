"""The guard of sampled trajectories, starts from a dataset, and spread orders."""

from __future__ import annotations

import re

import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from builders import frames_of, two_waters

from distill.data import Dataset, save
from distill.errors import ConfigError, SimulationError
from distill.sampling import (
    Guard,
    GuardConfig,
    MDSamplingConfig,
    SystemConfig,
    make_systems,
    sample_by_md,
    spread_order,
)
from distill.simulation import Frames

OFF = {"min_distance": 0.0, "bonds": 0.0, "max_temperature": 0.0, "max_uncertainty": 0.0}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"min_distance": 0.6}, r"atoms 0\.\d\d Å apart at 30 fs"),
        ({"bonds": 1.3}, r"bonds of atoms \[0, 1\] changed at 30 fs"),
        ({"max_temperature": 2.0}, r"700 K at 30 fs"),
        ({"max_uncertainty": 0.5}, r"expected force error 0\.90 eV/Å at 30 fs"),
    ],
)
def test_a_replica_ends_before_its_first_bad_frame(config, reason):
    atoms = two_waters()
    positions = np.tile(atoms.positions, (5, 2, 1, 1))
    temperature, uncertainty = np.full((5, 2), 310.0), np.full((5, 2, 6), 0.1)
    if "min_distance" in config:  # a hydrogen of the second replica, and it stays there
        positions[2:, 1, 1] = positions[2:, 1, 0] + [0.0, 0.4, 0.3]
    if "bonds" in config:
        positions[2, 1, 1] += [0.0, 1.0, 0.0]  # gone for one frame only
    temperature[2, 1], uncertainty[2, 1, 4] = 700.0, 0.9
    guard = Guard(atoms, positions[0], 300.0, GuardConfig(**{**OFF, **config}))
    whole = frames_of(positions, temperature=temperature, uncertainty=uncertainty)
    for part in slice(0, 2), slice(2, 5):
        guard(Frames(**{name: values[part] for name, values in vars(whole).items()}))
    assert guard.kept.tolist() == [5, 2]
    assert guard.reasons[0] is None
    assert re.fullmatch(reason, guard.reasons[1] or "")
    np.testing.assert_array_equal(guard.positions, positions)


def test_bonds_are_seen_through_the_walls_of_the_cell():
    atoms = molecule("H2O")
    atoms.set_cell([6.0, 6.0, 6.0])
    atoms.pbc = True
    wrapped = atoms.copy()
    wrapped.positions += [0.0, 5.5, 0.3]
    wrapped.wrap()
    guard = Guard(atoms, atoms.positions[None], 300.0, GuardConfig(bonds=1.3))
    guard(frames_of(np.stack([atoms.positions, wrapped.positions])[:, None]))
    assert guard.kept.tolist() == [2]


def test_a_run_stops_when_every_replica_has_ended():
    atoms = molecule("H2O")
    bad = np.zeros((2, 1, 3, 3))
    guard = Guard(atoms, atoms.positions[None], 300.0, GuardConfig())
    with pytest.raises(SimulationError, match="every replica"):
        guard(frames_of(bad))
    assert guard.kept.tolist() == [0]


def test_negative_limits_are_refused():
    with pytest.raises(ConfigError, match=r"guard\.bonds"):
        GuardConfig(bonds=-1.0)


def run_config(guard: GuardConfig | None, **changes: float) -> MDSamplingConfig:
    settings = {"frames": 20, "spacing": 10.0, "equilibration": 10.0, "rattle": 0.0, **changes}
    return MDSamplingConfig((100.0,), replicas=2, guard=guard, seed=4, **settings)


def test_trajectories_are_cut_where_the_potential_lets_atoms_fly(
    toy_potential, quick_compilation, capsys
):
    atoms = Atoms("H2", [[0, 0, 0], [0.74, 0, 0]])

    def make(start: Atoms):
        # flat at the bottom, downhill beyond 1.5 Å: the bond breaks sooner or later
        def energy(x):
            r = jnp.sqrt(((x[1] - x[0]) ** 2).sum() + 1e-9)
            return jnp.where(r < 0.5, 20.0 * (r - 0.5) ** 2, -0.05 * (r - 0.5))

        return toy_potential(energy, start.numbers)

    short = {"spacing": 4.0, "equilibration": 4.0}
    whole = sample_by_md(make, atoms, run_config(None, **short), progress=False)
    guard = GuardConfig(bonds=1.5)
    cut = sample_by_md(make, atoms, run_config(guard, **short), progress=False)
    assert 0 < len(cut) < len(whole) == 40
    assert "changed at" in capsys.readouterr().out
    for name in set(cut.trajectory):  # the frames before are those of the run without guard
        own = [dataset.trajectory == name for dataset in (cut, whole)]
        kept = cut.subset(own[0])
        np.testing.assert_allclose(
            kept.positions, whole.subset(own[1]).positions[: len(kept.positions)]
        )
        assert kept.parent.tolist() == [-1, *range(len(kept) - 1)]
    with pytest.raises(SimulationError, match="every trajectory ended"):
        sample_by_md(make, atoms, run_config(guard, equilibration=400.0), progress=False)


def test_frames_before_an_explosion_are_kept(toy_potential, quick_compilation, capsys):
    atoms = Atoms("O2", [[0, 0, 0], [0.74, 0, 0]])

    def make(start: Atoms):
        def energy(x):  # NaN from 4 Å on
            r = jnp.sqrt(((x[1] - x[0]) ** 2).sum() + 1e-9)
            return -0.2 * r + 1e-9 * jnp.sqrt(4.0 - r)

        return toy_potential(energy, start.numbers)

    config = run_config(GuardConfig(max_temperature=0.0), spacing=2.0, frames=400)
    with pytest.raises(SimulationError, match="NaN"):
        sample_by_md(make, atoms, run_config(None, spacing=2.0, frames=400), progress=False)
    kept = sample_by_md(make, atoms, config, progress=False)
    assert 0 < len(kept) < 800
    assert np.isfinite(kept.positions).all()
    assert "frames before are kept" in capsys.readouterr().out


# Starts


def test_last_usable_frames_are_starts(tmp_path):
    structures = [molecule("H2O") for _ in range(5)]
    for k, atoms in enumerate(structures):
        atoms.positions += k
    dataset = Dataset.from_structures(structures, ["b", "a", "b", "a", "a"], "test")
    dataset.flag[4] = 2
    save(dataset, tmp_path / "frames.h5")
    systems = make_systems(SystemConfig(dataset=tmp_path / "frames.h5"))
    assert list(systems) == ["b", "a"]
    np.testing.assert_allclose(systems["b"].positions, structures[2].positions)
    np.testing.assert_allclose(systems["a"].positions, structures[3].positions)
    with pytest.raises(ConfigError, match="exactly one"):
        make_systems(SystemConfig(structure="H2O", dataset=tmp_path / "frames.h5"))


# Order


def test_every_beginning_is_spread():
    names = [f"run-{k}" for k in range(7) for _ in range(16 if k else 5)]
    order = spread_order(names)
    assert sorted(order) == list(range(len(names)))
    assert order.tolist() != spread_order(names, seed=1).tolist()
    for n in (7, 14, 35):
        counts = [[names[i] for i in order[:n]].count(name) for name in sorted(set(names))]
        assert counts == [n // 7] * 7
    own = [i - 5 for i in order[:35] if names[i] == "run-1"]
    assert own == [0, 8, 4, 12, 2]
    assert len(spread_order([])) == 0
