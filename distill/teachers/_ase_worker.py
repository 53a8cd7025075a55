"""What a worker process does for an ASE teacher: make the calculator once, then evaluate."""

from __future__ import annotations

import copy
import importlib
import os
import threading
import uuid
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import numpy as np
from ase import Atoms

from distill.errors import ConfigError, MissingDependencyError


@dataclass(frozen=True)
class Recipe:
    """How to make a calculator; small and picklable.

    Attributes:
        target: import path `module:Class`, or a factory or instance that pickles.
        parameters: constructor arguments.
        key: unlike that of any other recipe.
    """

    target: Any
    parameters: tuple[tuple[str, Any], ...] = ()
    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    def make(self) -> Any:
        """A calculator.

        Raises:
            MissingDependencyError: the package is not installed.
            ConfigError: no such class, or arguments that it does not take.
        """
        if isinstance(self.target, str):
            factory = import_calculator(self.target)
        elif hasattr(self.target, "get_property") and not isinstance(self.target, type):
            return self.target
        else:
            factory = self.target
        try:
            return factory(**dict(self.parameters))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{self.target} cannot be made with {dict(self.parameters)}: {error}"
            ) from error


@dataclass(frozen=True)
class Outcome:
    """Results of one structure, or the reason why there are none."""

    energy: float = np.nan
    forces: np.ndarray | None = None
    stress: np.ndarray | None = None
    error: str = ""


def import_calculator(path: str) -> Any:
    """The class or factory at `module:name`.

    Raises:
        MissingDependencyError: the module's package is not installed.
        ConfigError: a path of another form, or no such name in the module.
    """
    module_name, separator, name = path.partition(":")
    if not separator or not name:
        raise ConfigError(
            f"ASE calculator {path!r}: write <module>:<class>, e.g. tblite.ase:TBLite"
        )
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        package = (error.name or module_name).split(".")[0]
        if package != module_name.split(".")[0]:
            advice = f"pip install {package}"
        else:
            advice = 'pip install "distill-mlip[xtb]"' if package == "tblite" else "install it"
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            raise MissingDependencyError(
                f"ASE calculator {path}: the package {package} is not installed: {advice}"
            ) from error
        raise ConfigError(f"ASE calculator {path}: there is no module {error.name}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"ASE calculator {path}: {module_name} has no {part!r}")
        found = getattr(found, part)
    return found


_CALCULATORS: dict[tuple[str, int], Any] = {}
"""Calculators of this process, by recipe and thread: a calculator is not for two at once."""


def start_worker() -> None:
    """One thread for each worker: the processes share the cores."""
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"


def evaluate_recipe(recipe: Recipe, atoms: Atoms, stress: bool | None) -> Outcome:
    """Evaluate in a worker, which keeps one calculator for each recipe."""
    key = recipe.key, threading.get_ident()
    if key not in _CALCULATORS:
        try:
            # A copy: threads of this process would share an instance that was given.
            _CALCULATORS[key] = copy.deepcopy(recipe.make())
        except Exception as error:
            return Outcome(error=f"{type(error).__name__}: {error}")
    return evaluate(_CALCULATORS[key], atoms, stress)


def prepare(recipe: Recipe) -> None:
    """Import the calculator's package in this process, which may take seconds."""
    recipe.make()


def evaluate(calculator: Any, atoms: Atoms, stress: bool | None) -> Outcome:
    """Energy, forces and, for fully periodic structures, stress; never raises."""
    try:
        return _evaluate(calculator, atoms, stress)
    except Exception as error:
        return Outcome(error=f"{type(error).__name__}: {error}")


def gives_stress(calculator: Any) -> bool:
    """Whether a calculator says that it implements the stress."""
    return "stress" in getattr(calculator, "implemented_properties", ())


def _evaluate(calculator: Any, atoms: Atoms, stress: bool | None) -> Outcome:
    atoms = atoms.copy()
    atoms.set_constraint()
    if hasattr(calculator, "reset"):
        # Results must not depend on the structures that came before.
        calculator.reset()
    atoms.calc = calculator
    with_stress = gives_stress(calculator) if stress is None else stress
    energy = float(atoms.get_potential_energy(force_consistent=_has_free_energy(calculator)))
    forces = np.array(atoms.get_forces(apply_constraint=False), np.float64)
    tensor = None
    if with_stress and atoms.pbc.all():
        tensor = np.array(atoms.get_stress(voigt=False), np.float64)
    if forces.shape != (len(atoms), 3):
        return Outcome(error=f"forces have shape {forces.shape}, expected ({len(atoms)}, 3)")
    finite = np.isfinite(energy) and np.isfinite(forces).all()
    if not finite or not (tensor is None or np.isfinite(tensor).all()):
        return Outcome(error="the calculator returned NaN or infinity")
    return Outcome(energy, forces, tensor)


def _has_free_energy(calculator: Any) -> bool:
    # The forces are the gradient of the free energy where electrons are smeared.
    return "free_energy" in getattr(calculator, "implemented_properties", ())
