"""Neighbour slots grouped by the neighbour's element: slot k of every row holds one element."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from distill.errors import CapacityError
from distill.graph import Graph


def element_counts(neighbors: Any, species: Any, n_elements: int) -> np.ndarray:
    """Largest number of neighbours of each element that an atom has, `[n_elements]`.

    Args:
        neighbors: `[n, K]`, index of the neighbour; `n` means none.
        species: `[n]`, index into the element table.
        n_elements: its length.
    """
    padded = np.append(species, -1)[neighbors]
    return np.array([int((padded == e).sum(1).max(initial=0)) for e in range(n_elements)], np.int64)


def group_slots(graph: Graph, groups: Sequence[int]) -> Graph:
    """The same graph of numpy arrays with `groups[e]` slots for neighbours of element e.

    Args:
        graph: with neighbours in any slots.
        groups: slots per element, in the order of the element table.

    Raises:
        CapacityError: an atom has more neighbours of an element.
    """
    neighbors, n_atoms = np.asarray(graph.neighbors), len(graph.positions)
    elements = np.append(graph.species, -1)[neighbors]
    ends = np.cumsum(groups)
    grouped = np.full((n_atoms, int(ends[-1])), n_atoms, np.int32)
    shifts = np.zeros((*grouped.shape, 3), graph.shifts.dtype)
    for element, (width, end) in enumerate(zip(groups, ends, strict=True)):
        rows, slots = np.nonzero(elements == element)
        counts = np.bincount(rows, minlength=n_atoms)
        if counts.max(initial=0) > width:
            raise CapacityError(
                f"an atom has {counts.max()} neighbours of element {element} of the table, but "
                f"there are {width} slots: give at least as many"
            )
        target = end - width + np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        grouped[rows, target] = neighbors[rows, slots]
        shifts[rows, target] = np.asarray(graph.shifts)[rows, slots]
    fields: dict[str, Any] = {"neighbors": grouped, "shifts": shifts}
    return replace(graph, **fields, groups=tuple(int(g) for g in groups))
