"""Do atoms repel each other in the student as in its teacher, closer than any training data?

A potential that was never told may fall where atoms come close; a run that crosses the barrier
before such a hole collapses. The nearest pair of each two elements that is not bonded is pushed
together, by whole molecules and by the atoms alone, and both energies are compared along the way.
Pairs of one molecule count where there is only one; in a crystal these are pairs of a farther
shell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from distill.bonds import find_bonds, number_molecules, sums_of_radii
from distill.data import Labels
from distill.errors import TeacherError, UnsupportedStructureError
from distill.evaluation.energies import energies_of
from distill.evaluation.verdict import Check, Limits
from distill.sampling.squeezed import find_contacts
from distill.units import BOLTZMANN

EXCESS = 1.5
"""How far an energy may fall for each eV that the teacher's falls, besides `FALL`."""

REACH = 5.0
"""Å, within which the nearest pair of two elements is looked for."""

FALL = 0.5
"""eV, how far an energy must fall, and lie below the teacher's, to be a hole."""


@dataclass(frozen=True)
class Approach:
    """One pair on its way together.

    Attributes:
        name: elements, and what moves: `H-O, molecules`.
        atoms: the two.
        distances: `[D]`, Å, falling; the first is that of the start.
        structures: one for each distance.
    """

    name: str
    atoms: tuple[int, int]
    distances: np.ndarray
    structures: list[Atoms]


@dataclass(frozen=True)
class Wall:
    """Energies along an approach, from the start, eV.

    Attributes:
        student: `[D]`.
        teacher: `[D]`.
        largest_error: largest difference before the teacher's energy first rose by `up_to`.
        barrier: the highest energy of the student before a hole, where it falls below that by
            `FALL` (and more where the teacher falls too) and is lower than the teacher's by `FALL`.
            None where there is no hole.
        falls_at: Å, where it has fallen so far.
    """

    student: np.ndarray
    teacher: np.ndarray
    largest_error: float
    barrier: float | None
    falls_at: float | None

    def record(self, approach: Approach) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": approach.name,
            "atoms": list(approach.atoms),
            "distances_ang": approach.distances.tolist(),
            "student_ev": self.student.tolist(),
            "teacher_ev": self.teacher.tolist(),
            "largest_error_ev": self.largest_error,
            "barrier_ev": self.barrier,
            "falls_at_ang": self.falls_at,
        }


def approaches(atoms: Atoms, closest: float = 0.8, step: float = 0.05) -> list[Approach]:
    """The nearest pair of each two elements that is not bonded, pushed together in steps.

    Args:
        atoms: start, a frame of a run; what is bonded is found in it, by distances.
        closest: shortest distance, in sums of covalent radii.
        step: Å, the largest between two distances.

    Raises:
        ValueError: `closest` or `step` are not positive.
        UnsupportedStructureError: there is no pair that is not bonded.
    """
    if not (closest > 0 and step > 0):
        raise ValueError(f"closest and step must be positive, not {closest} and {step}")
    contacts = find_contacts(atoms, REACH)
    pairs = np.stack([contacts.first, contacts.second], axis=1)
    kinds = np.sort(atoms.numbers[pairs], axis=1)
    lengths = contacts.lengths
    ends = closest * sums_of_radii(atoms, contacts.first, contacts.second)
    usable = lengths > ends
    if not usable.any():
        raise UnsupportedStructureError(
            f"{atoms.get_chemical_formula()} has no two atoms within {REACH} Å that are not bonded "
            "and can be pushed together"
        )
    found = []
    for kind in np.unique(kinds[usable], axis=0):
        own = np.flatnonzero(usable & (kinds == kind).all(axis=1))
        pair = int(own[lengths[own].argmin()])
        end = ends[pair]
        count = int(np.ceil((lengths[pair] - end) / step)) + 1
        distances = np.linspace(lengths[pair], end, max(count, 2))
        elements = "-".join(sorted(chemical_symbols[z] for z in kind))
        for what in ("molecules", "atoms") if contacts.has_molecules else ("atoms",):
            moved = [contacts.pushed(atoms, pair, d, what == "molecules") for d in distances]
            first, second = (int(atom) for atom in pairs[pair])
            found.append(Approach(f"{elements}, {what}", (first, second), distances, moved))
    return found


