"""The density of a student in NPT against its teacher's, without a run of the teacher.

Frames of the student's run get the weights that they have in the teacher's ensemble, see
`distill.evaluation.reweighting`; the volume of a small box remembers some ps, so that a teacher
would have to run for long.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms

from distill.errors import ConfigError
from distill.evaluation.reweighting import (
    BLOCKS,
    LEAST_SHARE,
    effective_share,
    evenly_spread,
    reweight,
    teacher_weights,
)
from distill.evaluation.verdict import Check, within_percent
from distill.potential import Potential
from distill.simulation import Frames, MDConfig, run_md
from distill.simulation.config import BAROSTATS
from distill.simulation.frames import mass_density
from distill.units import BOLTZMANN

BINS = 30

Energies = Callable[[Sequence[Atoms]], np.ndarray]


def compare_density(
    potential: Potential,
    atoms: Atoms,
    config: MDConfig,
    student: Energies,
    teacher: Energies,
    *,
    replicas: int,
    start: float,
    frames: int,
    progress: bool = True,
) -> dict[str, Any]:
    """Run the student in NPT and weight its frames.

    Args:
        potential: of the student, for `atoms`.
        atoms: start, periodic in all directions.
        config: an ensemble of constant pressure, at one temperature and pressure.
        student: energies of structures by the student, `[S]`, eV, best in float64.
        teacher: those by the teacher.
        replicas: side by side.
        start: ps at the start of each that are left out.
        frames: most that are labelled, of all replicas together, evenly spread in time.
        progress: show a bar.

    Returns:
        `student` and `teacher`, g/cm³, with `student_error` and `teacher_error`; `percent`, student
        over teacher less 1, with `percent_error`; `effective_share` of the `frames`;
        `histogram` of both; `conditions` as text. Errors are NaN where the weights of all frames
        but some of one block vanish.

    Raises:
        ConfigError: see `frames_to_weight`.
    """
    chosen = frames_to_weight(config, replicas, start, frames)
    seen = _Chosen(chosen)
    run_md(
        potential,
        np.tile(atoms.positions, (replicas, 1, 1)),
        config,
        on_frames=seen,
        keep_frames=False,
        progress=progress,
        description="density",
    )
    positions, cells = (np.concatenate(parts) for parts in (seen.positions, seen.cells))
    structures = [
        _frame(atoms, positions[t, r], cells[t, r])
        for r in range(replicas)
        for t in range(len(chosen))
    ]
    own, theirs = student(structures), teacher(structures)
    shape = replicas, len(chosen)
    weights = teacher_weights(own.reshape(shape), theirs.reshape(shape), config.temperature)
    density = mass_density(atoms.numbers, cells).T
    # Weights of a bad student are 0 but for one frame: 0 / 0.
    with np.errstate(invalid="ignore"):
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


def frames_to_weight(config: MDConfig, replicas: int, start: float, frames: int) -> np.ndarray:
    """Numbers of the recorded frames of each replica that `compare_density` uses.

    Raises:
        ConfigError: an ensemble of constant volume, several temperatures or pressures, or too few
            frames.
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
    return np.asarray(kept[evenly_spread(len(kept), wanted)])


def density_check(result: Mapping[str, Any], limit_percent: float) -> Check:
    """Judge a result of `compare_density`, which JSON may have given None for NaN."""
    text, share = f"within {limit_percent:g} %", result["effective_share"]
    error = result["percent_error"]
    if share < LEAST_SHARE or error is None or not np.isfinite(error):
        why = (
            f"the frames are worth {100 * share:.0f} % of their number for the teacher: take a "
            "smaller box, or a better student"
        )
        return Check("density", text, f"{result['percent']:+.2f} %", "undecided", why)
    return within_percent("density", result["percent"], error, limit_percent)


class _Chosen:
    """Positions and cells of some of the frames of a run."""

    def __init__(self, chosen: np.ndarray) -> None:
        self._chosen, self._seen = chosen, 0
        self.positions: list[np.ndarray] = []
        self.cells: list[np.ndarray] = []

    def __call__(self, frames: Frames) -> None:
        count = len(frames.time)
        own = np.isin(np.arange(self._seen, self._seen + count), self._chosen)
        self.positions.append(frames.positions[own])
        self.cells.append(frames.cell[own])
        self._seen += count


def _frame(atoms: Atoms, positions: np.ndarray, cell: np.ndarray) -> Atoms:
    return Atoms(atoms.numbers, positions, cell=cell, pbc=atoms.pbc)
