"""Drift of the total energy in NVE, of several seeds, with its standard error."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms

from distill.potential import Potential
from distill.simulation import Frames, MDConfig, run_md

SHOWN = 300
"""Most points kept of each curve."""


class _Energies:
    """Keeps times and energies of a run, not its positions."""

    def __init__(self) -> None:
        self.parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def __call__(self, frames: Frames) -> None:
        self.parts.append((frames.time, frames.total_energy, frames.temperature))

    def joined(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Times `[T]` in fs, energies `[T, R]` in eV, temperatures `[T, R]` in K."""
        time, energy, temperature = zip(*self.parts, strict=True)
        return np.concatenate(time), np.concatenate(energy), np.concatenate(temperature)


def nve_drift(
    potential: Potential,
    atoms: Atoms,
    *,
    temperature: float,
    duration: float,
    equilibration: float,
    timestep: float = 0.5,
    replicas: int = 4,
    seed: int = 0,
    record_every: int = 10,
    progress: bool = True,
) -> dict[str, Any]:
    """Equilibrate replicas by Langevin MD, then let them run in NVE, side by side.

    The drift of a replica is the slope of a least-squares line through its total energy; the
    standard error comes from the differences between the replicas, so it holds whatever the
    correlation of the energies in time.

    Args:
        potential: in the precision to be tested.
        atoms: start.
        temperature: K.
        duration: ps, of NVE.
        equilibration: ps, before.
        timestep: fs.
        replicas: at least 2.
        seed: of velocities and noise.
        record_every: steps between recorded energies.
        progress: show bars.

    Returns:
        `drift_mev_per_atom_per_ns`, `standard_error`, `by_seed` (`drift`, `temperature_k`),
        `fluctuation_mev_per_atom`, conditions, and thinned `curves` (ps, meV/atom).

    Raises:
        ValueError: fewer than two replicas.
        SimulationError: a run left the range of the potential.
    """
    if replicas < 2:
        raise ValueError(f"a standard error needs at least 2 replicas, got {replicas}")
    common: dict[str, Any] = {
        "timestep": timestep,
        "temperature": temperature,
        "record_every": record_every,
        "block_steps": 50 * record_every,
        "seed": seed,
    }
    start = np.tile(atoms.positions, (replicas, 1, 1))
    warm = run_md(
        potential,
        start,
        MDConfig(
            ensemble="nvt_langevin",
            steps=_steps(equilibration, timestep, record_every),
            **common,
        ),
        progress=progress,
        description="equilibration",
    ).frames
    # The second half is at equilibrium; the frame nearest its mean energy keeps the temperature.
    half = len(warm.time) // 2
    energy = warm.total_energy[half:]
    frames = half + np.argmin(np.abs(energy - energy.mean(0)), axis=0)
    each = np.arange(replicas)
    energies = _Energies()
    run_md(
        potential,
        warm.positions[frames, each],
        MDConfig(ensemble="nve", steps=_steps(duration, timestep, record_every), **common),
        velocities=warm.velocities[frames, each],
        on_frames=energies,
        keep_frames=False,
        progress=progress,
        description="NVE",
    )
    time, total, kelvin = energies.joined()
    per_atom = 1e3 * (total - total[0]) / len(atoms)
    slopes = np.polyfit(time / 1e6, per_atom, 1)[0]
    every = max(1, len(time) // SHOWN)
    return {
        "drift_mev_per_atom_per_ns": float(slopes.mean()),
        "standard_error": float(slopes.std(ddof=1) / np.sqrt(replicas)),
        "by_seed": [
            {"drift": float(s), "temperature_k": float(t)}
            for s, t in zip(slopes, kelvin.mean(0), strict=True)
        ],
        "fluctuation_mev_per_atom": float(per_atom.std(0).mean()),
        "duration_ps": float(time[-1] / 1e3),
        "timestep_fs": timestep,
        "precision": str(np.dtype(potential.dtype)),
        "atoms": len(atoms),
        "curves": {
            "time_ps": (time[::every] / 1e3).tolist(),
            "energy_mev_per_atom": per_atom[::every].T.tolist(),
        },
    }


def _steps(picoseconds: float, timestep: float, multiple: int) -> int:
    return max(round(1e3 * picoseconds / timestep / multiple), 2) * multiple
