"""Small things that several test files are made of.

Structures: `ethanol(seed)`, `water_box(per_side, seed)` (64 waters by default),
`triclinic_cell(seed)` (a small skewed cell of water and formaldehyde), `two_waters()`,
`random_rotation(seed)`. Records of a run: `frames_of(positions, ...)`.

Graphs: `two_paddings(structures, cutoff, elements)`. Labelled data: `morse_dataset(...)`.

Students: `small_student(**options)` (H, C, O, cutoff 4 Å, random parameters and statistics),
`random_variables(module, seed)`.

Finite differences of `label(structures) -> Labels`, central and in one batch:
`numerical_forces(label, atoms)`, `numerical_stress(label, atoms)`, `strained(atoms, strain)`.

Neighbour lists: `AT_ANY_COST`, with which rows of small systems stand in two parts.

Processes: `run_on_devices(count, file, *arguments)`, with cores of the CPU as devices.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.calculators.morse import MorsePotential

from distill.data import Dataset, Labels
from distill.graph import Graph
from distill.neighbors import batch_graphs
from distill.simulation import Frames
from distill.students import Student, StudentSpec, Uncertainty

AT_ANY_COST: dict[str, Any] = {
    "TWO_PARTS_FROM": 1,
    "WORTH": 10.0,
    "QUANTILES": (0.5,),
    "USUAL_ROOM": -10.0,
    "SPARE_SHARE": 0.0,
    "MOST_WIDE": 1.0,
}
"""Constants of `distill.neighbors.parts` with which rows of small systems stand in two parts."""

ELEMENTS = (1, 6, 8)
CUTOFF = 4.0
SMALL: dict[str, Any] = {
    "n_radial": 6,
    "n_channels": 4,
    "n_triples": 3,
    "hidden": (12, 8),
    "n_neighbors": 8.0,
}
TEN_ELEMENTS = (1, 6, 7, 8, 9, 15, 16, 17, 35, 53)
REFERENCE_ENERGIES = np.array([-13.6, -1035.0, -2041.0])


def ethanol(seed: int = 0, amplitude: float = 0.05) -> Atoms:
    """Ethanol, its atoms displaced at random."""
    atoms = molecule("CH3CH2OH")
    atoms.positions += amplitude * np.random.default_rng(seed).standard_normal((len(atoms), 3))
    return atoms


def frames_of(positions: np.ndarray, **values: np.ndarray) -> Frames:
    """Frames `[T, (R,) n, 3]` at 300 K without uncertainty and cell, unless `values` say so."""
    shape = positions.shape[:-2]
    return Frames(
        time=10.0 * np.arange(1, len(positions) + 1),
        positions=positions,
        velocities=np.zeros_like(positions),
        potential_energy=np.zeros(shape),
        kinetic_energy=np.zeros(shape),
        temperature=values.get("temperature", np.full(shape, 300.0)),
        conserved_energy=values.get("conserved_energy", np.zeros(shape)),
        uncertainty=values.get("uncertainty", np.zeros((*shape, 0))),
        cell=values.get("cell", np.zeros((*shape, 3, 3))),
        pressure=values.get("pressure", np.full(shape, np.nan)),
        walker=np.broadcast_to(np.arange(shape[1] if shape[1:] else 1).squeeze(), shape),
    )


def two_waters() -> Atoms:
    atoms = molecule("H2O") + molecule("H2O")
    atoms.positions[3:] += [0.0, 0.0, 3.0]
    return atoms


def morse_dataset(
    names: tuple[str, ...] = ("H2O",), count: int = 18, per_trajectory: int = 6
) -> Dataset:
    """Displaced molecules, labelled by ASE's Morse potential."""
    rng = np.random.default_rng(0)
    structures = [molecule(names[i % len(names)]) for i in range(count)]
    for atoms in structures:
        atoms.positions += rng.normal(scale=0.05, size=(len(atoms), 3))
        atoms.calc = MorsePotential(r0=1.2, rcut1=4.0, rcut2=4.4)
    labels = Labels(
        np.array([atoms.get_potential_energy() for atoms in structures]),
        [atoms.get_forces() for atoms in structures],
    )
    trajectories = [f"t{i // per_trajectory}" for i in range(count)]
    return Dataset.from_structures(structures, trajectories, "morse").labelled(labels)


