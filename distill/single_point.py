"""Single points of one system at one geometry after another: compiled once, one list.

The list is made in the cell of the first call, the reference. A later cell is a strain of it:
positions are carried back into the reference cell to look for neighbours, and vectors are those of
the cell as given. This is exact while the strain takes no more of the skin than the list leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms

from distill.errors import CapacityError
from distill.neighbors.cell import periodic_cell
from distill.neighbors.device import REBUILD_FRACTION
from distill.potential import Potential

STRAIN_FRACTION = 0.95 * (1 - 2 * REBUILD_FRACTION)
"""Share of the skin that a compression may take; atoms that move take the rest of it."""

OUTSIDE = 0.5
"""Cells that an atom may be outside the cell before it is wrapped, which costs a rebuild."""

MAX_REALLOCATIONS = 5


@dataclass(frozen=True)
class SinglePoint:
    """Results of a call, float64.

    Attributes:
        per_atom_energy: `[n]`, eV, without reference energies.
        forces: `[n, 3]`, eV/Å.
        virial: `[3, 3]`, eV, dE/dstrain.
        uncertainty: `[n]`, expected force errors in eV/Å; None where the model has none.
    """

    per_atom_energy: np.ndarray
    forces: np.ndarray
    virial: np.ndarray
    uncertainty: np.ndarray | None


class CompiledSystem:
    """Energy, forces and virial of a system whose atoms and cell move, in one compiled call.

    Elements and periodicity are fixed. The call compiles once, and again when a list outgrows its
    buffers.

    Attributes:
        periodic: whether all directions are.
        volume: of the cell of the last call, Å³, where all directions are periodic.
    """

    periodic: bool
    volume: float

    def __init__(self, potential: Potential, atoms: Atoms, cutoff: float, skin: float):
        """Start with no list.

        Args:
            potential: for `atoms`, with `evaluate`; its lists must have the fields `stale` and
                `overflow`.
            atoms: elements, periodicity and the reference cell.
            cutoff: Å.
            skin: of the lists of the potential, Å.

        Raises:
            UnsupportedStructureError: see `distill.neighbors.cell.periodic_cell`.
        """
        self._potential = potential
        self._numbers, self._pbc = atoms.numbers.copy(), atoms.pbc.copy()
        self._largest_stretch = 1 + STRAIN_FRACTION * skin / cutoff
        self._reference = periodic_cell(atoms.cell.array, atoms.pbc)[0]
        self._given = np.full((3, 3), np.nan)
        self._lists: Any = None
        self._wrapped_by = np.zeros((len(atoms), 3))
        self._step = jax.jit(self._evaluate, donate_argnums=0)
        self.periodic = bool(self._pbc.all())
        self._adopt(atoms.cell.array)

    def serves(self, atoms: Atoms) -> bool:
        """Whether `atoms` is this system, in a cell for which its lists hold.

        Raises:
            UnsupportedStructureError: see `distill.neighbors.cell.periodic_cell`.
        """
        if not (equal_arrays(atoms.numbers, self._numbers) and equal_arrays(atoms.pbc, self._pbc)):
            return False
        return equal_arrays(atoms.cell.array, self._given) or self._adopt(atoms.cell.array)

    def __call__(self, atoms: Atoms) -> SinglePoint:
        """Results for `atoms`, which it must serve.

        Raises:
            UnsupportedStructureError: positions are NaN or infinite.
            CapacityError: the neighbour list kept overflowing.
        """
        positions = self._near_home(atoms.positions)
        if self._lists is None:
            self._allocate(positions)
        for _ in range(MAX_REALLOCATIONS):
            self._lists, packed = self._step(self._lists, positions, *self._moved)
            found = np.asarray(packed)
            if not found[-1]:
                return self._unpack(found.astype(np.float64))
            self._allocate(positions)
        raise CapacityError(
            f"the neighbour list still overflows after {MAX_REALLOCATIONS} growths: atoms are much "
            "denser than at the calls before; make a new calculator for this structure"
        )

    def bare_step(self, atoms: Atoms) -> Callable[[], jax.Array]:
        """The compiled call alone, again and again for `atoms`: what calls are measured against."""
        arguments = jax.device_put(self._near_home(atoms.positions)), *self._moved

        def step() -> jax.Array:
            self._lists, packed = self._step(self._lists, *arguments)
            return packed

        return step

    def _evaluate(
        self, lists: Any, positions: jax.Array, cell: jax.Array, strain: jax.Array
    ) -> tuple[Any, jax.Array]:
        """The updated lists, and all results and the flag in one array: one transfer."""
        there = _product(positions, strain)
        # A list that is too old is made anew before it is used, so that it need not be flagged.
        lists = self._potential.update(lists, there)
        lists = replace(lists, stale=jnp.zeros_like(lists.stale))
        assert self._potential.evaluate is not None
        result = self._potential.evaluate(positions, lists, cell)
        parts = result.per_atom_energy, result.forces, result.virial, *result.beside
        flag = self._potential.overflow(lists, there)
        packed = [part.reshape(-1) for part in (*parts, flag.astype(positions.dtype))]
        return lists, jnp.concatenate(packed)

    def _unpack(self, found: np.ndarray) -> SinglePoint:
        n = len(self._numbers)
        return SinglePoint(
            per_atom_energy=found[:n],
            forces=found[n : 4 * n].reshape(n, 3),
            virial=found[4 * n : 4 * n + 9].reshape(3, 3),
            uncertainty=found[4 * n + 9 : -1] if len(found) > 4 * n + 10 else None,
        )

    def _allocate(self, positions: np.ndarray) -> None:
        there = positions.astype(np.float64) @ np.asarray(self._moved[1], np.float64)
        self._lists = self._potential.allocate(there, self._lists)

    def _adopt(self, cell: np.ndarray) -> bool:
        """Go over to a cell, unless it is compressed too much."""
        full = periodic_cell(cell, self._pbc)[0]
        strain = np.eye(3)
        if not np.array_equal(full, self._reference):
            strain = np.linalg.solve(full, self._reference)
        # Vectors become longer by this at most when they are carried back into the reference.
        if not np.linalg.norm(strain, 2) <= self._largest_stretch:
            return False
        self._given, self._full = cell.copy(), full
        self._inverse = np.linalg.inv(full)
        self.volume = float(abs(np.linalg.det(full)))
        self._middle = 0.5 * full.sum(axis=0)
        columns = np.abs(self._inverse).sum(axis=0)[self._pbc]
        self._reach = (0.5 + OUTSIDE) / columns.max() if len(columns) else np.inf
        # On the device already, and not sent at every call.
        own = full.astype(self._potential.dtype), strain.astype(self._potential.dtype)
        self._moved = jax.device_put(own)
        self._shift = self._wrapped_by @ full
        return True

    def _near_home(self, positions: np.ndarray) -> np.ndarray:
        """Positions in the precision of the model; atoms far outside the cell are wrapped first.

        They stay wrapped by the same cells while they are near: a jump would ask for a new list.
        """
        near = positions - self._shift
        # Seen at once of almost every call: no atom is so far out in any direction.
        if not np.abs(near - self._middle).max() <= self._reach:
            outside = np.abs(near @ self._inverse - 0.5) > 0.5 + OUTSIDE
            if (outside & self._pbc).any():
                cells = np.floor(near @ self._inverse)
                self._wrapped_by = self._wrapped_by + np.where(outside & self._pbc, cells, 0)
                self._shift = self._wrapped_by @ self._full
                near = positions - self._shift
        return near.astype(self._potential.dtype)


def equal_arrays(first: np.ndarray, second: np.ndarray) -> bool:
    """`np.array_equal` in half the time, which counts at every call of a calculator."""
    return first.shape == second.shape and bool((first == second).all())


def _product(vectors: jax.Array, matrix: jax.Array) -> jax.Array:
    """`vectors @ matrix`; GPUs would multiply float32 with ten bits."""
    return jnp.matmul(vectors, matrix, precision=jax.lax.Precision.HIGHEST)
