"""Starting structures of the common cases: a molecule, a molecular liquid, a strained crystal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms, units
from ase.build import make_supercell, molecule
from scipy.spatial.transform import Rotation

from distill.errors import ConfigError, UnsupportedStructureError
from distill.neighbors import neighbor_table

CONTACT = 1.7
"""Å: closest distance of atoms of two molecules in a packed liquid (a hydrogen bond: 1.8)."""

MAX_SWEEPS = 4000
"""Steps of the overlap removal; densities of real liquids need some hundred."""


def read_structure(name: str) -> Atoms:
    """A molecule of `ase.build.molecule` by name, or the first structure of a file.

    Raises:
        ConfigError: neither.
    """
    if Path(name).is_file():
        return ase.io.read(name, index=0)
    try:
        return molecule(name)
    except (KeyError, NotImplementedError) as error:
        raise ConfigError(
            f"structure {name!r} is neither a file nor a molecule that ase.build.molecule knows"
        ) from error


def pack_liquid(molecules: Mapping[str, int], density: float, seed: int = 0) -> Atoms:
    """Rigid molecules at random places and orientations in a cubic periodic cell.

    Overlaps are pushed apart by moving and turning whole molecules. The result is a start for a
    short equilibration, not a sample of the liquid.

    Args:
        molecules: names or files (see `read_structure`) and how many of each.
        density: g/cm³.
        seed: same seed, same structure.

    Raises:
        ConfigError: no molecules or no positive density.
        UnsupportedStructureError: they do not fit without contacts below `CONTACT`.
    """
    parts = [read_structure(name) for name, count in molecules.items() for _ in range(count)]
    if not parts or not density > 0:
        raise ConfigError("a liquid needs at least one molecule and a density above 0 g/cm³")
    mass = sum(part.get_masses().sum() for part in parts)
    edge = float((mass / (density * units.kg * 1e-3 * 1e-24)) ** (1 / 3))
    rng = np.random.default_rng(seed)
    centers = rng.uniform(0, edge, (len(parts), 3))
    arms = [
        Rotation.random(random_state=int(rng.integers(2**31))).apply(
            part.positions - part.positions.mean(0)
        )
        for part in parts
    ]
    owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    sizes = [float(np.linalg.norm(arm, axis=1).max()) + 1.0 for arm in arms]
    cell = np.eye(3) * edge
    positions = np.zeros((len(owner), 3))
    for _ in range(MAX_SWEEPS):
        positions = np.concatenate([c + arm for c, arm in zip(centers, arms, strict=True)])
        push, free = _overlap_push(positions, cell, owner)
        if free:
            numbers = np.concatenate([part.numbers for part in parts])
            return Atoms(numbers, positions=positions, cell=cell, pbc=True)
        for k in np.unique(owner[push.any(1)]):
            own = push[owner == k]
            centers[k] += own.sum(0)
            torque = np.cross(arms[k], own).sum(0) / sizes[k] ** 2
            arms[k] = Rotation.from_rotvec(torque).apply(arms[k])
    raise UnsupportedStructureError(
        f"{len(parts)} molecules at {density} g/cm³ still have contacts below {CONTACT} Å after "
        f"{MAX_SWEEPS} steps: choose a lower density, or another seed"
    )


def _overlap_push(
    positions: np.ndarray, cell: np.ndarray, owner: np.ndarray
) -> tuple[np.ndarray, bool]:
    """Å by which each atom should move to leave other molecules, `[n, 3]`; whether all are free.

    Pushes may cancel, those of two opposite images for example: none does not mean no contact.
    """
    table = neighbor_table(positions, cell, np.ones(3, bool), CONTACT)
    rows, others, shifts, vectors = table.pairs(positions, cell)
    # An image of the molecule itself counts as another one.
    foreign = (owner[rows] != owner[others]) | shifts.any(1)
    rows, vectors = rows[foreign], vectors[foreign]
    distances = np.maximum(np.linalg.norm(vectors, axis=1), 1e-6)
    push = np.zeros_like(positions)
    steps = 0.5 * (CONTACT + 0.01 - distances) / distances
    np.add.at(push, rows, -steps[:, None] * vectors)
    return push, len(rows) == 0


def make_crystal(name: str, repeats: Sequence[int] = (1, 1, 1), strain: float = 0.0) -> Atoms:
    """Supercell of a crystal.

    Args:
        name: file with the unit cell, or an element with a known bulk structure (`ase.build.bulk`).
        repeats: cells along each lattice vector.
        strain: isotropic change of all lengths, e.g. 0.01.

    Raises:
        ConfigError: the structure is unknown or not periodic.
    """
    from ase.build import bulk

    if Path(name).is_file():
        atoms = ase.io.read(name, index=0)
    else:
        try:
            atoms = bulk(name)
        except (ValueError, KeyError, RuntimeError) as error:
            raise ConfigError(
                f"crystal {name!r} is neither a file nor an element that ase.build.bulk knows "
                f"({error})"
            ) from error
    if not atoms.pbc.all():
        raise ConfigError(f"{name} is not periodic in all directions: it is no crystal")
    atoms = make_supercell(atoms, np.diag(np.asarray(repeats, int)))
    atoms.set_cell(atoms.cell.array * (1 + strain), scale_atoms=True)
    return atoms
