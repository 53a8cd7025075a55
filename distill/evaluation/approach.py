"""Do atoms repel each other in the student as in its teacher, closer than any training data?

A potential that was never told may fall where atoms come close; a run that crosses the barrier
before such a hole collapses. The nearest pair of each two elements is pushed together, by whole
molecules and by the atoms alone, and both energies are compared along the way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from distill.bonds import sums_of_radii
from distill.errors import UnsupportedStructureError
from distill.evaluation.verdict import Check, Limits
from distill.sampling.squeezed import find_contacts
from distill.units import BOLTZMANN

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
        barrier: the highest energy of the student before a hole, where it falls by `FALL` below
            that and is lower than the teacher's by `FALL`. None where there is no hole.
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
    """The nearest pair of each two elements, pushed together in steps.

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
    lengths, floor = contacts.lengths, closest * sums_of_radii(atoms)
    usable = lengths > floor[contacts.first, contacts.second]
    if not usable.any():
        raise UnsupportedStructureError(
            f"{atoms.get_chemical_formula()} has no two atoms within {REACH} Å that are not bonded "
            "and can be pushed together"
        )
    found = []
    for kind in np.unique(kinds[usable], axis=0):
        own = np.flatnonzero(usable & (kinds == kind).all(axis=1))
        pair = int(own[lengths[own].argmin()])
        end = floor[contacts.first[pair], contacts.second[pair]]
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
        raise ValueError("a distance or an energy is NaN or infinite: give a larger closest")
    if not (np.diff(distances) < 0).all() or not up_to > 0:
        raise ValueError(f"distances must fall and up_to be positive, not {distances} and {up_to}")
    student, teacher = student - student[0], teacher - teacher[0]
    over = np.flatnonzero(teacher > up_to)
    near = slice(None, int(over[0]) if len(over) else None)
    error = float(np.abs(student - teacher)[near].max())
    # A pair that attracts goes down too, in both.
    highest = np.maximum.accumulate(student)
    below = np.flatnonzero(student < np.minimum(highest, teacher) - FALL)
    if not len(below):
        return Wall(student, teacher, error, None, None)
    fall = int(below[0])
    return Wall(student, teacher, error, float(highest[fall]), float(distances[fall]))


def contacts_check(walls: Sequence[Mapping[str, Any]], limits: Limits, temperature: float) -> Check:
    """Judge records of `Wall` for runs at `temperature`, K; none is what does not apply."""
    name, least = "energy of close contacts", limits.hole_barrier_kt
    text = f"no hole behind a barrier below {least:g} kT"
    if not walls:
        why = "no two atoms can be pushed together"
        return Check(name, text, "", "not applicable", why)
    holes = [wall for wall in walls if wall["barrier_ev"] is not None]
    worst = max(wall["largest_error_ev"] for wall in walls)
    if not holes:
        return Check(name, text, f"no hole, largest error {worst:.2g} eV", "pass")
    lowest = min(holes, key=lambda wall: wall["barrier_ev"])
    barrier = lowest["barrier_ev"] / (BOLTZMANN * temperature)
    shown = f"{lowest['name']}: a hole behind {lowest['barrier_ev']:.2f} eV ({barrier:.0f} kT)"
    return Check(name, text, shown, "pass" if barrier >= least else "fail")
