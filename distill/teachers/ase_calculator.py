"""Any ASE calculator as a teacher, its structures spread over worker processes."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, ProcessPoolExecutor, wait
from dataclasses import dataclass
from importlib import metadata
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
from ase import Atoms

from distill.data.labels import Labels
from distill.errors import ConfigError, TeacherError
from distill.potential import Potential
from distill.teachers._ase_worker import (
    Outcome,
    Recipe,
    evaluate,
    evaluate_recipe,
    gives_stress,
    prepare,
    start_worker,
)
from distill.teachers.base import HessianProduct, TeacherInfo, check_structures
from distill.teachers.hessian import numerical_hvp
from distill.teachers.host import host_potential

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """A structure without labels: its number in the call, its formula, and why."""

    index: int
    formula: str
    error: str


class AseTeacher:
    """Teacher made of an ASE calculator.

    A structure for which the calculator raises, gives NaN, takes too long or kills its process
    gets NaN labels, a warning in the log and an entry in `failures`; the others are not touched
    by it. Where a calculator has a free energy that is the label, because the forces are its
    gradient. Some calculators print; most have an argument against it (tblite: `verbosity=0`).

    Args:
        calculator: import path `module:Class`, a function that makes a calculator, or one.
        parameters: arguments of the class or function.
        name: recorded as provenance.
        elements: atomic numbers that it treats; all by default.
        periodic: whether it treats fully periodic structures.
        partly_periodic: whether it treats slabs and wires.
        stress: whether it gives the stress; asked of the calculator by default.
        licence: of the method's parameters.
        executor: of `concurrent.futures`, or one that looks like it (Dask's
            `Client.get_executor()`, `mpi4py.futures.MPIPoolExecutor`, Ray's); a pool of processes
            by default. An executor that is given is never shut down here.
        n_workers: processes of the pool; the cores of this process by default, 0 evaluates here.
        timeout: seconds that one structure may take once its turn has come, with workers only.

    Raises:
        ConfigError, MissingDependencyError: a calculator that cannot be made.
    """

    def __init__(
        self,
        calculator: Any,
        *,
        parameters: Mapping[str, Any] | None = None,
        name: str | None = None,
        elements: Sequence[int] | None = None,
        periodic: bool = True,
        partly_periodic: bool = True,
        stress: bool | None = None,
        licence: str = "unknown",
        executor: Executor | None = None,
        n_workers: int | None = None,
        timeout: float | None = None,
    ):
        recipe = Recipe(calculator, tuple(sorted((parameters or {}).items())))
        self._local = recipe.make()
        self._stress = gives_stress(self._local) if stress is None else stress
        self._executor, self._timeout = executor, timeout
        self._pool: ProcessPoolExecutor | None = None
        self._n_workers = _cores() if n_workers is None else n_workers
        self._recipe, self._travels = recipe, True
        try:
            ForkingPickler.dumps(recipe)
        except Exception as error:
            if executor is not None or n_workers:
                raise ConfigError(
                    f"{calculator} cannot be sent to other processes ({error}): give an import "
                    "path or a function of a module, or n_workers=0"
                ) from error
            self._travels = False
        self.failures: list[Failure] = []
        version = _version(type(self._local).__module__)
        named = name or _name(calculator, parameters or {})
        # An instance tells what it was made with by ASE's `parameters`.
        settings = {**getattr(self._local, "parameters", {}), **(parameters or {})}
        identity = json.dumps([named, settings, version], default=_plain, sort_keys=True)
        self._info = TeacherInfo(
            name=named,
            kind="ase",
            version=version,
            # There are no weight files: what identifies the labels is the calculator's recipe.
            weights_sha256=hashlib.sha256(identity.encode()).hexdigest(),
            elements=tuple(elements) if elements else tuple(range(1, 119)),
            cutoff=None,
            n_members=1,
            n_parameters=0,
            periodic=periodic,
            partly_periodic=partly_periodic,
            stress=self._stress,
            licence=licence,
        )

    @property
    def info(self) -> TeacherInfo:
        """Identity and capabilities."""
        return self._info

    def label(self, structures: Sequence[Atoms], uncertainty: bool = False) -> Labels:
        """Labels of a batch; NaN for a structure that failed, see `failures`.

        Raises:
            UnknownElementError, UnsupportedStructureError: see `check_structures`.
            TeacherError: every structure failed.
            ValueError: `uncertainty` of a single calculator.
        """
        if uncertainty:
            raise ValueError(
                f"{self.info.name} is a single calculator, it has no spread: load a list of "
                "teachers"
            )
        check_structures(self.info, structures)
        bare = [_without_calculator(atoms) for atoms in structures]
        outcomes = self._outcomes(bare)
        self.failures = [
            Failure(i, atoms.get_chemical_formula(), outcome.error)
            for i, (atoms, outcome) in enumerate(zip(structures, outcomes, strict=True))
            if outcome.error
        ]
        for failure in self.failures:
            logger.warning(
                "structure %d (%s): %s failed: %s",
                failure.index,
                failure.formula,
                self.info.name,
                failure.error,
            )
        if outcomes and len(self.failures) == len(outcomes):
            raise TeacherError(
                f"{self.info.name} failed for all {len(outcomes)} structures of the batch, first: "
                f"{self.failures[0].error}"
            )
        stress = np.full((len(outcomes), 3, 3), np.nan)
        forces = []
        for i, (atoms, outcome) in enumerate(zip(structures, outcomes, strict=True)):
            missing = np.full((len(atoms), 3), np.nan)
            forces.append(missing if outcome.forces is None else outcome.forces)
            if outcome.stress is not None:
                stress[i] = outcome.stress
        energy = np.array([outcome.energy for outcome in outcomes], np.float64)
        return Labels(energy, forces, stress if self._stress else None)

    def potential(self, atoms: Atoms) -> Potential:
        """MD potential: the compiled loop calls the calculator back at each step."""
        return host_potential(self, atoms)

    def hvp(self, structure: Atoms, direction: np.ndarray) -> HessianProduct:
        """Second derivatives times `direction` `[n, 3]` or `[k, n, 3]`, by differences."""
        check_structures(self.info, [structure])
        product = numerical_hvp(self.label, structure, direction)
        if self.failures:
            raise TeacherError(
                f"{self.info.name} failed for a displaced structure: {self.failures[0].error}"
            )
        return product

    def close(self) -> None:
        """End the worker processes of the own pool; a later call starts new ones."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def __enter__(self) -> AseTeacher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _outcomes(self, structures: list[Atoms]) -> list[Outcome]:
        alone = len(structures) < 2 or self._n_workers == 0
        if not self._travels or (self._executor is None and alone and self._timeout is None):
            return [evaluate(self._local, atoms, self._stress) for atoms in structures]
        results: list[Outcome | None] = [None] * len(structures)
        waiting = list(range(len(structures)))
        # A dead process takes all that is in flight with it: what is left is tried one by one,
        # so that the structure that killed it is known.
        broken = self._submit(structures, waiting, results)
        for index in broken:
            if self._submit(structures, [index], results):
                results[index] = Outcome(error="the worker process died")
        return [r if r is not None else Outcome(error="no result") for r in results]

    def _submit(
        self, structures: list[Atoms], indices: list[int], results: list[Outcome | None]
    ) -> list[int]:
        """Evaluate `indices` in the workers; returns those that a dead process left undone."""
        executor = self._executor or self._own_pool()
        undone: list[int] = []
        futures = {}
        for i in indices:
            try:
                futures[i] = executor.submit(
                    evaluate_recipe, self._recipe, structures[i], self._stress
                )
            except BrokenExecutor:
                undone.append(i)
        for i, future in futures.items():
            try:
                results[i] = future.result(timeout=self._timeout)
            except (BrokenExecutor, CancelledError):
                undone.append(i)
            except TimeoutError:
                results[i] = Outcome(error=f"no answer within {self._timeout} s")
                future.cancel()
                # Its process would never come back; what was in flight beside it is done again.
                self._drop_pool()
            except Exception as error:
                results[i] = Outcome(error=f"{type(error).__name__}: {error}")
        if undone and self._executor is not None:
            raise TeacherError(
                f"the executor that {self.info.name} was given broke: a structure ended one of its "
                "processes; make a new executor, or let the teacher use its own pool, which "
                "recovers"
            )
        if undone:
            self._drop_pool()
        return undone

    def _own_pool(self) -> Executor:
        if self._pool is None:
            # Never forked: JAX has threads, whose locks a forked child would inherit.
            context = multiprocessing.get_context("spawn")
            count = max(self._n_workers, 1)
            self._pool = ProcessPoolExecutor(count, mp_context=context, initializer=start_worker)
            # A pool that is forgotten while Python ends complains about its own closed pipe.
            weakref.finalize(self, self._pool.shutdown, wait=True, cancel_futures=True)
            if self._timeout is not None:
                # Imports are not counted as time that a structure took.
                wait([self._pool.submit(prepare, self._recipe) for _ in range(count)])
        return self._pool

    def _drop_pool(self) -> None:
        """Leave a pool whose processes are dead or hang."""
        if self._pool is None:
            return
        processes = list((getattr(self._pool, "_processes", None) or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()
        self._pool = None


def parse_ase_name(name: str) -> tuple[str, dict[str, Any]]:
    """Import path and arguments of `ase:<module>:<class>?argument=value&...`.

    Values are what they look like: whole or other numbers, `true` or `false`, else text.
    """
    target, _, query = name.removeprefix("ase:").partition("?")
    parameters: dict[str, Any] = {}
    for pair in filter(None, query.split("&")):
        key, separator, text = pair.partition("=")
        if not separator or not key:
            raise ConfigError(f"teacher {name!r}: {pair!r} is not argument=value")
        parameters[key] = _scalar(text)
    return target, parameters


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _without_calculator(atoms: Atoms) -> Atoms:
    copy = atoms.copy()
    copy.calc = None
    return copy


def _name(calculator: Any, parameters: Mapping[str, Any]) -> str:
    if isinstance(calculator, str):
        path = calculator
    else:
        kind = calculator if hasattr(calculator, "__qualname__") else type(calculator)
        path = f"{kind.__module__}:{kind.__qualname__}"
    query = "&".join(f"{key}={value}" for key, value in sorted(parameters.items()))
    return f"ase:{path}" + (f"?{query}" if query else "")


def _plain(value: Any) -> Any:
    """An argument as JSON; of an object only what is the same in every process."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _scalar(text: str) -> Any:
    """The number, true or false that `text` looks like, else the text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _version(module: str) -> str:
    package = module.split(".")[0]
    for distribution in metadata.packages_distributions().get(package, [package]):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"
