"""Molecular dynamics of calculators in ASE: NEP4 and Orb, for `benchmark_peers.py`."""

from __future__ import annotations

import importlib
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet

from distill.errors import ConfigError, MissingDependencyError


@dataclass(frozen=True)
class Case:
    """What is simulated.

    Attributes:
        atoms: start, with velocities.
        timestep: fs.
        temperature: K.
        steps: of one timed run of a peer.
    """

    atoms: Atoms
    timestep: float
    temperature: float
    steps: int


class Run(Protocol):
    """A simulation that is ready to be timed.

    Attributes:
        compile_seconds: that passed until the first forces were there.
    """

    compile_seconds: float

    def seconds_per_step(self) -> float:
        """Wall time of a run, over its steps."""


class AseRun:
    """Velocity Verlet of ASE with a calculator; every run begins at the same state."""

    def __init__(self, case: Case, calculator: Any):
        self._case = case
        begun = time.perf_counter()
        self._atoms = case.atoms.copy()
        self._atoms.calc = calculator
        self._atoms.get_forces()
        self.compile_seconds = time.perf_counter() - begun

    def seconds_per_step(self) -> float:
        """Wall time of a run, over its steps."""
        case = self._case
        self._atoms.positions = case.atoms.positions
        self._atoms.set_velocities(case.atoms.get_velocities())
        self._atoms.get_forces()
        dynamics = VelocityVerlet(self._atoms, timestep=case.timestep * units.fs)
        begun = time.perf_counter()
        dynamics.run(case.steps)
        return (time.perf_counter() - begun) / case.steps


def nep_run(case: Case, text: str) -> AseRun:
    """NEP on the CPU through calorine, from the text of a potential file."""
    require("calorine", "pip install calorine (it compiles C++)")
    from calorine.calculators import CPUNEP

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "nep.txt"
        path.write_text(text)
        return AseRun(case, CPUNEP(str(path)))


def read_nep(path: Path) -> str:
    """The text of a potential file; raises ConfigError where there is none."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"nep={path} cannot be read as a potential file ({error})") from error


def nep_header(text: str, path: Path) -> tuple[str, float, float]:
    """Version (`nep4`), radial and angular cutoff in Å, from the text of a potential file.

    Raises:
        ConfigError: it is none, or lacks hydrogen or oxygen.
    """
    lines = [line.split() for line in text.splitlines()[:20] if line.strip()]
    cutoffs = next((words[1:3] for words in lines if words[0] == "cutoff"), [])
    if len(cutoffs) < 2 or not lines[0][0].startswith("nep"):
        raise ConfigError(f"nep={path} is no potential file of NEP: a line nep... or cutoff lacks")
    missing = {"H", "O"} - set(lines[0][2:])
    if missing:
        raise ConfigError(
            f"nep={path} does not know {', '.join(sorted(missing))}: give one that does"
        )
    return lines[0][0], float(cutoffs[0]), float(cutoffs[1])


def random_nep(
    radial_cutoff: float, angular_cutoff: float, elements: tuple[str, ...] = ("O", "H")
) -> str:
    """A potential file of GPUMD (NEP4, 30 hidden units) whose energies are next to nothing."""
    n_max, basis, l_max, hidden = 4, 8, 4, 30
    descriptors = (n_max + 1) + (n_max + 1) * (l_max + 1)  # one more for the four-body term
    kinds = len(elements)
    rng = np.random.default_rng(0)
    network = 1e-6 * rng.standard_normal(kinds * (descriptors + 2) * hidden + 1)
    expansion = rng.standard_normal(kinds**2 * 2 * (n_max + 1) * (basis + 1))
    numbers = np.concatenate([network, expansion, np.full(descriptors, 0.1)])
    head = [
        f"nep4 {kinds} {' '.join(elements)}",
        f"cutoff {radial_cutoff:g} {angular_cutoff:g} 200 100",
        f"n_max {n_max} {n_max}",
        f"basis_size {basis} {basis}",
        f"l_max {l_max} 2 0",
        f"ANN {hidden} 0",
    ]
    return "\n".join([*head, *(f"{number:.7e}" for number in numbers)]) + "\n"


def orb_run(case: Case) -> AseRun:
    """Orb v3 conservative through our teacher, which wraps orb-models."""
    from distill import teachers
    from distill.calculators import TeacherCalculator

    require("orb_models", 'pip install -e ".[orb]" -c constraints.txt')
    teacher = teachers.load("orb:orb-v3-conservative-inf-omat?weights=random")
    return AseRun(case, TeacherCalculator(teacher))


def require(module: str, command: str) -> None:
    """Import a module, or say how to install it."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(f"{module} is not installed: {command}") from error
