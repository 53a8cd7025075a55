"""Structures with labels in memory: ragged numpy arrays, one flat row per atom."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress

from distill.data.ancestry import nearest_kept_parents
from distill.data.columns import ALL_COLUMNS, COLUMNS, EXTRA_COLUMNS, check_geometry
from distill.data.hessian import PRODUCT_COLUMNS, HessianProducts
from distill.data.labels import Labels
from distill.errors import DatasetError
from distill.units import UnitError, energy_factor, length_factor


def make_units(energy: str = "eV", length: str = "Angstrom") -> dict[str, str]:
    """Units of all columns from those of energy and length; `UnitError` for unknown names."""
    energy_factor(energy), length_factor(length)
    return {
        "energy": energy,
        "length": length,
        "forces": f"{energy}/{length}",
        "stress": f"{energy}/{length}^3",
    }


@dataclass(frozen=True, eq=False)
class Dataset:
    """`S` structures with `A` atoms in all, with or without labels.

    Attributes:
        n_atoms: `[S]` int64, atoms of each structure; the atom columns follow this order.
        numbers: `[A]` int32, atomic numbers.
        positions: `[A, 3]` float64.
        cell: `[S, 3, 3]` float64, rows are lattice vectors (zero where there is none).
        pbc: `[S, 3]` bool.
        energy: `[S]` float64, NaN without label.
        forces: `[A, 3]` float64, NaN without label.
        stress: `[S, 3, 3]` float64, ASE's sign, NaN where undefined.
        trajectory: `[S]` str, the run a structure came from; splits never divide one.
        origin: `[S]` str, how it was made, for example `teacher_md:500K`.
        parent: `[S]` int64, number of the structure it was made from, -1 for none.
        flag: `[S]` uint8, see `distill.data.flags`; 0 is usable.
        provenance: JSON-serialisable; `teacher`, `teacher_version`, `weights_sha256` and more.
        units: see `make_units`; eV and Å unless a dataset was made in others on purpose.
        hessian: Hessian-vector products of some of the structures, in energy/length²; None when
            none were taken.
        per_atom_energy: `[A]` float64, NaN where the teacher has none; they add up to the energy.
        uncertainty: `[A]` float64, the teacher's own for the force on an atom (the root of the
            summed variances of its components over a committee), NaN where it has none.

    Raises:
        DatasetError: shapes that disagree, non-finite geometry, a periodic direction without
            lattice vector, provenance that is not JSON, or Hessian products of others.
        UnitError: missing or unknown units.
    """

    n_atoms: np.ndarray
    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    energy: np.ndarray
    forces: np.ndarray
    stress: np.ndarray
    trajectory: np.ndarray
    origin: np.ndarray
    parent: np.ndarray
    flag: np.ndarray
    provenance: dict[str, Any] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=make_units)
    hessian: HessianProducts | None = None
    per_atom_energy: np.ndarray = None  # type: ignore[assignment]
    uncertainty: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        count, atoms = len(self.n_atoms), int(np.sum(self.n_atoms))
        for name in EXTRA_COLUMNS:
            if getattr(self, name) is None:
                object.__setattr__(self, name, np.full(atoms, np.nan))
        for name, (dtype, width, per_atom) in ALL_COLUMNS.items():
            values = np.asarray(getattr(self, name), dtype)
            shape = (atoms if per_atom else count, *width)
            if values.shape != shape:
                raise DatasetError(f"column {name!r} has shape {values.shape}, expected {shape}")
            object.__setattr__(self, name, values)
        check_geometry(self)
        if self.hessian is not None:
            self.hessian.require_fitting(self.n_atoms)
        try:
            json.dumps(self.provenance)
        except (TypeError, ValueError) as error:
            raise DatasetError(f"provenance cannot be written as JSON: {error}") from error
        if not {"energy", "length"} <= set(self.units):
            raise UnitError(f"units are {self.units}: give those of energy and length")
        object.__setattr__(self, "units", make_units(self.units["energy"], self.units["length"]))

    def __len__(self) -> int:
        return len(self.n_atoms)

    @cached_property
    def offsets(self) -> np.ndarray:
        """`[S + 1]` int64, first atom row of each structure."""
        return np.concatenate([[0], np.cumsum(self.n_atoms)]).astype(np.int64)

    @property
    def usable(self) -> np.ndarray:
        """`[S]` bool, True for structures without flag."""
        return self.flag == 0

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that occur, ascending."""
        return tuple(int(z) for z in np.unique(self.numbers))

    @property
    def has_labels(self) -> bool:
        """Whether any structure has an energy, or was tried and flagged."""
        return bool(np.isfinite(self.energy).any() or self.flag.any())

    @property
    def sha256(self) -> str:
        """Hash of all columns (provenance and units left out): the identity of the content."""
        digest = hashlib.sha256()
        for name, (dtype, _, _) in COLUMNS.items():
            values = getattr(self, name)
            text = "\0".join(values.tolist()).encode() if dtype is np.str_ else values.tobytes()
            digest.update(f"{name}:{len(text)}:".encode())
            digest.update(text)
        for name in self.extra_columns:
            values = getattr(self, name).tobytes()
            digest.update(f"{name}:{len(values)}:".encode())
            digest.update(values)
        # nothing is added without products, so that older datasets keep their hash
        for name in PRODUCT_COLUMNS if self.hessian is not None else ():
            values = np.ascontiguousarray(getattr(self.hessian, name)).tobytes()
            digest.update(f"hessian/{name}:{len(values)}:".encode())
            digest.update(values)
        return digest.hexdigest()

    @property
    def extra_columns(self) -> list[str]:
        """Those of `EXTRA_COLUMNS` that hold any number."""
        return [name for name in EXTRA_COLUMNS if not np.isnan(getattr(self, name)).all()]

    def rows(self, index: int) -> slice:
        """Atom rows of structure `index`."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    def structure(self, index: int, *, labels: bool = False) -> Atoms:
        """Structure `index` as `ase.Atoms`, with its labels as calculator results if asked."""
        index = range(len(self))[index]
        rows = self.rows(index)
        atoms = Atoms(
            numbers=self.numbers[rows],
            positions=self.positions[rows],
            cell=self.cell[index],
            pbc=self.pbc[index],
        )
        if labels:
            results: dict[str, Any] = {"energy": self.energy[index], "forces": self.forces[rows]}
            if np.isfinite(self.stress[index]).all():
                results["stress"] = full_3x3_to_voigt_6_stress(self.stress[index])
            atoms.calc = SinglePointCalculator(atoms, **results)
        return atoms

    def subset(self, indices: Any) -> Dataset:
        """The structures at `indices` (integers or a `[S]` bool mask), parents renumbered.

        In place of a parent that is left out stands its nearest ancestor that is taken, else -1.
        """
        taken = np.asarray(indices)
        taken = np.arange(len(self))[taken if taken.size else taken.astype(np.int64)]
        n_atoms = self.n_atoms[taken]
        first = self.offsets[taken] - np.concatenate([[0], np.cumsum(n_atoms)])[:-1]
        atom_rows = np.repeat(first, n_atoms) + np.arange(n_atoms.sum())
        columns = {
            name: getattr(self, name)[atom_rows if per_atom else taken]
            for name, (_, _, per_atom) in ALL_COLUMNS.items()
        }
        columns["parent"] = nearest_kept_parents(self.parent, taken)
        hessian = None if self.hessian is None else self.hessian.subset(taken)
        return replace(self, **columns, hessian=hessian)

    def labelled(
        self,
        labels: Labels,
        *,
        flag: np.ndarray | None = None,
        provenance: Mapping[str, Any] | None = None,
        hessian: HessianProducts | None = None,
    ) -> Dataset:
        """The same structures with `labels` (eV, Å).

        `flag`, `provenance` and `hessian` replace the old ones; what is not given is kept.

        Raises:
            DatasetError: labels whose number or shapes do not fit the structures.
            UnitError: structures that are not in eV and Å.
        """
        self.require_standard_units("labels can be attached")
        shapes = [np.shape(f) for f in labels.forces]
        wanted = [(int(n), 3) for n in self.n_atoms]
        if np.shape(labels.energy) != (len(self),) or shapes != wanted:
            raise DatasetError(
                f"labels do not fit {len(self)} structures: energy has shape "
                f"{np.shape(labels.energy)}, {len(shapes)} arrays of forces"
            )
        undefined = np.full((len(self), 3, 3), np.nan)
        extra: dict[str, Any] = {}
        for name in EXTRA_COLUMNS:
            own = getattr(labels, name)
            if own is not None and [len(x) for x in own] != self.n_atoms.tolist():
                raise DatasetError(f"labels do not fit {len(self)} structures: {name}")
            extra[name] = None if own is None else np.concatenate([np.zeros(0), *own])
        return replace(
            self,
            energy=labels.energy,
            forces=np.concatenate([np.zeros((0, 3)), *labels.forces]),
            stress=undefined if labels.stress is None else labels.stress,
            flag=self.flag if flag is None else flag,
            provenance=dict(self.provenance if provenance is None else provenance),
            hessian=self.hessian if hessian is None else hessian,
            **extra,
        )

    def in_standard_units(self) -> Dataset:
        """The same data in eV and Å."""
        energy, length = energy_factor(self.units["energy"]), length_factor(self.units["length"])
        if energy == length == 1.0:
            return self
        hessian = None if self.hessian is None else self.hessian.scaled(energy / length**2)
        return replace(
            self,
            positions=self.positions * length,
            cell=self.cell * length,
            energy=self.energy * energy,
            forces=self.forces * (energy / length),
            stress=self.stress * (energy / length**3),
            units=make_units(),
            hessian=hessian,
            per_atom_energy=self.per_atom_energy * energy,
            uncertainty=self.uncertainty * (energy / length),
        )

    def require_standard_units(self, what: str = "this works") -> None:
        """Raise `UnitError` unless the data is in eV and Å."""
        if energy_factor(self.units["energy"]) != 1.0 or length_factor(self.units["length"]) != 1.0:
            raise UnitError(
                f"{what} only for eV and Angstrom, not {self.units['energy']} and "
                f"{self.units['length']}: call in_standard_units() first"
            )

    @classmethod
    def from_structures(
        cls,
        structures: Sequence[Atoms],
        trajectory: str | Sequence[str],
        origin: str | Sequence[str],
        *,
        parent: Sequence[int] | np.ndarray | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> Dataset:
        """Structures without labels (energy, forces and stress are NaN).

        Args:
            structures: `ase.Atoms`, in Å.
            trajectory: one id for all or one per structure.
            origin: one text for all or one per structure.
            parent: `[S]` numbers of the structures these were made from; none by default.
            provenance: how the structures were made.
        """
        count = len(structures)
        n_atoms = np.array([len(atoms) for atoms in structures], np.int64)
        return cls(
            n_atoms=n_atoms,
            numbers=np.concatenate([np.zeros(0, int), *(a.numbers for a in structures)]),
            positions=np.concatenate([np.zeros((0, 3)), *(a.positions for a in structures)]),
            cell=np.array([a.cell.array for a in structures]).reshape(count, 3, 3),
            pbc=np.array([a.pbc for a in structures], bool).reshape(count, 3),
            energy=np.full(count, np.nan),
            forces=np.full((int(n_atoms.sum()), 3), np.nan),
            stress=np.full((count, 3, 3), np.nan),
            trajectory=_texts(trajectory, count),
            origin=_texts(origin, count),
            parent=np.full(count, -1) if parent is None else np.asarray(parent),
            flag=np.zeros(count, np.uint8),
            provenance=dict(provenance or {}),
        )


def _texts(value: str | Sequence[str], count: int) -> np.ndarray:
    return np.array([value] * count if isinstance(value, str) else list(value), np.str_)
