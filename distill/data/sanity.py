"""Do labels look like eV, Å and one teacher? A check before training, from physics alone.

Measured, by medians that a few broken frames do not move: lengths of bonds against radii, changes
of the energy against the work of the forces, sizes of forces and energies. Bonds tell the unit of
lengths, work the units of energy and forces relative to each other. Where both are in one wrong
unit they agree, and only their size can tell, which works for molecules, not for soft matter.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from ase.data import chemical_symbols, covalent_radii, vdw_radii
from ase.geometry import find_mic, minkowski_reduce, wrap_positions
from scipy.spatial import cKDTree

from distill.data.dataset import Dataset
from distill.errors import DatasetError
from distill.units import BOHR, UnitError, energy_factor, length_factor

MAX_STRUCTURES = 300  # and pairs of them, that are measured at most, evenly chosen
PLAUSIBLE_BONDS = (0.6, 1.45)  # nearest distance over sum of radii (N2: 0.77, C-H: 1, F2: 1.25)
ISOLATED = 3.0  # such a ratio, that means no neighbour
LENGTHS = {"Bohr": (BOHR, 1.45, 2.45), "nm": (10.0, 0.05, 0.16)}  # Å per unit, range of ratios
NOBLE_GASES = (2, 10, 18, 36, 54, 86)  # without bonds: their van der Waals radii are taken

MAX_DISPLACEMENT = 0.2  # Å, RMS over atoms between two structures whose energies are compared
MIN_PAIRS = 10  # of such structures
MAX_SCATTER = 0.25  # deviation from proportionality of energy change and work, over the change
MAX_SLOPE = 1.25  # energy change over work, or its inverse, of labels in one unit
ENERGY_UNITS = ("Hartree", "Ry", "kcal/mol", "kJ/mol", "meV")
FORCE_UNITS = (
    "Hartree/Bohr Hartree/Angstrom Ry/Bohr eV/Bohr kcal/mol/Angstrom kJ/mol/Angstrom kJ/mol/nm"
).split()
RMS_FORCES = (1e-3, 15.0)  # eV/Å (ethanol by GFN2-xTB: 0.9 at 300 K, 1.7 at 1000 K)
MAX_ENERGY_SPREAD = 2.0  # eV/atom, of energies about sums of per-element energies


class _Finding(NamedTuple):
    error: type[UnitError] | type[DatasetError] | None
    message: str


def check_labels(dataset: Dataset) -> list[str]:
    """What looks wrong with the labels, one message each; empty when nothing does.

    Declared units are taken into account. Nothing is said of what cannot be measured: bonds where
    no atom has a neighbour, work without close pairs of one trajectory and cell, absent labels.
    """
    return [finding.message for finding in _findings(dataset)]


def require_sane_labels(dataset: Dataset) -> list[str]:
    """The messages of `check_labels` that are doubts; what is certainly wrong raises.

    Raises:
        UnitError: energies, forces or positions in other units than declared.
        DatasetError: forces of the wrong sign, or of another unknown unit or origin than energies.
    """
    findings = _findings(dataset)
    errors = [finding for finding in findings if finding.error]
    if errors:
        kind = UnitError if any(e.error is UnitError for e in errors) else DatasetError
        raise kind("; ".join(e.message for e in errors))
    return [finding.message for finding in findings]


def rare_elements(dataset: Dataset, indices: Any, minimum: int = 10) -> dict[str, int]:
    """Symbols of elements with fewer than `minimum` atoms in the structures at `indices`.

    `indices` are integers or a `[S]` bool mask, for example the training part. The values are the
    numbers of atoms, 0 for elements of `dataset` that occur only in other structures.
    """
    numbers = dataset.subset(indices).numbers
    counts = {z: int(np.sum(numbers == z)) for z in dataset.elements}
    return {chemical_symbols[z]: count for z, count in counts.items() if count < minimum}


def _findings(dataset: Dataset) -> list[_Finding]:
    data = dataset.in_standard_units()
    # wrong units raise flags too (close atoms, large forces): with most flagged all are measured
    most = 2 * data.usable.sum() > len(data)
    taken = [i for i in range(len(data)) if data.usable[i] or not most]
    length, findings = _check_bonds(data, taken)
    whole = np.isfinite(data.energy)
    whole[np.repeat(np.arange(len(data)), data.n_atoms)[~np.isfinite(data.forces).all(1)]] = False
    if labelled := [i for i in taken if whole[i]]:
        findings += _check_work(data, labelled, length) + _check_sizes(data, labelled)
        if data.provenance.get("teacher") is None:
            findings.append(_Finding(None, "provenance names no `teacher`: several may be mixed"))
    return findings


def _check_bonds(data: Dataset, chosen: list[int]) -> tuple[float, list[_Finding]]:
    """Å per unit of length that the bonds suggest, and what to say about it."""
    ratios = np.concatenate([np.zeros(0), *(_bond_ratios(data, i) for i in _spread(chosen))])
    if len(ratios := ratios[ratios < ISOLATED]) == 0:
        return 1.0, []
    low, median, high = np.quantile(ratios, [0.1, 0.5, 0.9])
    measured = f"nearest neighbours are {median:.2f} times the sum of radii apart, expected is 1"
    for unit, (factor, least, most) in LENGTHS.items():
        # the median of a scan of distances may lie anywhere, but its spread is wide
        if least < median < most and low > 0.85 * least and high < 1.25 * most:
            message = (
                f"positions seem to be in {unit}, not in Angstrom: {measured}: multiply positions "
                f"and cell by {factor:.6g}, or if forces and stress are per {unit} too, use "
                f'replace(dataset, units=make_units("eV", "{unit}")).in_standard_units()'
            )
            return factor, [_Finding(UnitError, message)]
    doubt = _Finding(None, f"{measured}: check the unit of positions and cell")
    return 1.0, [] if PLAUSIBLE_BONDS[0] <= median <= PLAUSIBLE_BONDS[1] else [doubt]


def _bond_ratios(data: Dataset, index: int) -> np.ndarray:
    """Distance of the nearest neighbour over the sum of radii, `[n]`, infinite without one."""
    numbers, pbc = data.numbers[data.rows(index)], data.pbc[index]
    cell = minkowski_reduce(data.cell[index], pbc)[0]
    points = wrap_positions(data.positions[data.rows(index)], cell, pbc)
    images = np.stack(np.meshgrid(*([-1, 0, 1] if p else [0] for p in pbc)), -1).reshape(-1, 3)
    everywhere = (points + (images @ cell)[:, None]).reshape(-1, 3)
    distance, partner = cKDTree(everywhere).query(points, k=2)
    radii = np.where(np.isin(numbers, NOBLE_GASES), vdw_radii[numbers], covalent_radii[numbers])
    return distance[:, 1] / (radii + radii[partner[:, 1] % len(points)])


def _check_work(data: Dataset, labelled: list[int], length: float) -> list[_Finding]:
    """Energy changes against the work -(F_a + F_b)/2 · (x_b - x_a) between close structures."""
    runs = sorted(labelled, key=lambda i: data.trajectory[i])
    near = [(a, b) for a, b in pairwise(runs) if data.trajectory[a] == data.trajectory[b]]
    rows: list[tuple[float, ...]] = []
    for a, b in _spread(near):
        first, second = data.rows(a), data.rows(b)
        same = np.array_equal(data.numbers[first], data.numbers[second])
        if same and np.allclose(data.cell[a], data.cell[b]):
            vectors = data.positions[second] - data.positions[first]
            step = length * find_mic(vectors, data.cell[a], data.pbc[a])[0]
            work = -0.5 * np.sum((data.forces[first] + data.forces[second]) * step)
            size = np.sqrt(np.sum(step**2) / len(step))
            change = data.energy[b] - data.energy[a]
            if change and work and size < MAX_DISPLACEMENT:
                rows.append((size, change, work, data.n_atoms[a]))
    if len(rows) < MIN_PAIRS:
        return []
    # the closer half, because this work is exact for linear forces only
    size, change, work, atoms = np.array(sorted(rows)[: max(MIN_PAIRS, len(rows) // 2)]).T
    # median of ratios, those of little work with less weight: a fit that outliers do not pull
    order = np.argsort(change / work)
    weights = np.cumsum(np.minimum(np.abs(work), np.median(np.abs(work)))[order])
    slope = (change / work)[order][np.searchsorted(weights, 0.5 * weights[-1])]
    scatter = np.median(np.abs(change - slope * work)) / np.median(np.abs(change))
    measured = f"energy differences are {slope:.4g} times the work of the forces, expected is 1 "
    measured += f"({len(work)} pairs of close structures, typical deviation {100 * scatter:.0f} %)"
    if scatter > MAX_SCATTER:  # as of far pairs anyway: forces are not linear in between
        doubt = _Finding(None, f"energies and forces do not belong together: {measured}")
        return [doubt] if np.median(size) < MAX_DISPLACEMENT / 3 else []
    if slope > 0 and abs(np.log(slope)) < np.log(MAX_SLOPE) + scatter:
        return []
    causes = " or ".join(_causes(abs(slope), np.median(atoms), 0.05 + scatter))
    error = UnitError if causes else DatasetError
    if slope < 0:
        sign = "forces have the wrong sign: use replace(dataset, forces=-dataset.forces)"
        causes = f"{sign} and {causes}".removesuffix(" and ")
    causes = causes or "energies and forces have different origins or an unknown unit"
    return [_Finding(error, f"{causes}: {measured}")]


def _causes(slope: float, atoms: Any, tolerance: float) -> list[str]:
    """Mistakes after which energy differences are `slope` times the work, closest first."""
    table = [(1 / atoms, "energies seem to be per atom: multiply them by dataset.n_atoms")]
    for name in ENERGY_UNITS:
        unit = energy_factor(name)
        use = f"use replace(dataset, energy=dataset.energy * {unit:.6g})"
        table.append((1 / unit, f"energies seem to be in {name}, not in eV: {use}"))
    for name in FORCE_UNITS:
        energy, _, length = name.rpartition("/")
        ratio = 1 / length_factor(length)
        unit = ratio * energy_factor(energy)
        use = f"use replace(dataset, forces=dataset.forces * {unit:.6g})"
        table.append((unit, f"forces seem to be in {name}, not in eV/Angstrom: {use}"))
        if energy != "eV" and ratio != 1:
            use = f"multiply them by {energy_factor(energy):.6g} and {unit:.6g}"
            table.append((ratio, f"energies seem to be in {energy} and forces in {name}: {use}"))
    distance = np.abs(np.log(slope / np.array([value for value, _ in table])))
    near = [i for i in np.argsort(distance, kind="stable") if distance[i] < tolerance]
    return [table[i][1] for i in near if abs(np.log(slope)) > tolerance]


def _check_sizes(data: Dataset, labelled: list[int]) -> list[_Finding]:
    """Sizes of forces, and of energies about the sum of fitted energies of the elements."""
    doubts, labelled = [], _spread(labelled)
    forces = [data.forces[data.rows(i)] for i in labelled if data.n_atoms[i] > 1]
    rms = np.median([np.sqrt(np.mean(f**2)) for f in forces]) if forces else 1.0
    if not RMS_FORCES[0] <= rms <= RMS_FORCES[1]:
        doubts.append(
            f"the RMS force is {rms:.3g} eV/Angstrom, expected is {RMS_FORCES}: check the units "
            f"(from kcal/mol/Angstrom it would be {rms * energy_factor('kcal/mol'):.3g})"
        )
    energy = data.energy[labelled] / data.n_atoms[labelled]
    numbers = (data.numbers[data.rows(i)] for i in labelled)
    parts = np.array([np.mean(n[:, None] == data.elements, axis=0) for n in numbers])
    rest = np.ones(len(energy))
    for _ in range(10):  # least absolute deviations, which outliers do not pull
        weights = 1 / np.sqrt(np.maximum(np.abs(rest), 1e-3))
        fit = np.linalg.lstsq(parts * weights[:, None], energy * weights, rcond=None)[0]
        rest = energy - parts @ fit
    spread = 1.48 * np.median(np.abs(rest))
    if spread > MAX_ENERGY_SPREAD:
        doubts.append(
            f"energies deviate from sums of per-element energies by {spread:.3g} eV/atom, expected "
            f"is at most {MAX_ENERGY_SPREAD}: look for other units, or several units or methods"
        )
    return [_Finding(None, doubt) for doubt in doubts]


def _spread(items: list[Any]) -> list[Any]:
    """At most `MAX_STRUCTURES` of `items`, evenly chosen."""
    return items[:: max(1, -(-len(items) // MAX_STRUCTURES))]
