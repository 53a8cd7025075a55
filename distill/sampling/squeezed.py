"""Close contacts: copies of a structure in which atoms of two molecules were pushed together.

Dynamics at moderate temperatures never shows a student how steeply atoms repel each other, and
where it was never told, its energy may fall without end. A run that comes there collapses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from distill.data import Dataset
from distill.errors import ConfigError, UnsupportedStructureError
from distill.neighbors import neighbor_table
from distill.sampling.rattle import MIN_RELATIVE_DISTANCE, rattle

BOND_FACTOR = 1.3
"""Sums of covalent radii up to which two atoms are bonded."""

ATTEMPTS = 20
"""Pairs that are tried for one contact."""


@dataclass(frozen=True)
class SqueezeConfig:
    """How atoms are pushed together.

    Attributes:
        copies: how many.
        contacts: pairs that are pushed together in each copy.
        closest: shortest distance of a pair that is not bonded, in sums of covalent radii. Label
            with a `max_force` that leaves out what no run can reach.
        reach: Å, largest distance from which a pair is pushed together.
        displacement: Å, standard deviation of the displacements of all atoms, per component.
        seed: same seed, same copies.

    Raises:
        ConfigError: no copies or contacts, or lengths out of range.
    """

    copies: int = 20
    contacts: int = 1
    closest: float = 1.0
    reach: float = 4.0
    displacement: float = 0.03
    seed: int = 0

    def __post_init__(self) -> None:
        if self.copies < 1 or self.contacts < 1:
            raise ConfigError("squeeze.copies and squeeze.contacts must be at least 1")
        if not (0.3 <= self.closest <= BOND_FACTOR and 0 < self.reach < np.inf):
            raise ConfigError(
                f"squeeze.closest is a share of the sum of covalent radii from 0.3 to "
                f"{BOND_FACTOR}, and squeeze.reach a length in Å, not {self.closest} and "
                f"{self.reach}"
            )
        if not 0 <= self.displacement < np.inf:
            raise ConfigError(f"squeeze.displacement is {self.displacement}: give Å from 0 on")


def sample_squeezed(atoms: Atoms, config: SqueezeConfig, *, system: str | None = None) -> Dataset:
    """Copies of `atoms`, displaced, with pairs of atoms at random distances down to the closest.

    Every pair of elements is as likely. In half of the contacts whole molecules move, else the two
    atoms alone; both sides by the same length. In a network, or in a single molecule, atoms move
    alone.

    Args:
        atoms: start.
        config: settings.
        system: first part of the name of the trajectory; the formula by default.

    Returns:
        Unlabelled structures of one trajectory: `atoms` first, then its copies, whose parent is 0.

    Raises:
        UnsupportedStructureError: no two atoms that are not bonded can be pushed together, or
            atoms of the start lie on top of each other.
    """
    rng = np.random.default_rng(config.seed)
    structures, origins = [atoms], ["start"]
    for number in range(config.copies):
        moved = atoms.copy()
        if config.displacement > 0:
            moved = rattle([atoms], config.displacement, config.seed + number)[0]
        contacts = [_squeeze(moved, config, rng) for _ in range(config.contacts)]
        made = [contact for contact in contacts if contact]
        if not made:
            raise UnsupportedStructureError(
                f"{atoms.get_chemical_formula()}: no two atoms within {config.reach} Å that are "
                f"not bonded could be pushed together down to {config.closest} sums of their "
                "covalent radii: give a larger reach or a smaller closest"
            )
        structures.append(moved)
        origins.append("squeeze:" + "+".join(made))
    return Dataset.from_structures(
        structures,
        f"{system or atoms.get_chemical_formula()}-squeeze-s{config.seed}",
        origins,
        parent=[-1, *[0] * config.copies],
    )


@dataclass(frozen=True)
class Contacts:
    """Pairs that can be pushed together: of different molecules, or not bonded where all is one.

    Attributes:
        first: `[P]`, atom.
        second: `[P]`, atom.
        vectors: `[P, 3]`, Å, from the first to the second, through the boundary where that is near.
        molecule: `[n]`, number of the molecule of each atom.
        bonds: `[B, 2]`, bonded atoms, both ways.
    """

    first: np.ndarray
    second: np.ndarray
    vectors: np.ndarray
    molecule: np.ndarray
    bonds: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Distances `[P]`, Å."""
        return np.asarray(np.linalg.norm(self.vectors, axis=1))

    @property
    def has_molecules(self) -> bool:
        """Whether there are several molecules or free atoms, not a network or a single one."""
        return bool(self.molecule.max(initial=0) > 0)

    def pushed(self, atoms: Atoms, pair: int, length: float, whole: bool) -> Atoms:
        """A copy with a pair at another distance in Å, for which both sides move equally far.

        With `whole` their molecules move, else the two atoms.
        """
        vector = self.vectors[pair]
        step = 0.5 * (1 - length / np.linalg.norm(vector)) * vector
        moved = atoms.copy()
        for atom, along in ((self.first[pair], step), (self.second[pair], -step)):
            moved.positions[self.molecule == self.molecule[atom] if whole else atom] += along
        return moved