def two_paddings(
    structures: list[Atoms], cutoff: float, elements: tuple[int, ...]
) -> Iterator[Graph]:
    """The same structures in float64 with little padding, and with more of every kind."""
    n, k = batch_graphs(structures, cutoff, elements).neighbors.shape
    for extra in (0, 1):
        graph = batch_graphs(
            structures,
            cutoff,
            elements,
            n_atoms=n + 9 * extra,
            n_neighbors=k + 7 * extra,
            n_systems=4 + 3 * extra,
            dtype=np.float64,
        )
        yield jax.tree.map(jnp.asarray, graph)


def water_box(per_side: int = 4, seed: int = 0) -> Atoms:
    """Periodic box of waters at 1 g/cm³ (12.42 Å for 64), randomly turned on a jittered grid."""
    rng = np.random.default_rng(seed)
    spacing = 12.42 / 4
    box = Atoms(cell=np.eye(3) * spacing * per_side, pbc=True)
    for corner in np.ndindex(per_side, per_side, per_side):
        water = molecule("H2O")
        water.positions -= water.get_center_of_mass()
        water.positions = water.positions @ random_rotation(int(rng.integers(2**31))).T
        water.positions += (np.array(corner) + 0.5) * spacing + rng.uniform(-0.15, 0.15, 3)
        box += water
    return box


def triclinic_cell(seed: int = 0) -> Atoms:
    """Water and formaldehyde in a skewed cell, narrower than two cutoffs of any model here."""
    atoms = molecule("H2O") + molecule("H2CO")
    atoms.positions[3:] += [2.6, 1.9, 1.4]
    atoms.set_cell([[5.6, 0.0, 0.0], [1.7, 5.1, 0.0], [-1.2, 0.9, 5.4]])
    atoms.pbc = True
    atoms.positions += 0.05 * np.random.default_rng(seed).standard_normal((len(atoms), 3))
    return atoms


def random_rotation(seed: int) -> np.ndarray:
    """Proper rotation `[3, 3]`, uniformly distributed."""
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def random_variables(module: Any, seed: int = 0) -> Any:
    """Flax variables of a student's module: fresh parameters, biases and statistics not trivial."""
    rows = (
        np.zeros((1, 1, 3), np.float32),
        np.zeros((1, 1), np.int32),
        np.zeros((1, 1), bool),
        np.zeros(1, np.int32),
    )
    shapes = jax.eval_shape(
        lambda *r: module.init({"params": jax.random.PRNGKey(0)}, *r), *map(jax.numpy.asarray, rows)
    )
    rng = np.random.default_rng(seed)

    def fill(path: Any, leaf: Any) -> np.ndarray:
        name = path[-1].key
        draw = rng.standard_normal(leaf.shape)
        if name == "scale":
            draw = 0.5 + np.abs(draw)
        elif name == "energy_scale":
            draw = np.asarray(0.7)
        elif name == "mean" or name == "bias":
            draw = 0.3 * draw
        elif name == "kernel":
            draw = draw / np.sqrt(leaf.shape[-2])
        else:  # radial weights
            draw = 0.5 * draw
        return draw.astype(np.float32)

    kept = {name: shapes[name] for name in ("params", "statistics")}
    return jax.tree_util.tree_map_with_path(fill, kept)


@lru_cache
def small_student(**options: Any) -> Student:
    """Student of H, C and O with random parameters; `options` as of the module."""
    spec = StudentSpec("moment", ELEMENTS, CUTOFF, {**SMALL, **options})
    return Student(spec, random_variables(spec.build()), REFERENCE_ENERGIES)


