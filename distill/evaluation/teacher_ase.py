"""MD by ASE's integrators: for teachers that are not written in JAX, and to compare ours with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ase.units
import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.md.bussi import Bussi
from ase.md.langevin import Langevin
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.verlet import VelocityVerlet

from distill.errors import ConfigError, UnsupportedStructureError
from distill.progress import progress_bar
from distill.simulation import Frames, MDConfig
from distill.simulation.ensembles import degrees_of_freedom
from distill.units import GPA


def run_with_ase(
    calculator: Calculator,
    atoms: Atoms,
    config: MDConfig,
    on_frames: Callable[[Frames], None],
    *,
    seed: int = 0,
    progress: bool = True,
    description: str = "teacher MD",
) -> None:
    """One run; `on_frames` takes every recorded frame as of one replica.

    `npt_scr` becomes the dynamics of Martyna, Tobias and Klein (J. Chem. Phys. 101, 4177), which
    samples the same isotropic ensemble; `thermostat_time` and `barostat_time` are then periods.

    Args:
        calculator: with stress, in NPT.
        atoms: start.
        config: settings; its seed is not used.
        on_frames: see above.
        seed: of velocities and noise.
        progress: show a bar.
        description: label of the bar.

    Raises:
        ConfigError: the ensemble `nvt_nose_hoover`.
        UnsupportedStructureError: NPT of a system that is not periodic in all directions.
    """
    if config.ensemble == "npt_scr" and not atoms.pbc.all():
        raise UnsupportedStructureError(
            f"ensemble npt_scr needs a cell that is periodic in all directions, not "
            f"pbc={atoms.pbc.tolist()}; use an ensemble of fixed volume"
        )
    system = atoms.copy()
    system.set_constraint()
    system.calc = calculator
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
    if config.ensemble == "npt_scr":
        # ASE counts 3n degrees of freedom, of which 3 are at rest here.
        temperature = config.temperature * (1 - 1 / len(system))
        return IsotropicMTKNPT(
            system,
            step,
            temperature_K=temperature,
            pressure_au=config.pressure * GPA,
            tdamp=config.thermostat_time * ase.units.fs,
            pdamp=config.barostat_time * ase.units.fs,
        )
    raise ConfigError(
        f"a teacher outside JAX runs by ASE, which has no {config.ensemble} here: set "
        "dynamics.md.ensemble to nve, nvt_langevin, nvt_csvr or npt_scr"
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