def find_contacts(atoms: Atoms, reach: float) -> Contacts:
    """Pairs within `reach`, Å; each is there in both directions."""
    i, j, vectors = _pairs(atoms, max(reach, BOND_FACTOR * float(sums_of_radii(atoms).max())))
    lengths = np.linalg.norm(vectors, axis=1)
    bonds = lengths < BOND_FACTOR * sums_of_radii(atoms)[i, j]
    graph = coo_array((np.ones(bonds.sum()), (i[bonds], j[bonds])), shape=(len(atoms),) * 2)
    count, molecule = connected_components(graph, directed=False)
    apart = molecule[i] != molecule[j] if count > 1 else ~bonds & (i != j)
    chosen = apart & (lengths < reach)
    return Contacts(
        i[chosen], j[chosen], vectors[chosen], molecule, np.stack([i[bonds], j[bonds]], axis=1)
    )


def sums_of_radii(atoms: Atoms) -> np.ndarray:
    """Covalent radii of all pairs, added: `[n, n]`, Å."""
    radii = covalent_radii[atoms.numbers]
    return np.asarray(radii[:, None] + radii)


def _squeeze(atoms: Atoms, config: SqueezeConfig, rng: np.random.Generator) -> str:
    """Push one pair of `atoms` together, in place; says which, or nothing where none could be."""
    contacts = find_contacts(atoms, config.reach)
    floor = config.closest * sums_of_radii(atoms)
    least, lengths = floor[contacts.first, contacts.second], contacts.lengths
    usable = np.flatnonzero(lengths > least)
    bonds = tuple(contacts.bonds.T)
    floor[bonds] = np.minimum(floor, MIN_RELATIVE_DISTANCE * sums_of_radii(atoms))[bonds]
    kinds = np.sort(atoms.numbers[np.stack([contacts.first, contacts.second], axis=1)], axis=1)
    choices = np.unique(kinds[usable], axis=0)
    for _ in range(ATTEMPTS if len(usable) else 0):
        kind = choices[rng.integers(len(choices))]
        pair = int(rng.choice(usable[(kinds[usable] == kind).all(axis=1)]))
        length = rng.uniform(least[pair], lengths[pair])
        whole = contacts.has_molecules and rng.random() < 0.5
        tried = contacts.pushed(atoms, pair, length, whole)
        if _has_room(tried, floor):
            atoms.positions = tried.positions
            symbols = np.asarray(atoms.get_chemical_symbols())
            names = "-".join(sorted(symbols[[contacts.first[pair], contacts.second[pair]]]))
            return f"{names}:{length:.2f}A"
    return ""


def _pairs(atoms: Atoms, reach: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both atoms `[P]` and vectors `[P, 3]` of all pairs within reach, images included."""
    table = neighbor_table(atoms.positions, atoms.cell.array, atoms.pbc, reach)
    i, j, _, vectors = table.pairs(atoms.positions, atoms.cell.array)
    return i, j, vectors


def _has_room(atoms: Atoms, floor: np.ndarray) -> bool:
    """Whether no pair is closer than its floor, but for rounding."""
    i, j, vectors = _pairs(atoms, float(floor.max()) + 0.1)
    return bool((np.linalg.norm(vectors, axis=1) > floor[i, j] - 1e-9).all())
