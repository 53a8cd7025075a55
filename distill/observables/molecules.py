"""Molecules of a structure, made whole, and their radius of gyration."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order

from distill.bonds import find_bonds, number_molecules
from distill.errors import UnsupportedStructureError


class Molecules:
    """Which atoms belong together, found once, in the structure from which a run starts.

    Raises:
        UnsupportedStructureError: the bonds go on through the periodic images without an end, or
            there are single atoms only.
    """

    def __init__(self, atoms: Atoms) -> None:
        bonds = find_bonds(atoms)
        i, j, shifts, _ = bonds
        n = len(atoms)
        graph = coo_array((np.ones(len(i)), (i, j)), shape=(n, n)).tocsr()
        member = number_molecules(n, bonds)
        count = int(member.max(initial=-1)) + 1
        step = {(a, b): s for a, b, s in zip(i.tolist(), j.tolist(), shifts, strict=True)}
        self._images = np.zeros((n, 3))
        for molecule in range(count):
            order, before = breadth_first_order(graph, int(np.argmax(member == molecule)))
            for atom in order[1:].tolist():
                parent = int(before[atom])
                self._images[atom] = self._images[parent] + step[parent, atom]
        open_ends = self._images[i] + shifts != self._images[j]
        if open_ends.any():
            atom = int(i[open_ends.any(1)][0])
            raise UnsupportedStructureError(
                f"the bonds at atom {atom} go on through the periodic images without an end: a "
                "radius of gyration is only defined for molecules (set gyration=false)"
            )
        self._order = np.argsort(member, kind="stable")
        self._starts = np.searchsorted(member[self._order], np.arange(count))
        self._masses = atoms.get_masses()[self._order][:, None]
        self._mass = np.add.reduceat(self._masses, self._starts)
        formulas = [atoms[member == m].get_chemical_formula() for m in range(count)]
        sizes = np.bincount(member)
        self.formulas = sorted({f for f, size in zip(formulas, sizes, strict=True) if size > 1})
        if not self.formulas:
            raise UnsupportedStructureError(
                "the structure holds single atoms only, which have no radius of gyration (set "
                "gyration=false)"
            )
        self._of = [np.array([f == formula for f in formulas]) for formula in self.formulas]

    def radius_of_gyration(self, positions: np.ndarray, cell: np.ndarray) -> np.ndarray:
        """Å, mean over the molecules of each of `formulas`, by mass, `[..., formulas]`.

        Args:
            positions: `[..., n, 3]`, Å, unwrapped since the structure from which the run starts.
            cell: `[..., 3, 3]`, Å.
        """
        whole = (np.asarray(positions, np.float64) + self._images @ cell)[..., self._order, :]

        def by_molecule(values: np.ndarray) -> np.ndarray:
            return np.add.reduceat(self._masses * values, self._starts, axis=-2) / self._mass

        centre = by_molecule(whole)
        members = np.repeat(
            np.arange(len(self._starts)), np.diff([*self._starts, len(self._order)])
        )
        squares = ((whole - centre[..., members, :]) ** 2).sum(-1, keepdims=True)
        radius = np.sqrt(by_molecule(squares)[..., 0])
        return np.stack([radius[..., chosen].mean(-1) for chosen in self._of], axis=-1)
