"""Teacher MD by ASE's integrators, for teachers that are not written in JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ase.units
import numpy as np
from ase import Atoms
from ase.md.bussi import Bussi
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet

from distill.calculators import TeacherCalculator
from distill.errors import ConfigError
from distill.progress import progress_bar
from distill.simulation import Frames, MDConfig
from distill.simulation.ensembles import degrees_of_freedom
from distill.teachers import Teacher
from distill.units import GPA


def run_with_ase(
    teacher: Teacher,
    atoms: Atoms,
    config: MDConfig,
    on_frames: Callable[[Frames], None],
    *,
    seed: int = 0,
    progress: bool = True,
    description: str = "teacher MD",
) -> None:
    """One run at constant volume; `on_frames` takes every recorded frame as of one replica.

    Raises:
        ConfigError: an ensemble other than `nve`, `nvt_langevin` and `nvt_csvr`.
    """
    system = atoms.copy()
    system.set_constraint()
    system.calc = TeacherCalculator(teacher)
    rng = np.random.default_rng(seed)
    thermal = np.sqrt(ase.units.kB * config.temperature / system.get_masses())[:, None]
    system.set_velocities(thermal * rng.standard_normal((len(system), 3)))
    momenta = system.get_momenta()
    share = system.get_masses()[:, None] / system.get_masses().sum()
    system.set_momenta(momenta - share * momenta.sum(0))
    dynamics = _integrator(system, config, rng)
    free = degrees_of_freedom(len(system))
    with progress_bar(config.steps, description, disable=not progress) as bar:
        for done in range(config.record_every, config.steps + 1, config.record_every):
            dynamics.run(config.record_every)
            on_frames(_frame(system, done * config.timestep, free))
            bar.update(config.record_every)


def _integrator(system: Atoms, config: MDConfig, rng: Any) -> Any:
    step = config.timestep * ase.units.fs
    if config.ensemble == "nve":
        return VelocityVerlet(system, step)
    if config.ensemble == "nvt_langevin":
        friction = config.friction / ase.units.fs
        return Langevin(system, step, temperature_K=config.temperature, friction=friction, rng=rng)
    if config.ensemble == "nvt_csvr":
        time = config.thermostat_time * ase.units.fs
        return Bussi(system, step, temperature_K=config.temperature, taut=time, rng=rng)
    raise ConfigError(
        f"a teacher outside JAX runs by ASE, which has no {config.ensemble} here: set "
        "dynamics.md.ensemble to nve, nvt_langevin or nvt_csvr"
    )


def _frame(system: Atoms, time: float, free: int) -> Frames:
    potential, kinetic = system.get_potential_energy(), system.get_kinetic_energy()
    pressure = np.nan
    if system.pbc.all() and "stress" in system.calc.results:
        stress = system.get_stress(voigt=False, include_ideal_gas=True)
        pressure = -np.trace(stress) / 3 / GPA
    return Frames(
        time=np.array([time]),
        positions=system.positions[None, None].copy(),
        velocities=(system.get_velocities() * ase.units.fs)[None, None],
        potential_energy=np.array([[potential]]),
        kinetic_energy=np.array([[kinetic]]),
        temperature=np.array([[2 * kinetic / free / ase.units.kB]]),
        conserved_energy=np.array([[potential + kinetic]]),
        uncertainty=np.zeros((1, 1, 0)),
        cell=system.cell.array[None, None].copy(),
        pressure=np.array([[pressure]]),
        walker=np.zeros((1, 1), np.int32),
    )