def compare_walls(
    distances: np.ndarray, student: np.ndarray, teacher: np.ndarray, up_to: float = 5.0
) -> Wall:
    """What two potentials say along an approach.

    Args:
        distances: `[D]`, Å, falling.
        student: energies `[D]`, eV.
        teacher: energies `[D]`, eV.
        up_to: eV, rise of the teacher's energy up to which errors count.

    Raises:
        ValueError: shapes differ, there are fewer than two distances, they do not fall, a number is
            not finite, or `up_to` is not positive.
    """
    given = [np.asarray(values, np.float64) for values in (distances, student, teacher)]
    distances, student, teacher = given
    if distances.ndim != 1 or len(distances) < 2 or len({one.shape for one in given}) > 1:
        raise ValueError(
            "distances and energies must be [D] each, with two or more, not "
            f"{[one.shape for one in given]}"
        )
    if not all(np.isfinite(one).all() for one in given):
        raise ValueError("a distance or an energy is NaN or infinite")
    if not (np.diff(distances) < 0).all() or not up_to > 0:
        raise ValueError(f"distances must fall and up_to be positive, not {distances} and {up_to}")
    student, teacher = student - student[0], teacher - teacher[0]
    over = np.flatnonzero(teacher > up_to)
    near = slice(None, int(over[0]) if len(over) else None)
    error = float(np.abs(student - teacher)[near].max())
    highest = np.maximum.accumulate(student)
    # Where the teacher falls too, as in a bond that forms, half as far again is no hole.
    allowed = FALL + EXCESS * (np.maximum.accumulate(teacher) - teacher)
    below = np.flatnonzero((student < highest - allowed) & (student < teacher - FALL))
    if not len(below):
        return Wall(student, teacher, error, None, None)
    fall = int(below[0])
    return Wall(student, teacher, error, float(highest[fall]), float(distances[fall]))


def compare_contacts(
    atoms: Atoms,
    student: Callable[[Sequence[Atoms]], Labels],
    teacher: Callable[[Sequence[Atoms]], Labels],
    *,
    closest: float = 0.8,
    step: float = 0.05,
    up_to: float = 5.0,
    batch_size: int = 32,
) -> dict[str, Any]:
    """All approaches of a structure, by two potentials, ready for JSON.

    Args:
        atoms: see `approaches`.
        student: labels a batch.
        teacher: labels a batch.
        closest: see `approaches`.
        step: see `approaches`.
        up_to: see `compare_walls`.
        batch_size: structures per call.

    Returns:
        `approaches`: records of `Wall`; `up_to_ev`; `applies`: False for a single molecule of which
        no two atoms can be pushed together; and where an energy of the student is NaN or
        infinite, `broke_down`.

    Raises:
        TeacherError: an energy of the teacher is NaN or infinite.
    """
    found: dict[str, Any] = {"approaches": [], "up_to_ev": up_to, "applies": True}
    try:
        ways = approaches(atoms, closest, step)
    except UnsupportedStructureError:
        molecules = number_molecules(len(atoms), find_bonds(atoms))
        return found | {"applies": bool(atoms.pbc.any() or molecules.any())}
    for way in ways:
        theirs = energies_of(teacher, way.structures, batch_size, whose=f"the teacher, {way.name}")
        try:
            own = energies_of(student, way.structures, batch_size, whose=f"the student, {way.name}")
        except TeacherError as error:
            return found | {"broke_down": str(error)}
        wall = compare_walls(way.distances, own, theirs, up_to)
        found["approaches"].append(wall.record(way))
    return found


def contacts_check(result: Mapping[str, Any], limits: Limits, temperature: float) -> Check:
    """Judge a result of `compare_contacts` for runs at `temperature`, K."""
    name, least = "energy of close contacts", limits.hole_barrier_kt
    text = f"no hole behind a barrier below {least:g} kT"
    walls = result["approaches"]
    if "broke_down" in result:
        return Check(name, text, "", "fail", result["broke_down"])
    if not walls and not result["applies"]:
        why = "a single molecule whose atoms cannot be pushed together"
        return Check(name, text, "", "not applicable", why)
    if not walls:
        why = f"no two atoms within {REACH:g} Å that are not bonded: give a denser or larger system"
        return Check(name, text, "", "not measured", why)
    holes = [wall for wall in walls if wall["barrier_ev"] is not None]
    worst = max(wall["largest_error_ev"] for wall in walls)
    if not holes:
        return Check(name, text, f"no hole, largest error {worst:.2g} eV", "pass")
    lowest = min(holes, key=lambda wall: wall["barrier_ev"])
    thermal = BOLTZMANN * temperature
    barrier = lowest["barrier_ev"] / thermal if thermal > 0 else np.inf
    shown = f"{lowest['name']}: a hole behind {lowest['barrier_ev']:.2f} eV ({barrier:.0f} kT)"
    return Check(name, text, shown, "pass" if barrier >= least else "fail")