def random_uncertainty(width: int) -> Uncertainty:
    """For students of `width` features, the last hidden layer's."""
    rng, n = np.random.default_rng(0), len(ELEMENTS)
    return Uncertainty(
        whitening=rng.normal(size=(n, width, width)),
        offset=rng.normal(size=(n, width)),
        factor=rng.uniform(0.1, 1.0, n),
        exponent=rng.uniform(0.5, 1.5, n),
    )


def strained(atoms: Atoms, strain: np.ndarray) -> Atoms:
    """Copy with cell and positions deformed by `1 + strain`."""
    copy = atoms.copy()
    copy.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=False)
    copy.positions = atoms.positions @ (np.eye(3) + strain)
    return copy


def numerical_forces(
    label: Callable[[list[Atoms]], Any], atoms: Atoms, rows: Any = None, step: float = 1e-4
) -> np.ndarray:
    """Forces `[len(rows), 3]` (all atoms by default) by central differences of the energy."""
    rows = range(len(atoms)) if rows is None else rows
    structures = []
    for row in rows:
        for axis in range(3):
            for sign in (1, -1):
                copy = atoms.copy()
                copy.positions[row, axis] += sign * step
                structures.append(copy)
    energies = label(structures).energy.reshape(-1, 3, 2)
    return -(energies[..., 0] - energies[..., 1]) / (2 * step)


def numerical_stress(
    label: Callable[[list[Atoms]], Any], atoms: Atoms, step: float = 1e-4
) -> np.ndarray:
    """Stress `[3, 3]` in ASE's sign by central differences, cell and positions strained alike."""
    structures = []
    for a, b in np.ndindex(3, 3):
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[a, b] += 0.5 * sign * step
            strain[b, a] += 0.5 * sign * step
            structures.append(strained(atoms, strain))
    energies = label(structures).energy.reshape(3, 3, 2)
    return (energies[..., 0] - energies[..., 1]) / (2 * step * atoms.cell.volume)


def structures_of(atoms: Atoms, frames: Frames) -> list[Atoms]:
    """The frames of one run, each in its own cell."""
    seen = []
    for positions, cell in zip(frames.positions, frames.cell, strict=True):
        copy = atoms.copy()
        copy.set_cell(cell)
        copy.positions[:] = positions
        seen.append(copy)
    return seen


def run_on_devices(count: int, file: str, *arguments: str) -> None:
    """Run a Python file in a process that has `count` devices of a CPU; it must succeed."""
    root = Path(__file__).resolve().parent.parent
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "experiments")]),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}",
    }
    command = [sys.executable, file, *arguments]
    done = subprocess.run(command, env=environment, timeout=600, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def check_rebuilds(search: Any, start: jax.Array, skin: float) -> None:
    """When lists of a search, of either kind, are rebuilt and when they are too old.

    Args:
        search: has `allocate`, `update` and `is_stale`.
        start: `[n, 3]`, of at least eight atoms.
        skin: Å, of the search.
    """
    update = jax.jit(search.update)
    nbrs = search.allocate(start)
    for share, rebuilt, stale in ((0.36, False, False), (0.39, True, False), (0.52, True, True)):
        moved = start.at[7, 1].add(share * skin)
        assert bool(search.is_stale(nbrs, moved)) == stale
        updated = update(nbrs, moved)
        assert bool(updated.stale) == stale
        assert bool((updated.reference_positions == moved).all()) == rebuilt
        assert not search.is_stale(updated, moved)
        # The flag stays although the list is good again.
        assert bool(update(updated, moved).stale) == stale
    # A list that replaces one that was too old leaves more room for a step.
    cautious = search.allocate(start, previous=updated)
    for share, rebuilt in ((0.29, False), (0.31, True)):
        moved = start.at[7, 1].add(share * skin)
        moved_list = update(cautious, moved)
        assert bool((moved_list.reference_positions == moved).all()) == rebuilt
    again = search.allocate(start, previous=cautious)
    assert again.rebuild_fraction == cautious.rebuild_fraction
    assert search.allocate(start).rebuild_fraction > again.rebuild_fraction
