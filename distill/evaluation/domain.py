"""What the training data cover, and whether a structure lies within it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import ase.units
import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols

from distill.data import Dataset
from distill.errors import DatasetError
from distill.neighbors import neighbor_table

REACH = 4.0
"""Å, as far as shortest distances are looked for; further pairs are left out."""

DENSITY_MARGIN = 0.05
"""Share by which a density may lie outside the training densities."""

KELVIN = re.compile(r":(\d+(?:\.\d+)?)K$")


def training_domain(dataset: Dataset, indices: Sequence[int] | np.ndarray) -> dict[str, Any]:
    """What the structures at `indices` cover, as plain data for the card of a bundle.

    Returns:
        `elements` (symbols); `atoms`, smallest and largest number; `vacuum` and `periodic`,
        whether isolated and fully periodic structures are among them; `densities_g_per_cm3`,
        smallest and largest of the fully periodic ones (None without); `temperatures_k`, those
        that the origins name (`md:teacher:500K`); `shortest_distances_ang` by pair of elements
        (`C-H`), images included, as far as 4 Å.

    Raises:
        DatasetError: no structures.
        UnitError: other units than eV and Å.
    """
    chosen = np.asarray(indices)
    if len(chosen) == 0:
        raise DatasetError("there are no structures to take a training domain from")
    dataset.require_standard_units("a training domain is taken")
    structures = [dataset.structure(int(i)) for i in chosen]
    shortest: dict[str, float] = {}
    for atoms in structures:
        for pair, distance in shortest_distances(atoms).items():
            shortest[pair] = min(distance, shortest.get(pair, np.inf))
    densities = [density(atoms) for atoms in structures if atoms.pbc.all()]
    found = (KELVIN.search(origin) for origin in sorted(set(dataset.origin[chosen].tolist())))
    elements = sorted({int(z) for atoms in structures for z in atoms.numbers})
    return {
        "elements": [chemical_symbols[z] for z in elements],
        "atoms": [min(map(len, structures)), max(map(len, structures))],
        "vacuum": any(not atoms.pbc.any() for atoms in structures),
        "periodic": bool(densities),
        "densities_g_per_cm3": [min(densities), max(densities)] if densities else None,
        "temperatures_k": sorted({float(match[1]) for match in found if match}),
        "shortest_distances_ang": dict(sorted(shortest.items())),
    }


def shortest_distances(atoms: Atoms, reach: float = REACH) -> dict[str, float]:
    """Shortest distance in Å of each pair of elements (`C-H`) up to `reach`, images included."""
    table = neighbor_table(atoms.positions, atoms.cell.array, atoms.pbc, reach)
    first, second, _, vectors = table.pairs(atoms.positions, atoms.cell.array)
    lengths = np.linalg.norm(vectors, axis=1)
    keys = np.sort(np.stack([atoms.numbers[first], atoms.numbers[second]], 1), axis=1)
    return {
        "-".join(sorted(chemical_symbols[z] for z in pair)): float(
            lengths[(keys == pair).all(1)].min()
        )
        for pair in np.unique(keys, axis=0)
    }


def density(atoms: Atoms) -> float:
    """g/cm³ of a fully periodic structure."""
    gram, cubic_centimetre = 1e-3 * ase.units.kg, 1e24
    return float(atoms.get_masses().sum() / gram * cubic_centimetre / atoms.cell.volume)


def outside_domain(
    atoms: Atoms, domain: Mapping[str, Any], distance_factor: float = 1.0
) -> list[str]:
    """What of a structure lies outside a training domain, each as a sentence; empty if nothing.

    Args:
        atoms: structure.
        domain: from `training_domain`.
        distance_factor: pairs closer than this share of the shortest distance are told of.
    """
    known = set(domain["elements"])
    strange = sorted({a.symbol for a in atoms} - known)
    told = []
    if strange:
        told.append(
            f"{', '.join(strange)} is not among the training elements {', '.join(sorted(known))}"
        )
    shortest = domain["shortest_distances_ang"]
    for pair, distance in shortest_distances(atoms).items():
        if set(pair.split("-")) <= known and distance < distance_factor * shortest.get(pair, REACH):
            seen = f"{shortest[pair]:.2f} Å" if pair in shortest else f"none below {REACH:g} Å"
            told.append(f"{pair} atoms are {distance:.2f} Å apart, shortest in training {seen}")
    if atoms.pbc.any() and not domain["periodic"]:
        told.append("it is periodic, the training structures are not")
    if not atoms.pbc.any() and not domain["vacuum"]:
        told.append("it is isolated, the training structures are periodic")
    if atoms.pbc.all() and domain["densities_g_per_cm3"]:
        least, most = domain["densities_g_per_cm3"]
        own = density(atoms)
        if not least * (1 - DENSITY_MARGIN) <= own <= most * (1 + DENSITY_MARGIN):
            told.append(f"its density is {own:.3f} g/cm³, in training {least:.3f} to {most:.3f}")
    return told


def closest_seen(domain: Mapping[str, Any]) -> dict[tuple[int, int], float]:
    """Shortest training distances in Å by pair of atomic numbers, the lower first, for `Watch`."""
    seen = {}
    for pair, distance in domain["shortest_distances_ang"].items():
        first, second = sorted(atomic_numbers[symbol] for symbol in pair.split("-"))
        seen[first, second] = float(distance)
    return seen
