"""Close contacts: copies of a structure in which atoms of two molecules were pushed together.

Dynamics at moderate temperatures never shows a student how steeply atoms repel each other, and
where it was never told, its energy may fall without end. A run that comes there collapses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms

from distill.bonds import (
    BOND_FACTOR,
    NearPairs,
    bond_reach,
    find_bonds,
    near_pairs,
    number_molecules,
    sums_of_radii,
)
from distill.data import Dataset
from distill.errors import ConfigError, UnsupportedStructureError
from distill.sampling.rattle import rattle

SHORTEST_BOND = 0.6
"""Sums of covalent radii: no bond may be shorter in a start, or become so."""

ATTEMPTS = 20
"""Pairs that are tried for one contact."""


@dataclass(frozen=True)
class SqueezeConfig:
    """How atoms are pushed together.

    Attributes:
        copies: how many.
        contacts: pairs that are pushed together in each copy, each of other molecules (or atoms);
            fewer where there is no room for more.
        closest: shortest distance of a pair that is not bonded, in sums of covalent radii. Label
            with a `max_force` that leaves out what no run can reach.
        reach: Å, largest distance from which a pair is pushed together.
        displacement: Å, standard deviation of the displacements of all atoms, per component.
        seed: same seed, same copies.

    Raises:
        ConfigError: no copies or contacts or no whole number of them, or lengths out of range.
    """

    copies: int = 20
    contacts: int = 1
    closest: float = 1.0
    reach: float = 4.0
    displacement: float = 0.03
    seed: int = 0

    def __post_init__(self) -> None:
        counts = self.copies, self.contacts
        if not all(isinstance(count, int) and count >= 1 for count in counts):
            raise ConfigError(
                f"squeeze.copies and squeeze.contacts must be whole numbers from 1 on, not {counts}"
            )
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
    _require_room(atoms)
    rng = np.random.default_rng(config.seed)
    structures, origins = [atoms], ["start"]
    for number in range(config.copies):
        moved = atoms.copy()
        if config.displacement > 0:
            moved = rattle([atoms], config.displacement, config.seed + number)[0]
        free = np.ones(len(atoms), bool)
        contacts = [_squeeze(moved, atoms, free, config, rng) for _ in range(config.contacts)]
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
        bonds: between atoms that are bonded.
    """

    first: np.ndarray
    second: np.ndarray
    vectors: np.ndarray
    molecule: np.ndarray
    bonds: NearPairs

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
            moved.positions[self.moving(atom, whole)] += along
        return moved

    def moving(self, atom: int, whole: bool) -> np.ndarray:
        """`[n]` bool: the atom, or with `whole` its molecule."""
        if whole:
            return np.asarray(self.molecule == self.molecule[atom])
        return np.arange(len(self.molecule)) == atom


def find_contacts(atoms: Atoms, reach: float, reference: Atoms | None = None) -> Contacts:
    """Pairs within `reach`, Å; each is there in both directions.

    Args:
        atoms: where pairs are looked for.
        reach: Å.
        reference: the same atoms where it is clear what is bonded, by distances: `atoms` may be
            squeezed already. By default `atoms`.
    """
    whole = atoms if reference is None else reference
    bonds = find_bonds(whole)
    molecule = number_molecules(len(whole), bonds)
    pairs = near_pairs(atoms, reach)
    i, j = pairs.first, pairs.second
    apart = molecule[i] != molecule[j] if molecule.any() else (i != j) & ~pairs.among(bonds)
    pairs = pairs.chosen(apart)
    return Contacts(pairs.first, pairs.second, pairs.vectors, molecule, bonds)


def _squeeze(
    atoms: Atoms,
    reference: Atoms,
    free: np.ndarray,
    config: SqueezeConfig,
    rng: np.random.Generator,
) -> str:
    """Push one pair of `atoms` together, in place; says which, or nothing where none could be.

    What moved is not `free` `[n]` any more, so that a contact stays as it was said to be.
    """
    contacts = find_contacts(atoms, config.reach, reference)
    least = config.closest * sums_of_radii(atoms, contacts.first, contacts.second)
    lengths = contacts.lengths
    usable = np.flatnonzero((lengths > least) & free[contacts.first] & free[contacts.second])
    kinds = np.sort(atoms.numbers[np.stack([contacts.first, contacts.second], axis=1)], axis=1)
    choices = np.unique(kinds[usable], axis=0)
    for _ in range(ATTEMPTS if len(usable) else 0):
        kind = choices[rng.integers(len(choices))]
        pair = int(rng.choice(usable[(kinds[usable] == kind).all(axis=1)]))
        length = rng.uniform(least[pair], lengths[pair])
        whole = contacts.has_molecules and rng.random() < 0.5
        tried = contacts.pushed(atoms, pair, length, whole)
        if _has_room(tried, contacts.bonds, config.closest):
            atoms.positions = tried.positions
            for atom in (contacts.first[pair], contacts.second[pair]):
                free[contacts.moving(atom, contacts.has_molecules)] = False
            symbols = np.asarray(atoms.get_chemical_symbols())
            names = "-".join(sorted(symbols[[contacts.first[pair], contacts.second[pair]]]))
            return f"{names}:{length:.2f}A"
    return ""


def _has_room(atoms: Atoms, bonds: NearPairs, closest: float) -> bool:
    """Whether no pair is closer than allowed, but for rounding."""
    pairs = near_pairs(atoms, bond_reach(atoms, max(closest, SHORTEST_BOND)) + 0.1)
    factor = np.where(pairs.among(bonds), min(closest, SHORTEST_BOND), closest)
    least = factor * sums_of_radii(atoms, pairs.first, pairs.second)
    return bool((pairs.lengths > least - 1e-9).all())


def _require_room(atoms: Atoms) -> None:
    """Raises UnsupportedStructureError where atoms lie on top of each other."""
    bonds = find_bonds(atoms, SHORTEST_BOND)
    if len(bonds.first):
        nearest = int(bonds.lengths.argmin())
        raise UnsupportedStructureError(
            f"atoms {bonds.first[nearest]} and {bonds.second[nearest]} of "
            f"{atoms.get_chemical_formula()} are {bonds.lengths[nearest]:.2f} Å apart: relax it "
            "first"
        )
