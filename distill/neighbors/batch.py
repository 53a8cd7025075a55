"""From ASE structures to one padded graph, on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ase
import numpy as np
from ase.data import chemical_symbols

from distill.errors import CapacityError, UnknownElementError
from distill.graph import Graph
from distill.neighbors.cell import image_offsets, periodic_cell
from distill.neighbors.host import NeighborTable, neighbor_table


def species_index(
    numbers: Any, elements: Sequence[int], *, structure: int | None = None
) -> np.ndarray:
    """Index of each atomic number in the element table, `[n]` int32.

    Args:
        numbers: `[n]`, atomic numbers.
        elements: the sorted atomic numbers that the model knows.
        structure: the number of the structure, for the error message.

    Raises:
        UnknownElementError: an atomic number is not in `elements`.
        ValueError: `elements` is empty, not sorted or holds an element twice.
    """
    table = np.asarray(elements, dtype=np.int64)
    if len(table) == 0 or (np.diff(table) <= 0).any():
        raise ValueError(f"elements must be sorted atomic numbers without repeats, not {elements}")
    wanted = np.asarray(numbers, dtype=np.int64)
    index = np.searchsorted(table, wanted).clip(max=len(table) - 1)
    unknown = sorted(set(wanted[table[index] != wanted].tolist()))
    if unknown:
        where = "the structure" if structure is None else f"structure {structure}"
        raise UnknownElementError(
            f"{where} holds {_symbols(unknown)}, which the model does not know; "
            f"known elements: {_symbols(table.tolist())}"
        )
    return index.astype(np.int32)


def batch_graphs(
    structures: Sequence[ase.Atoms],
    cutoff: float,
    elements: tuple[int, ...],
    *,
    n_atoms: int | None = None,
    n_neighbors: int | None = None,
    n_systems: int | None = None,
    tables: Sequence[NeighborTable] | None = None,
    dtype: Any = np.float32,
) -> Graph:
    """Put structures into one padded graph of numpy arrays.

    Positions are wrapped along periodic directions in float64 before they are cast, and the
    shifts are corrected, so that displacements are those of the structures as given.

    Args:
        structures: at least one.
        cutoff: Å.
        elements: sorted atomic numbers; `species` is the index in it.
        n_atoms: atom slots `N`, at least the total + 1 (the default).
        n_neighbors: neighbour slots `K`, at least the largest count (the default).
        n_systems: system slots `B`, at least the number of structures + 1 (the default).
        tables: neighbour tables of the structures for the same cutoff, if known already.
        dtype: of positions, shifts and cell.

    Raises:
        CapacityError: the structures do not fit the slots.
        UnknownElementError: a structure holds an element outside `elements`.
        UnsupportedStructureError: see `neighbor_table`.
        ValueError: no structures, or tables that do not match them.
    """
    if not structures:
        raise ValueError("there are no structures to put into a graph")
    species = [
        species_index(atoms.numbers, elements, structure=k) for k, atoms in enumerate(structures)
    ]
    if tables is None:
        tables = [neighbor_table(a.positions, a.cell.array, a.pbc, cutoff) for a in structures]
    sizes = [len(atoms) for atoms in structures]
    if [len(table.neighbors) for table in tables] != sizes:
        raise ValueError("tables and structures do not match in number or in atoms")

    widest = max(int(table.counts.max(initial=0)) for table in tables)
    n = _slots("n_atoms", n_atoms, sum(sizes) + 1)
    k = _slots("n_neighbors", n_neighbors, max(widest, 1))
    b = _slots("n_systems", n_systems, len(structures) + 1)

    positions = np.zeros((n, 3), dtype)
    all_species = np.zeros(n, np.int32)
    neighbors = np.full((n, k), n, np.int32)
    shifts = np.zeros((n, k, 3), dtype)
    cell = np.tile(np.eye(3, dtype=dtype), (b, 1, 1))
    system = np.full(n, b - 1, np.int32)

    start = 0
    for number, (atoms, table) in enumerate(zip(structures, tables, strict=True)):
        rows = slice(start, start + len(atoms))
        full_cell, periodic = periodic_cell(atoms.cell.array, atoms.pbc)
        offsets = image_offsets(atoms.positions, full_cell, periodic)
        positions[rows] = atoms.positions - offsets @ full_cell
        all_species[rows] = species[number]
        system[rows] = number
        cell[number] = _graph_cell(atoms, full_cell)

        used = min(table.capacity, k)
        filled = table.neighbors[:, :used] < len(atoms)
        local = np.where(filled, table.neighbors[:, :used], 0)
        images = table.shifts[:, :used] + offsets[local] - offsets[:, None]
        neighbors[rows, :used] = np.where(filled, local + start, n)
        shifts[rows, :used] = np.where(filled[..., None], images, 0)
        start += len(atoms)

    fields: dict[str, Any] = {
        "positions": positions,
        "species": all_species,
        "neighbors": neighbors,
        "shifts": shifts,
        "cell": cell,
        "system": system,
        "atom_mask": np.arange(n) < start,
        "system_mask": np.arange(b) < len(structures),
    }
    return Graph(**fields)


def _graph_cell(atoms: ase.Atoms, full_cell: np.ndarray) -> np.ndarray:
    """The cell of a system: as given where that is regular, so that volumes stay the user's."""
    if not atoms.pbc.any():
        return np.eye(3)
    given = atoms.cell.array
    missing = ~given.any(axis=1)
    cell = np.where(missing[:, None], full_cell, given)
    regular = np.isfinite(cell).all() and np.linalg.matrix_rank(cell) == 3
    return cell if regular else full_cell


def _slots(name: str, given: int | None, needed: int) -> int:
    if given is not None and given < needed:
        raise CapacityError(f"{name}={given} is too small for these structures; need {needed}")
    return needed if given is None else given


def _symbols(numbers: Sequence[int]) -> str:
    known = range(len(chemical_symbols))
    return ", ".join(chemical_symbols[z] if z in known else f"Z={z}" for z in numbers)
