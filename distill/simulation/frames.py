"""What a run records, on the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ase.units
import numpy as np
from ase.data import atomic_masses

from distill.errors import SimulationError
from distill.potential import Potential
from distill.simulation.config import BAROSTATS, MDConfig
from distill.simulation.ensembles import degrees_of_freedom, mass_of
from distill.units import BOLTZMANN, GPA


@dataclass(frozen=True)
class Frames:
    """What a run recorded, `T` frames of `R` replicas (no axis for a single one), as numpy arrays.

    In a run with exchanges, index `r` is the temperature `r`, whichever replica was there.

    Attributes:
        time: `[T]`, fs.
        positions: `[T, (R,) n, 3]`, Å, unwrapped.
        velocities: `[T, (R,) n, 3]`, Å/fs.
        potential_energy: `[T, (R)]`, eV, without reference energies.
        kinetic_energy: `[T, (R)]`, eV.
        temperature: `[T, (R)]`, K, of the 3n - 3 degrees of freedom of the motion relative to the
            centre of mass, which the Langevin bath moves too (of all 3 for a single atom).
        conserved_energy: `[T, (R)]`, eV, float64: total energy, and pressure of the bath times
            volume in NPT, less what baths and exchanges gave. It would stay as it is in an exact
            integration; its drift is the error of the timestep.
        uncertainty: `[T, (R,) n]`, eV/Å, expected length of the force error of each atom; no
            atoms (`n = 0`) for a potential without uncertainty.
        cell: `[T, (R,) 3, 3]`, Å, float64, rows are lattice vectors.
        pressure: `[T, (R)]`, GPa, instantaneous, kinetic and virial part of the motion relative to
            the centre of mass (of all motion for a single atom), positive where compressed. NaN
            for a potential that cannot `evaluate` (see `distill.potential.Potential`) and where
            a direction is not periodic.
        walker: `[T, (R)]`, the replica that was there; `r` itself in a run without exchanges.
    """

    time: np.ndarray
    positions: np.ndarray
    velocities: np.ndarray
    potential_energy: np.ndarray
    kinetic_energy: np.ndarray
    temperature: np.ndarray
    conserved_energy: np.ndarray
    uncertainty: np.ndarray
    cell: np.ndarray
    pressure: np.ndarray
    walker: np.ndarray

    @property
    def volume(self) -> np.ndarray:
        """`[T, (R)]`, Å³; 0 for molecules."""
        return np.abs(np.linalg.det(self.cell))

    def density(self, numbers: np.ndarray) -> np.ndarray:
        """`[T, (R)]`, g/cm³, for atomic numbers `[n]`; infinite without a volume."""
        return mass_density(numbers, self.cell)

    @property
    def total_energy(self) -> np.ndarray:
        """`[T, (R)]`, eV, in float64."""
        return self.potential_energy.astype(np.float64) + self.kinetic_energy.astype(np.float64)


def mass_density(numbers: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """g/cm³, of atoms `[n]` in cells `[..., 3, 3]` (Å); infinite without a volume."""
    grams = atomic_masses[numbers].sum() / ase.units.mol
    with np.errstate(divide="ignore"):
        return np.asarray(grams / (np.abs(np.linalg.det(cell)) * 1e-24))


def to_frames(records: Any, potential: Potential, config: MDConfig, done: int) -> Frames:
    """Frames from the records of a block that began after `done` steps."""
    positions, velocities, energy, kinetic, bath, expected, pressure, cell, walker = map(
        np.asarray, records
    )
    if config.ensemble not in BAROSTATS:
        cell = np.tile(potential.cell, (*energy.shape, 1, 1))
    steps = done + config.record_every * np.arange(1, len(positions) + 1)
    return Frames(
        time=steps * config.timestep,
        positions=positions,
        velocities=velocities,
        potential_energy=energy,
        kinetic_energy=kinetic,
        temperature=temperature_of(velocities.astype(np.float64), mass_of(potential.numbers)),
        conserved_energy=energy.astype(np.float64) + kinetic + bath,
        uncertainty=expected,
        cell=cell.astype(np.float64),
        pressure=pressure.astype(np.float64) / GPA,
        walker=walker,
    )


def no_frames(potential: Potential, positions: np.ndarray) -> Frames:
    """Frames of a run from `positions` `[(R,) n, 3]` that has recorded none."""
    many = (0, *positions.shape[:-2])
    rows = np.zeros((0, *positions.shape), potential.dtype)
    energy, exact = np.zeros(many, potential.dtype), np.zeros(many)
    n_uncertain = 0 if potential.with_uncertainty is None else len(potential.numbers)
    expected = np.zeros((*many, n_uncertain), potential.dtype)
    cell, walker = np.zeros((*many, 3, 3)), np.zeros(many, np.int32)
    rest = (exact, exact, expected, cell, exact, walker)
    return Frames(np.zeros(0), rows, rows, energy, energy, *rest)


def join_frames(parts: list[Frames]) -> Frames:
    """One after the other."""
    names = Frames.__dataclass_fields__
    return Frames(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def temperature_of(velocities: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """K, from velocities `[..., n, 3]` in Å/fs and masses `[n, 1]` in eV fs²/Å²."""
    if len(mass) > 1:
        velocities = velocities - (mass * velocities).sum(-2, keepdims=True) / mass.sum()
    return (mass * velocities**2).sum((-2, -1)) / (degrees_of_freedom(len(mass)) * BOLTZMANN)


def require_finite(frames: Frames, replicas: bool) -> None:
    """Raises SimulationError, with time and atoms, where frames are NaN or infinite."""
    good = np.isfinite(frames.positions).all(-1)
    energies = np.isfinite(frames.potential_energy) & np.isfinite(frames.kinetic_energy)
    if good.all() and energies.all():
        return
    fine = good.reshape(len(good), -1).all(1) & energies.reshape(len(good), -1).all(1)
    first = int(np.argmin(fine))
    where = np.argwhere(~good[first])
    atoms = sorted({int(w[-1]) for w in where})
    lost = f"atoms {atoms[:10]}" if atoms else "the energy"
    of = f" of replicas {sorted({int(w[0]) for w in where})[:10]}" if replicas and atoms else ""
    broken = ~(good.all(-1) & energies)
    raise SimulationError(
        f"{lost}{of} became NaN or infinite at or before {frames.time[first]:.1f} fs: the "
        "structure left the range of the potential, or the timestep is too large",
        replicas=np.flatnonzero(broken.any(0)) if replicas else [0],
    )
