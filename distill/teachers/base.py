"""What a teacher is: something that labels structures and says what it can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from distill.data.labels import Labels
from distill.errors import UnknownElementError, UnsupportedStructureError
from distill.potential import Potential


@dataclass(frozen=True)
class TeacherInfo:
    """Identity and capabilities of a teacher; travels into every dataset, bundle and certificate.

    Attributes:
        name: what a user calls it, e.g. `fennol:ani1ccx`.
        kind: `fennol`, `orb`, `ase`, ...
        version: version of the library that runs it.
        weights_sha256: SHA-256 of the weight files, one per member, joined by `,`.
        elements: atomic numbers that it was made for.
        cutoff: interaction cutoff in Å, None when unknown.
        n_members: number of networks whose mean is the label.
        n_parameters: parameters of all members together.
        periodic: whether fully periodic structures are supported.
        partly_periodic: whether slabs and wires are supported.
        stress: whether the stress is available for periodic structures.
        hessian: `exact` (second derivatives) or `numerical` (differences of forces): how
            `Teacher.hvp` is computed.
        conservative: whether forces are the gradient of the energy; None when unknown.
        licence: licence of the weights, or `unknown`.
    """

    name: str
    kind: str
    version: str
    weights_sha256: str
    elements: tuple[int, ...]
    cutoff: float | None
    n_members: int
    n_parameters: int
    periodic: bool
    partly_periodic: bool
    stress: bool
    licence: str
    hessian: Literal["exact", "numerical"] = "numerical"
    conservative: bool | None = None

    def provenance(self) -> dict[str, Any]:
        """JSON-serialisable record for datasets, bundles and certificates."""
        record = asdict(self)
        record["elements"] = [chemical_symbols[z] for z in self.elements]
        record["teacher"] = record.pop("name")
        return record


@dataclass(frozen=True)
class HessianProduct:
    """Products of the Hessian of one structure with directions.

    Attributes:
        values: `[n, 3]` or `[k, n, 3]`, eV/Å² for a direction without unit.
        error: estimate of the largest error of a component, eV/Å²: one number or `[k]`; zero for
            exact products (whose rounding is that of the teacher's arithmetic).
        exact: whether second derivatives were taken, not differences.
    """

    values: np.ndarray
    error: np.ndarray
    exact: bool


@runtime_checkable
class Teacher(Protocol):
    """Anything that labels structures: see `distill.teachers.load`."""

    @property
    def info(self) -> TeacherInfo:
        """Identity and capabilities."""

    def label(self, structures: Sequence[Atoms], uncertainty: bool = False) -> Labels:
        """Energies (eV), forces (eV/Å) and stress (eV/Å³) of a batch of structures.

        With `uncertainty` also the spread of a committee's forces, see `Labels.uncertainty`;
        a teacher that is not a committee raises `ValueError`.
        """

    def potential(self, atoms: Atoms) -> Potential:
        """MD potential for structures like `atoms`, for `distill.simulation`.

        A teacher outside JAX is called back from the compiled loop.
        """

    def hvp(self, structure: Atoms, direction: np.ndarray) -> HessianProduct:
        """Second derivatives of the energy times `direction` (`[n, 3]` or `[k, n, 3]`)."""


def check_structures(info: TeacherInfo, structures: Sequence[Atoms]) -> None:
    """Refuse structures that the teacher described by `info` cannot treat.

    Raises:
        UnknownElementError: an element outside `info.elements`.
        UnsupportedStructureError: periodic directions that the teacher does not support, or
            non-finite positions.
    """
    known = set(info.elements)
    for index, atoms in enumerate(structures):
        unknown = sorted(set(atoms.numbers.tolist()) - known)
        if unknown:
            raise UnknownElementError(
                f"structure {index} ({atoms.get_chemical_formula()}) holds "
                f"{', '.join(chemical_symbols[z] for z in unknown)}, but teacher {info.name} "
                f"knows only {', '.join(chemical_symbols[z] for z in info.elements)}: "
                "remove the structure or choose another teacher"
            )
        if not np.isfinite(atoms.positions).all():
            raise UnsupportedStructureError(f"structure {index} has NaN or infinite positions")
        if atoms.pbc.any() and not atoms.pbc.all() and not info.partly_periodic:
            raise UnsupportedStructureError(
                f"structure {index} is periodic along {atoms.pbc.sum()} of 3 directions, but "
                f"teacher {info.name} supports none or all three: add vacuum and set pbc=True "
                "along the free directions, or choose another teacher"
            )
        if atoms.pbc.all() and not info.periodic:
            raise UnsupportedStructureError(
                f"structure {index} is periodic, but teacher {info.name} treats isolated "
                "systems only"
            )
        if atoms.pbc.any() and abs(atoms.cell.volume) < 1e-6:
            raise UnsupportedStructureError(
                f"structure {index} is periodic but its cell has no volume: set atoms.cell"
            )
