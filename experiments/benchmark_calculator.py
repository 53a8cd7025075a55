"""What a call of the student's ASE calculator costs beyond the compiled step that it makes."""

from __future__ import annotations

import time

import jax
import numpy as np
from ase import Atoms
from ase.build import molecule

from benchmark_teachers import figure
from benchmark_water import Subject, WaterBoxes
from distill.calculators import StudentCalculator
from distill.evaluation.results import Figure

OVERHEAD = "overhead of the ASE calculator"
SMALLEST = 9
"""Atoms of a molecule outside a box: ethanol, or three waters for a student without carbon."""


def calculator_figures(
    subject: Subject, boxes: WaterBoxes, sizes: tuple[int, ...], calls: int
) -> list[Figure]:
    """Milliseconds per call of `atoms.get_forces()`, of the bare step, and their difference.

    Both are taken in turn, `calls` times each; an atom moves a little before every call.
    """
    figures = []
    for size in sizes:
        atoms = small_molecule(subject) if size == SMALLEST else boxes.box(size)
        whole, bare = call_times(atoms, StudentCalculator(subject.student), calls)
        where = "of water" if atoms.pbc.any() or 6 not in atoms.numbers else "of ethanol"
        case = f"{len(atoms)} atoms {where}, ASE calculator"
        for metric, seconds in (
            ("call", whole),
            ("compiled step", bare),
            (OVERHEAD, whole - bare),
        ):
            # Quartiles: single calls are interrupted by whatever else the machine does.
            spread = np.quantile(1e3 * seconds, [0.25, 0.5, 0.75])
            figures.append(figure(case, subject.label, metric, spread, "ms/call"))
    return figures


def small_molecule(subject: Subject) -> Atoms:
    """Nine atoms without a cell."""
    if 6 in subject.student.elements:
        return molecule("CH3CH2OH")
    atoms = Atoms()
    for number in range(3):
        water = molecule("H2O")
        water.positions[:, 2] += 3.0 * number
        atoms += water
    return atoms


def call_times(
    atoms: Atoms, calculator: StudentCalculator, calls: int
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of calls and of the compiled step with arguments on the device, `[calls]` each."""
    atoms.calc = calculator
    atoms.get_forces()
    compiled = calculator.compiled
    assert compiled is not None
    bare = compiled.bare_step(atoms)
    times = np.empty((2, calls))
    jax.block_until_ready(bare())
    for call in range(calls):
        atoms.positions[0, 0] += 1e-6
        begun = time.perf_counter()
        atoms.get_forces()
        between = time.perf_counter()
        jax.block_until_ready(bare())
        times[:, call] = between - begun, time.perf_counter() - between
    return times[0], times[1]
