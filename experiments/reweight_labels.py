"""What students and the teacher say of the frames that `reweight.py` takes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from ase import Atoms

from distill.evaluation.energies import label_frames
from distill.evaluation.reweighting import effective_share, reweight, teacher_weights
from distill.students import Student, load_bundle
from distill.teachers import Teacher
from distill.units import BOLTZMANN, GPA
from simulation_records import DENSITY, PRESSURE_ON_FRAMES

if TYPE_CHECKING:
    from reweight import ReweightConfig


class Seen(NamedTuple):
    """Energies `[R, T]` in eV and virial pressures `[R, T]` in GPa (NaN where undefined)."""

    energy: np.ndarray
    pressure: np.ndarray


def label(
    student: Student, teacher: Teacher, frames: list[list[Atoms]], config: ReweightConfig
) -> tuple[Seen, Seen]:
    """What student and teacher say of the frames; labels of the teacher are kept in a file.

    Raises:
        DatasetError: the teacher failed for a frame.
    """
    structures = [atoms for own in frames for atoms in own]
    names = [f"{config.run.name}-{replica}" for replica, own in enumerate(frames) for _ in own]
    labels = label_frames(
        teacher,
        structures,
        names,
        f"reweight:{config.run}",
        config.output / "labels.h5",
        config.batch_size,
    )
    shape = len(frames), len(frames[0])
    stress = np.full((len(structures), 3, 3), np.nan) if labels.stress is None else labels.stress
    theirs = Seen(np.asarray(labels.energy).reshape(shape), _pressure(stress).reshape(shape))
    return seen_by(student, structures, shape, config.batch_size), theirs


def seen_by(
    student: Student, structures: list[Atoms], shape: tuple[int, ...], batch_size: int = 16
) -> Seen:
    """What a student says, in float64."""
    with jax.enable_x64(True):
        parts = [
            student.label(structures[first : first + batch_size], dtype=np.float64)
            for first in range(0, len(structures), batch_size)
        ]
    energy = np.concatenate([part.energy for part in parts])
    stress = np.concatenate([part.stress for part in parts])
    return Seen(energy.reshape(shape), _pressure(stress).reshape(shape))


def _pressure(stress: np.ndarray) -> np.ndarray:
    return -np.trace(np.asarray(stress), axis1=1, axis2=2) / 3 / GPA


def predicted(
    path: Path,
    frames: list[list[Atoms]],
    runner: Seen,
    labels: Seen,
    temperature: float,
    density: np.ndarray | None,
) -> dict[str, Any]:
    """What a run of another student would give, from frames of the `runner` with its weights."""
    student = load_bundle(path).student
    other = seen_by(student, [atoms for own in frames for atoms in own], runner.energy.shape)
    weights = teacher_weights(runner.energy, other.energy, temperature)
    of_teacher = teacher_weights(runner.energy, labels.energy, temperature)
    quantities = {} if density is None else {DENSITY: density}
    if np.isfinite(labels.pressure).all():
        quantities[PRESSURE_ON_FRAMES] = other.pressure - labels.pressure
    return {
        "effective_share": effective_share(weights),
        "spread_of_energy_differences_kt": float(
            (labels.energy - other.energy).std() / (BOLTZMANN * temperature)
        ),
        "averages": {
            name: asdict(reweight(values, of_teacher, student_weights=weights))
            for name, values in quantities.items()
        },
    }
