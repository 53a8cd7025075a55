"""Energy conservation: a long NVE run tells more than an error."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms

from distill.potential import Potential
from distill.simulation import Frames, MDConfig, MDResult, run_md

EQUILIBRATION_STEPS = 4000
"""Langevin steps before the NVE run."""


def energy_drift(frames: Frames, n_atoms: int) -> float:
    """Slope of the total energy in meV/atom/ps, by least squares in float64."""
    slope, _ = np.polyfit(frames.time / 1e3, frames.total_energy, 1)
    return float(1e3 * slope / n_atoms)


def run_nve(
    potential: Potential,
    atoms: Atoms,
    *,
    temperature: float,
    duration: float,
    timestep: float = 0.5,
    seed: int = 0,
    progress: bool = True,
    record_every: int = 10,
) -> MDResult:
    """Equilibrate with Langevin MD, then run NVE.

    NVE starts from the equilibrated frame whose total energy is nearest to their mean: the energy
    of a small system fluctuates, and with it the temperature that NVE would keep.

    Args:
        potential: of the student (or teacher).
        atoms: start.
        temperature: K.
        duration: of the NVE part, ps.
        timestep: fs.
        seed: of velocities and noise.
        progress: show bars.
        record_every: steps between recorded energies.
    """
    common: dict[str, Any] = {
        "timestep": timestep,
        "temperature": temperature,
        "record_every": record_every,
        "block_steps": 50 * record_every,
        "seed": seed,
    }
    warm = run_md(
        potential,
        atoms.positions,
        MDConfig(
            ensemble="nvt_langevin", steps=_rounded(EQUILIBRATION_STEPS, record_every), **common
        ),
        progress=progress,
        description="equilibration",
    )
    energy = warm.frames.total_energy
    half = len(energy) // 2
    start = half + int(np.argmin(np.abs(energy[half:] - energy[half:].mean())))
    return run_md(
        potential,
        warm.frames.positions[start],
        MDConfig(ensemble="nve", steps=_rounded(1e3 * duration / timestep, record_every), **common),
        velocities=warm.frames.velocities[start],
        progress=progress,
        description="NVE",
    )


def summarise_nve(result: MDResult, n_atoms: int, timestep: float) -> dict[str, Any]:
    """Measures under the names that certificates use."""
    frames = result.frames
    energy = frames.total_energy
    return {
        "drift_mev_per_atom_per_ps": energy_drift(frames, n_atoms),
        "duration_ps": float(frames.time[-1] / 1e3),
        "timestep_fs": timestep,
        "mean_temperature_k": float(frames.temperature.mean()),
        "energy_fluctuation_mev_per_atom": float(1e3 * energy.std() / n_atoms),
        "largest_distance_from_start_ang": float(
            np.linalg.norm(frames.positions[-1] - frames.positions[0], axis=-1).max()
        ),
        "list_reallocations": result.n_reallocations,
    }


def _rounded(steps: float, multiple: int) -> int:
    return max(round(steps / multiple), 1) * multiple
