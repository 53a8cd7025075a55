"""Checks of the demonstration teacher: errors on held-out trajectories, molecular dynamics."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary, ZeroRotation

from demo_teacher_data import Frame
from demo_teacher_model import interaction_energy
from distill.evaluation import energy_drift
from distill.simulation import Frames, MDConfig, run_md
from distill.teachers import Teacher
from distill.units import BOLTZMANN

TIMESTEP = 0.5  # fs


@dataclass(frozen=True)
class Prediction:
    """A frame and, as pairs (predicted, true), its energy without self energies (eV) and forces.

    Forces are `[n, 3]`, eV/Å.
    """

    frame: Frame
    energy: tuple[float, float]
    forces: tuple[np.ndarray, np.ndarray]


def predict_frames(
    teacher: Teacher, frames: list[Frame], self_energies: dict[str, float], batch: int = 64
) -> list[Prediction]:
    """What the finished teacher predicts for each frame; `self_energies` in Hartree."""
    found: dict[int, Prediction] = {}
    batches = math.ceil(len(frames) / batch)
    for first in range(batches):
        # Frames from everywhere: batches of like sizes share their compiled code.
        chosen = range(first, len(frames), batches)
        labels = teacher.label([Atoms(frames[i].numbers, frames[i].positions) for i in chosen])
        for index, energy, forces in zip(chosen, labels.energy, labels.forces, strict=True):
            frame = frames[index]
            predicted, true = (
                interaction_energy(float(e), frame.numbers, self_energies)
                for e in (energy, frame.energy)
            )
            found[index] = Prediction(frame, (predicted, true), (forces, frame.forces))
    return [found[index] for index in range(len(frames))]


def joined_forces(rows: Iterable[Prediction]) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true forces of all atoms, `[n, 3]` each."""
    predicted, true = zip(*(row.forces for row in rows), strict=True)
    return np.concatenate(predicted), np.concatenate(true)


def r_squared(predicted: np.ndarray, true: np.ndarray) -> float:
    """Coefficient of determination."""
    return float(1.0 - np.sum((predicted - true) ** 2) / np.sum((true - true.mean()) ** 2))


def summarise(rows: list[Prediction]) -> dict[str, dict[str, float]]:
    """Errors per system (MD frames), for all of them, and for all distorted frames."""
    groups: dict[str, list[Prediction]] = defaultdict(list)
    for row in rows:
        if row.frame.distorted:
            groups["distorted"].append(row)
        else:
            groups[row.frame.system].append(row)
            groups["all"].append(row)
    return {name: _errors(members) for name, members in groups.items()}


def _errors(rows: list[Prediction]) -> dict[str, float]:
    energies = np.array([row.energy for row in rows])
    natoms = np.array([len(row.frame.numbers) for row in rows])
    predicted, true = joined_forces(rows)
    per_atom = 1000 * (energies[:, 0] - energies[:, 1]) / natoms
    difference = 1000 * (predicted - true)
    return {
        "frames": len(rows),
        "force_mae_meV_per_A": round(float(np.abs(difference).mean()), 2),
        "force_rmse_meV_per_A": round(float(np.sqrt((difference**2).mean())), 2),
        "force_r2": round(r_squared(predicted, true), 5),
        "energy_mae_meV_per_atom": round(float(np.abs(per_atom).mean()), 3),
        "energy_rmse_meV_per_atom": round(float(np.sqrt((per_atom**2).mean())), 3),
        "energy_r2": round(r_squared(energies[:, 0], energies[:, 1]), 5),
    }


def run_ethanol(teacher: Teacher, picoseconds: float, seed: int) -> tuple[dict[str, Any], Frames]:
    """Run ethanol in float32: NVE at 300 K, then Langevin at 500 K.

    Returns the figures for the card and the frames of the NVE run.
    """
    atoms = molecule("CH3CH2OH")
    bonded = (atoms.get_all_distances() < 1.7) & ~np.eye(len(atoms), dtype=bool)
    rng = np.random.default_rng(seed)
    # The molecule starts at rest in a minimum: equipartition halves the temperature it is given.
    MaxwellBoltzmannDistribution(atoms, temperature_K=600, rng=rng)
    Stationary(atoms)
    ZeroRotation(atoms)
    potential = teacher.potential(atoms)
    common: dict[str, Any] = {
        "timestep": TIMESTEP,
        "steps": round(1000 * picoseconds / TIMESTEP),
        "seed": seed,
    }
    nve = run_md(
        potential,
        atoms.positions,
        MDConfig(ensemble="nve", **common),
        velocities=atoms.get_velocities() * units.fs,
        description="NVE",
    ).frames
    hot = run_md(
        potential,
        nve.positions[-1],
        MDConfig(ensemble="nvt_langevin", temperature=500, friction=0.01, **common),
        velocities=nve.velocities[-1],
        description="Langevin at 500 K",
    ).frames
    drift = energy_drift(nve, len(atoms))
    about_drift = 1000 * nve.total_energy / len(atoms) - drift * nve.time / 1000
    bonds = np.linalg.norm(hot.positions[:, :, None] - hot.positions[:, None], axis=-1)[:, bonded]
    # The thermostat acts on all 3n degrees of freedom, the centre of mass included.
    temperatures = 2 * hot.kinetic_energy / (3 * len(atoms) * BOLTZMANN)
    facts = {
        "system": "one ethanol molecule, no cell, float32, 0.5 fs",
        "picoseconds_each": picoseconds,
        "nve_drift_meV_per_atom_per_ps": round(drift, 4),
        "nve_rms_about_drift_meV_per_atom": round(float(np.std(about_drift)), 4),
        "langevin_500K_mean_temperature_K": round(float(np.mean(temperatures)), 1),
        "langevin_500K_longest_bond_A": round(float(bonds.max()), 3),
    }
    return facts, nve
