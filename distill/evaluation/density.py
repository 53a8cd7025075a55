"""The density of a student in NPT against its teacher's, without a run of the teacher.

Frames of the student's run get the weights that they have in the teacher's ensemble, see
`distill.evaluation.reweighting`; the volume of a small box remembers some ps, so that a teacher
would have to run for long.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from ase import Atoms

from distill.data import Labels
from distill.errors import ConfigError
from distill.evaluation.energies import energies_of
from distill.evaluation.reweighting import (
    BLOCKS,
    LEAST_SHARE,
    effective_share,
    reweight,
    teacher_weights,
)
from distill.evaluation.verdict import Check, within_percent
from distill.potential import Potential
from distill.simulation import Frames, MDConfig, run_md
from distill.simulation.config import BAROSTATS
from distill.units import BOLTZMANN

BINS = 30

Label = Callable[[Sequence[Atoms]], Labels]


def compare_density(
    potential: Potential,
    atoms: Atoms,
    config: MDConfig,
    student: Label,
    teacher: Label,
    *,
    replicas: int,
    start: float,
    frames: int,
    batch_size: int = 16,
    progress: bool = True,
) -> dict[str, Any]:
    """Run the student in NPT and weight its frames.

    Args:
        potential: of the student, for `atoms`.
        atoms: start, periodic in all directions.
        config: an ensemble of constant pressure, at one temperature and pressure.
        student: energies of the student, called in float64.
        teacher: those of the teacher.
        replicas: side by side.
        start: ps at the start of each that are left out.
        frames: most that are labelled, of all replicas together, evenly spread in time.
        batch_size: structures per call of `student` and `teacher`.
        progress: show bars.

    Returns:
        `student` and `teacher`, g/cm³, with `student_error` and `teacher_error`; `percent`, student
        over teacher less 1, with `percent_error`; `effective_share` of the `frames`;
        `histogram` of both; `conditions` as text.

    Raises:
        ConfigError: another ensemble, several temperatures or pressures, or too few frames.
    """
    if config.ensemble not in BAROSTATS or config.temperatures or config.pressures:
        raise ConfigError(
            "a density needs an ensemble of constant pressure, one temperature and one pressure; "
            f"the ensemble is {config.ensemble}"
        )
    times = np.arange(config.record_every, config.steps + 1, config.record_every)
    kept = np.flatnonzero(times * config.timestep > 1e3 * start)
    wanted = frames // max(replicas, 1)
    if replicas < 1 or min(len(kept), wanted) < BLOCKS:
        raise ConfigError(
            f"{replicas} replicas with {len(kept)} frames each after {start:g} ps, of which "
            f"{wanted} are wanted, are too few: at least {BLOCKS} of each are needed"
        )
    step = max(len(kept) // wanted, 1)
    ran = run_md(
        potential,
        np.tile(atoms.positions, (replicas, 1, 1)),
        config,
        progress=progress,
        description="density",
    ).frames
    chosen = kept[step - 1 :: step][:wanted]
    structures = [_frame(atoms, ran, t, r) for r in range(replicas) for t in chosen]
    label = partial(energies_of, batch_size=batch_size, progress=progress)
    with jax.enable_x64(True):
        own = label(student, structures, description="density: student")
    theirs = label(teacher, structures, description="density: teacher")
    shape = replicas, len(chosen)
    weights = teacher_weights(own.reshape(shape), theirs.reshape(shape), config.temperature)
    density = ran.density(atoms.numbers)[chosen].T
    found = reweight(density, weights)
    edges = np.linspace(density.min(), density.max(), BINS + 1)
    return {
        "student": found.student,
        "student_error": found.student_error,
        "teacher": found.teacher,
        "teacher_error": found.teacher_error,
        "percent": 100 * found.difference / found.teacher,
        "percent_error": 100 * found.difference_error / found.teacher,
        "effective_share": effective_share(weights),
        "frames": len(structures),
        "spread_of_energy_differences_kt": float(
            (theirs - own).std() / (BOLTZMANN * config.temperature)
        ),
        "histogram": {
            "edges": edges.tolist(),
            "student": np.histogram(density, edges, density=True)[0].tolist(),
            "teacher": np.histogram(density, edges, weights=weights, density=True)[0].tolist(),
        },
        "temperature_k": config.temperature,
        "pressure_gpa": config.pressure,
        "conditions": (
            f"{config.ensemble} at {config.temperature:g} K and {1e4 * config.pressure:.4g} bar, "
            f"{config.timestep:g} fs: {replicas} replicas of {len(atoms)} atoms over "
            f"{config.steps * config.timestep / 1e3:g} ps, the first {start:g} ps left out"
        ),
    }


def density_check(result: Mapping[str, Any], limit_percent: float) -> Check:
    """Judge a result of `compare_density`."""
    check = within_percent("density", result["percent"], result["percent_error"], limit_percent)
    share = result["effective_share"]
    if share < LEAST_SHARE:
        why = (
            f"the frames are worth {100 * share:.0f} % of their number for the teacher: take a "
            "smaller box, or a better student"
        )
        return Check(check.name, check.limit, check.value, "undecided", why)
    return check


def _frame(atoms: Atoms, frames: Frames, t: int, replica: int) -> Atoms:
    seen = Atoms(atoms.numbers, frames.positions[t, replica], pbc=atoms.pbc)
    seen.set_cell(frames.cell[t, replica])
    return seen
